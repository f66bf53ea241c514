"""How to train: one frozen object."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..errors import InvalidInputError


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """The optimizer's schedule and when training ends; the defaults are BET's published ones."""

    lr: float = 0.03
    """The learning rate at the start."""
    lr_decay: float = 0.95
    """Its factor every ``lr_decay_steps`` steps."""
    lr_decay_steps: int = 200
    lr_min: float = 0.001
    """The rate falls no lower than this."""
    init_std: float = 0.01
    """Standard deviation of the tables' initial entries."""
    max_epochs: int = 1000
    validate_every: int | None = 2000
    """Steps between validations, None for an epoch; the best state by validation is kept."""
    patience: int = 3
    """Validations without a better quality before training stops."""

    def __post_init__(self) -> None:
        for name in ("lr_decay_steps", "max_epochs", "validate_every", "patience"):
            value = getattr(self, name)
            if value is None and name == "validate_every":
                continue
            if not isinstance(value, int) or value < 1:
                raise InvalidInputError(f"{name} should be an int of at least 1, got {value!r}")
        for name in ("lr", "lr_decay", "init_std"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise InvalidInputError(
                    f"{name} should be positive and finite, got {getattr(self, name)!r}"
                )
        if not (math.isfinite(self.lr_min) and self.lr_min >= 0):
            raise InvalidInputError(f"lr_min should be at least 0 and finite, got {self.lr_min!r}")
        if self.lr_decay > 1:
            raise InvalidInputError(f"lr_decay should be at most 1, got {self.lr_decay}")

    def lr_at(self, step: int) -> float:
        """The learning rate of a step, counted from 0 on."""
        # A rate that starts below the floor is kept as it is, not raised to it.
        floor = min(self.lr_min, self.lr)
        return max(self.lr * self.lr_decay ** (step // self.lr_decay_steps), floor)
