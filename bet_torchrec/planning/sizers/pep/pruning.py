"""One run of pruning for several budgets: the masks at each number of surviving entries."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ..survivors import largest
from .threshold import SoftThreshold


class EnoughPruned(Exception):
    """Ends a training from within: the last target is met."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Pruned:
    """masks: {table: (R, d)}. step: after which they were met.

    met: False where training ended too early; then the largest margins are kept instead.
    """

    masks: dict[str, NDArray[np.bool_]]
    step: int
    met: bool


class Pruning:
    """Watches a ``SoftThreshold`` train, and keeps its masks at each target.

    targets: numbers of entries, each met when no more than so many survive. every: steps between
    looks.
    """

    def __init__(self, embedding: SoftThreshold, targets: Iterable[int], *, every: int) -> None:
        self.embedding, self.every = embedding, every
        self.found: dict[int, Pruned] = {}
        self._left = sorted(set(targets), reverse=True)
        self._step = 0

    def on_step(self, step: int) -> None:
        """To be called after every step; raises EnoughPruned at the last target."""
        self._step = step
        if step % self.every == 0:
            self._look(step)

    def _look(self, step: int) -> None:
        margins = self.embedding.margins()
        alive = sum(int((margin > 0).sum()) for margin in margins.values())
        while self._left and alive <= self._left[0]:
            masks = {name: (margin > 0).cpu().numpy() for name, margin in margins.items()}
            self.found[self._left.pop(0)] = Pruned(masks=masks, step=step, met=True)
        if not self._left:
            raise EnoughPruned

    def finish(self) -> dict[int, Pruned]:
        """What was found; targets that were not met keep the entries of the largest margins."""
        margins = {
            n: torch.nan_to_num(m).cpu().numpy() for n, m in self.embedding.margins().items()
        }
        for target in self._left:
            masks = largest(margins, target)
            self.found[target] = Pruned(masks=masks, step=self._step, met=False)
        return self.found
