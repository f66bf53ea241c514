"""Probes: brief trainings of plans from the full tables' rows, given up where hopeless."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import InvalidInputError
from ..outcome import Outcome
from .trained import Sizes, Trained, as_served

if TYPE_CHECKING:
    from .workbench import TrainingWorkbench


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
        self,
        also: Callable[[int], None] | None = None,
        *,
        steps: int,
        floor: float,
        quality: Callable[[], float],
    ) -> Callable[[int], None]:
        """What ``fit`` calls after every step of a probe of ``steps`` steps, before ``also``.

        It raises ``Hopeless`` at the step of the check, if the check fails there.
        """
        at = max(1, round(self.after * steps))

        def check(step: int) -> None:
            if step == at and (found := quality()) < self.margin * floor:
                raise Hopeless(found)
            if also is not None:
                also(step)

        return check


class Hopeless(Exception):
    """Raised inside a training that is given up; quality: what it had then."""

    def __init__(self, quality: float) -> None:
        self.quality = quality


def probed(
    bench: TrainingWorkbench, plan: Sizes, *, epochs: int, floor: float | None = None
) -> Trained:
    """A plan's model after a probe; see ``TrainingWorkbench.fine_tuned``."""
    warm, embedding, precisions = bench.full_model.cut(plan)
    if epochs == 0:
        quality = bench.task.validate(warm.model, as_served(embedding, precisions))
        return Trained(
            task=bench.task,
            model=bench.full_model.copy(),
            embedding=embedding,
            outcome=Outcome.untrained(quality),
            precisions=precisions,
        )
    settings = dataclasses.replace(bench.fine_tuning, max_epochs=epochs)
    if bench.foresight:
        half = max(1, math.ceil(epochs * bench.task.steps_per_epoch / 2))
        settings = dataclasses.replace(settings, validate_every=half, patience=2)
    return bench.fit(
        embedding,
        settings=settings,
        warm=warm,
        seed=bench.seed + 1,
        floor=floor,
        precisions=precisions,
    )


def foreseen(outcome: Outcome, foresight: float) -> Outcome:
    """A probe's outcome with a part added of what its second half gained."""
    if not (foresight and outcome.ok and len(outcome.history) > 1):
        return outcome
    (_, half), (_, end) = outcome.history
    quality = outcome.quality + foresight * max(end - half, 0.0)
    return dataclasses.replace(outcome, quality=quality)
