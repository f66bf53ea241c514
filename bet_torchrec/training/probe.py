"""Giving up a probe that looks hopeless."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..errors import InvalidInputError


@dataclass(frozen=True, kw_only=True)
class ProbeCheck:
    """When a probe is given up: its quality at ``after`` of its steps, over the task's "check"
    part, is under ``margin`` times the floor."""

    after: float = 0.34
    margin: float = 0.85

    def __post_init__(self) -> None:
        if not (0 < self.after < 1 and 0 < self.margin <= 1):
            raise InvalidInputError(
                f"expected 0 < after < 1 and 0 < margin <= 1, got after={self.after}, "
                f"margin={self.margin}"
            )

    def on_step(
        self, *, steps: int, floor: float, quality: Callable[[], float]
    ) -> Callable[[int], None]:
        """What ``fit`` calls after every step of a probe of ``steps`` steps.

        It raises ``Hopeless`` at the step of the check, if the check fails there.
        """
        at = max(1, round(self.after * steps))

        def check(step: int) -> None:
            if step == at and (found := quality()) < self.margin * floor:
                raise Hopeless(found)

        return check


class Hopeless(Exception):
    """Raised inside a training that is given up; quality: what it had then."""

    def __init__(self, quality: float) -> None:
        self.quality = quality
