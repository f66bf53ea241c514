"""Giving up a probe that looks hopeless."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from ..errors import InvalidInputError


@dataclass(frozen=True, kw_only=True)
class ProbeCheck:
    """When a probe is given up: its quality at ``after`` of its epochs, over every ``stride``-th
    user, is under ``margin`` times the floor."""

    after: float = 0.34
    stride: int = 6
    margin: float = 0.85

    def __post_init__(self) -> None:
        if not (0 < self.after < 1 and self.stride >= 1 and 0 < self.margin <= 1):
            raise InvalidInputError(
                "expected 0 < after < 1, stride >= 1 and 0 < margin <= 1, got "
                f"after={self.after}, stride={self.stride}, margin={self.margin}"
            )

    def on_step(
        self, *, steps: int, num_users: int, floor: float, validate: Callable[[ArrayLike], float]
    ) -> Callable[[int], None]:
        """What ``train_bpr`` calls after every step of a probe of ``steps`` steps.

        It raises ``Hopeless`` at the step of the check, if the check fails there.
        """
        at = max(1, round(self.after * steps))
        users = np.arange(0, num_users, self.stride)

        def check(step: int) -> None:
            if step == at and (quality := validate(users)) < self.margin * floor:
                raise Hopeless(quality)

        return check


class Hopeless(Exception):
    """Raised inside a probe that is given up; quality: what it had, over some of the users."""

    def __init__(self, quality: float) -> None:
        self.quality = quality
