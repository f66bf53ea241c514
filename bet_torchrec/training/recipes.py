"""Fast training settings: large batches, because a step costs what its propagation costs.

A batch of 50,000 pairs takes hardly longer than one of 10,000 users with the graph backbones, and
with a larger learning rate it converges in some hundred steps instead of thousands.
"""

from __future__ import annotations

from .settings import BackboneName, TrainSettings, paper

_PAIRS = 50_000


def fast(backbone: BackboneName = "lightgcn") -> TrainSettings:
    """To convergence."""
    graph = backbone != "ncf"  # NCF's dense layer, not propagation, is what its step costs
    return TrainSettings(
        batch_size=_PAIRS,
        sampler="pairs",
        lr=0.06 if backbone == "lightgcn" else 0.01,
        lr_decay=0.8,
        lr_decay_steps=100,
        lr_min=0.002 if backbone == "lightgcn" else 0.001,
        l2=paper(backbone).l2,
        max_epochs=100 if graph else 40,
        validate_every=110,
        patience=3,
    )


def fast_fine_tuning(backbone: BackboneName = "lightgcn") -> TrainSettings:
    """A probe: the examples of 6 of the paper's 10 epochs (NCF 3), in a seventh of the steps."""
    return TrainSettings(
        batch_size=_PAIRS,
        sampler="pairs",
        lr=0.03 if backbone == "lightgcn" else 0.01,
        lr_decay=0.98,
        lr_decay_steps=10,
        lr_min=0.0,
        l2=paper(backbone).l2,
        max_epochs=3 if backbone == "ncf" else 6,
        validate_every=10**9,
    )
