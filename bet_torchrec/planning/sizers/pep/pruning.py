"""One run of pruning for several budgets: the masks at each number of surviving entries."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..survivors import largest
from .threshold import SoftThreshold


class EnoughPruned(Exception):
    """Ends a training from within: the last target is met."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Pruned:
    """masks: {table: (R, d)}. step: after which they were met.

    met: False where training ended too early; then the largest scores are kept instead.
    """

    masks: dict[str, NDArray[np.bool_]]
    step: int
    met: bool


class Pruning:
    """Watches a ``SoftThreshold`` train, and keeps its masks at each target.

    targets: numbers of entries, each met when no more than so many survive. steps: by which the
    last is met, thresholds being raised as far as it takes (``schedule``); None leaves all to what
    they learn. every: steps between looks.
    """

    def __init__(
        self,
        embedding: SoftThreshold,
        targets: Iterable[int],
        *,
        every: int,
        steps: int | None = None,
    ) -> None:
        self.embedding, self.every, self.steps = embedding, every, steps
        self.found: dict[int, Pruned] = {}
        self._left = sorted(set(targets), reverse=True)
        self._all = sum(weight.numel() for _, weight in embedding.values.items())
        self._last = self._left[-1] if self._left else 0
        self._step = 0

    def on_step(self, step: int) -> None:
        """To be called after every step; raises EnoughPruned at the last target."""
        self._step = step
        if step % self.every == 0 or step == self.steps:
            self._look(step)

    def _look(self, step: int) -> None:
        if self.steps is not None:
            self.embedding.tighten(schedule(step, self.steps, self._all, self._last))
        masks = self.embedding.masks()
        alive = sum(int(mask.sum()) for mask in masks.values())
        while self._left and alive <= self._left[0]:
            kept = {name: mask.cpu().numpy() for name, mask in masks.items()}
            self.found[self._left.pop(0)] = Pruned(masks=kept, step=step, met=True)
        if not self._left:
            raise EnoughPruned

    def finish(self) -> dict[int, Pruned]:
        """What was found; targets that were not met keep the entries of the largest scores."""
        scores = {name: score.cpu().numpy() for name, score in self.embedding.scores().items()}
        lowest = {name: np.nan_to_num(score, nan=-np.inf) for name, score in scores.items()}
        for target in self._left:
            self.found[target] = Pruned(masks=largest(lowest, target), step=self._step, met=False)
        return self.found


def schedule(step: int, steps: int, start: int, end: int) -> int:
    """How many of ``start`` entries may survive a step: ``end`` from step ``steps`` on.

    Cubic (Zhu and Gupta, 2017): fast while there is much that is of no use, slow where each entry
    counts.
    """
    left = max(0.0, 1 - step / steps)
    return end + int((start - end) * left**3)
