"""How to train: one frozen object, and recipes that return one."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

from ..errors import InvalidInputError
from .sampling import SamplerName

BackboneName: TypeAlias = Literal["lightgcn", "ngcf", "ncf"]


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """BPR training with Adam.

    The learning rate at step t is max(lr * lr_decay ** (t // lr_decay_steps), lr_min).
    """

    batch_size: int = 10_000
    """Examples a step: a user, one positive, one negative item each."""
    sampler: SamplerName = "users"
    """"users": each user equally often (BET's). "pairs": every interaction once an epoch."""
    lr: float = 0.03
    """Adam's learning rate at the start."""
    lr_decay: float = 0.95
    """Its factor every lr_decay_steps; 1 keeps it."""
    lr_decay_steps: int = 200
    """Steps between decays."""
    lr_min: float = 0.001
    """The rate never falls below this."""
    l2: float = 1e-4
    """Weight of half the squared norm of the batch's table rows, over the batch size."""
    init_std: float = 0.01
    """Tables start as N(0, init_std^2)."""
    max_epochs: int = 1000
    """The end, if patience doesn't come first."""
    validate_every: int = 2000
    """Steps between validations; the best state by validation quality is kept."""
    patience: int = 3
    """Validations without a better quality before training stops."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "lr_decay_steps", "max_epochs", "validate_every", "patience"):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 1:
                raise InvalidInputError(
                    f"{name} should be an int of at least 1, got {getattr(self, name)!r}"
                )
        for name in ("lr", "lr_decay", "init_std"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise InvalidInputError(
                    f"{name} should be positive and finite, got {getattr(self, name)!r}"
                )
        for name in ("lr_min", "l2"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise InvalidInputError(
                    f"{name} should be at least 0 and finite, got {getattr(self, name)!r}"
                )
        if self.lr_decay > 1:
            raise InvalidInputError(f"lr_decay should be at most 1, got {self.lr_decay}")
        if self.sampler not in ("users", "pairs"):
            raise InvalidInputError(f"sampler should be 'users' or 'pairs', got {self.sampler!r}")

    def lr_at(self, step: int) -> float:
        """The learning rate of a step, counted from 0 on."""
        # A rate that starts below the floor is kept as it is, not raised to it.
        floor = min(self.lr_min, self.lr)
        return max(self.lr * self.lr_decay ** (step // self.lr_decay_steps), floor)


_PAPER_L2: dict[BackboneName, float] = {"lightgcn": 1e-4, "ngcf": 1e-3, "ncf": 1e-2}


def paper(backbone: BackboneName = "lightgcn") -> TrainSettings:
    """Full training as in BET's published code: Adam .03 falling to .001, x0.95 every 200 steps."""
    return TrainSettings(l2=_PAPER_L2[backbone])


def paper_fine_tuning(backbone: BackboneName = "lightgcn") -> TrainSettings:
    """A probe's fine-tune as in the paper: 10 epochs (NGCF 15), .03, x0.98 every 200 steps."""
    return TrainSettings(
        l2=_PAPER_L2[backbone],
        lr_decay=0.98,
        lr_min=0.0,
        max_epochs=15 if backbone == "ngcf" else 10,
        validate_every=10**9,
    )


def published_lightgcn() -> TrainSettings:
    """LightGCN's own settings, d 64: Adam 1e-3, batch 2048, N(0, 0.1), 1000 epochs."""
    return TrainSettings(
        batch_size=2048,
        sampler="pairs",
        lr=1e-3,
        lr_decay=1.0,
        l2=1e-4,
        init_std=0.1,
        max_epochs=1000,
        validate_every=20 * 396,
        patience=10,
    )
