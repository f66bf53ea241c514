"""What came of a training: a quality, and whether it means anything."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "pruned", "diverged"]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """quality: on validation, of the weights that were kept; higher is better, NaN if diverged.

    state: "ok"; "pruned" where it was given up early, so that quality is what it had then; or
        "diverged" where the loss or the quality left the finite numbers. Only "ok" can be compared.
    steps, best_step: how far training went, and the steps behind the kept weights.
    epochs: steps in passes over the training data. seconds: of training and validation, over all
    resumed parts. history: (step, quality) pairs. stopped: by "epochs" or "patience".
    """

    quality: float
    state: State = "ok"
    steps: int = 0
    best_step: int = 0
    epochs: float = 0.0
    seconds: float = 0.0
    history: tuple[tuple[int, float], ...] = ()
    stopped: str = "epochs"

    @property
    def ok(self) -> bool:
        """Whether the quality can be compared with others."""
        return self.state == "ok"

    @classmethod
    def untrained(cls, quality: float) -> Outcome:
        """Of weights as they are, without a step."""
        return cls(quality=quality, history=((0, quality),))

    @classmethod
    def diverged(cls) -> Outcome:
        """Of a training that left the finite numbers."""
        return cls(quality=math.nan, state="diverged")
