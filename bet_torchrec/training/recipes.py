"""Settings that belong together: how batches are drawn, models trained and probes fine-tuned."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

from ..tasks.ranking.task import BPR, PAPER_L2, BackboneName, RankingTask
from ..tasks.task import Task
from .settings import TrainSettings

NEVER = 10**9
PROBE_EPOCHS = 3  # at least: full tables may overfit long before small ones have learnt
PROBE_SHARE = 0.3  # shorter ones rank click models' plans hardly better than chance
FORESIGHT = 0.5
ROUNDING_EPOCHS, ROUNDING_SHARE = 6, 2 / 3
SMALL_STEPS = 10  # an epoch
SMALL_L2: Mapping[BackboneName, float] = {"lightgcn": 1e-3, "ngcf": 1e-3, "ncf": 3e-2}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """training: to convergence. fine_tuning: of a probe. probe_share: of the full model's epochs
    that a probe takes, where that is more. foresight: see ``TrainingWorkbench``. rounding: of the
    last epochs, with rows read as they will be served (see ``rounding_epochs``); None leaves them
    out."""

    training: TrainSettings
    fine_tuning: TrainSettings
    probe_share: float = 0.0
    foresight: float = 0.0
    rounding: TrainSettings | None = None


def rounding_epochs(
    training: TrainSettings, steps_per_epoch: int, *, trained: float = 0.0
) -> TrainSettings:
    """What a trained model is trained on by with its rows rounded; the rate falls to a 64th.

    It begins as large as in training, for coarse codes need it: on Frappe's FM at 4 bytes a row
    that ends above both this rate and a fifth of it, kept constant.

    trained: epochs that the model took; two thirds of them, but at least six, are taken again.
    """
    epochs = max(ROUNDING_EPOCHS, round(trained * ROUNDING_SHARE))
    return dataclasses.replace(
        training,
        lr_decay=64 ** (-1 / epochs),
        lr_decay_steps=steps_per_epoch,
        lr_min=0.0,
        max_epochs=epochs,
        validate_every=None,
        patience=epochs,
    )


def clicks(lr: float = 2e-3) -> Recipe:
    """Click models and users' own: Adam at a constant rate, an epoch between validations.

    A probe is three tenths of the epochs that the full model took, but at least three.
    """
    training = TrainSettings(
        lr=lr, lr_decay=1.0, lr_min=0.0, max_epochs=30, validate_every=None, patience=2
    )
    fine_tuning = dataclasses.replace(training, max_epochs=PROBE_EPOCHS, validate_every=NEVER)
    return Recipe(
        training=training, fine_tuning=fine_tuning, probe_share=PROBE_SHARE, foresight=FORESIGHT
    )


@dataclass(frozen=True, kw_only=True)
class RankingRecipe:
    """bpr: of a ``RankingTask``. training, fine_tuning, probe_share, foresight, rounding: as in
    ``Recipe``."""

    bpr: BPR
    training: TrainSettings
    fine_tuning: TrainSettings
    probe_share: float = 0.0
    foresight: float = 0.0
    rounding: TrainSettings | None = None


def paper(backbone: BackboneName = "lightgcn") -> RankingRecipe:
    """As in BET's published code: Adam .03 falling to .001, x0.95 every 200 steps.

    A probe is 10 epochs (NGCF 15) at .03, x0.98 every 200 steps.
    """
    return RankingRecipe(
        bpr=BPR.paper(backbone),
        training=TrainSettings(),
        fine_tuning=TrainSettings(
            lr_decay=0.98,
            lr_min=0.0,
            max_epochs=15 if backbone == "ngcf" else 10,
            validate_every=NEVER,
        ),
    )


def published_lightgcn() -> RankingRecipe:
    """LightGCN's own settings, d 64: Adam 1e-3, batch 2048, N(0, 0.1), 1000 epochs."""
    training = TrainSettings(
        lr=1e-3, lr_decay=1.0, init_std=0.1, max_epochs=1000, validate_every=20 * 396, patience=10
    )
    return RankingRecipe(
        bpr=BPR(batch_size=2048, sampler="pairs", l2=1e-4),
        training=training,
        fine_tuning=TrainSettings(lr=1e-3, lr_decay=1.0, max_epochs=10, validate_every=NEVER),
    )


def of_size(backbone: BackboneName, pairs: int) -> RankingRecipe:
    """``fast`` where its batches are at most a tenth of an epoch of ``pairs``, else ``small``."""
    recipe = fast(backbone)
    if pairs >= SMALL_STEPS * recipe.bpr.batch_size:
        return recipe
    return small(backbone, pairs)


def small(backbone: BackboneName, pairs: int) -> RankingRecipe:
    """Ten steps an epoch, users drawn alike, more of a pull to zero: little data is soon learnt.

    pairs: training interactions. MovieLens-100K, d 128, validation quality: LightGCN .257, where
    ``paper`` validated every 200 steps has .238 at best and ``fast`` .197; NCF .240 (.164, .182).
    At a twentieth of the parameters twice the rate is better.
    """
    graph = backbone != "ncf"
    rate = 0.03 if backbone == "lightgcn" else 0.005
    batch = max(1, -(-pairs // SMALL_STEPS))
    return RankingRecipe(
        bpr=BPR(batch_size=batch, sampler="users", l2=SMALL_L2[backbone]),
        training=TrainSettings(
            lr=rate,
            lr_decay=0.8,
            lr_decay_steps=100,
            lr_min=0.001,
            max_epochs=80 if graph else 40,
            validate_every=5 * SMALL_STEPS,
            patience=4,
        ),
        fine_tuning=TrainSettings(
            lr=rate,
            lr_decay=0.98,
            lr_decay_steps=10,
            lr_min=0.0,
            max_epochs=6 if graph else 3,
            validate_every=NEVER,
        ),
    )


def fast(backbone: BackboneName = "lightgcn") -> RankingRecipe:
    """Large batches, because a step costs what its propagation costs.

    A batch of 50,000 pairs takes hardly longer than one of 10,000 users with the graph backbones,
    and with a larger learning rate it converges in some hundred steps instead of thousands. A probe
    sees the examples of 6 of the paper's 10 epochs (NCF 3) in a seventh of the steps.
    """
    graph = backbone != "ncf"  # NCF's dense layer, not propagation, is what its step costs
    light = backbone == "lightgcn"
    return RankingRecipe(
        bpr=BPR(batch_size=50_000, sampler="pairs", l2=PAPER_L2[backbone]),
        training=TrainSettings(
            lr=0.06 if light else 0.01,
            lr_decay=0.8,
            lr_decay_steps=100,
            lr_min=0.002 if light else 0.001,
            max_epochs=100 if graph else 40,
            validate_every=110,
            patience=3,
        ),
        fine_tuning=TrainSettings(
            lr=0.03 if light else 0.01,
            lr_decay=0.98,
            lr_decay_steps=10,
            lr_min=0.0,
            max_epochs=6 if graph else 3,
            validate_every=NEVER,
        ),
    )


def default_recipe(task: Task) -> Recipe | RankingRecipe:
    """BET's published one for rankings, ``clicks`` for anything else."""
    return paper(task.backbone) if isinstance(task, RankingTask) else clicks()
