"""Id maps that turn out not to be needed, and what to do with the bytes that they would have taken.

A table whose ids are no ranks needs an id map, but not where all of its rows share one width (all
dropped, or all kept alike): then any row may lie anywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..fit import FitSpace
from ..settle import settle
from .problem import SizingProblem


def spend_unneeded_maps(
    problem: SizingProblem,
    space: FitSpace,
    boundaries: Tensor,
    precision: Sequence[int],
    *,
    mapped: Sequence[bool] | None = None,
) -> Tensor:
    """Boundaries (F, W) that fit with every id map paid, or the smallest there are, made larger.

    Tables of one width pay for no map, so the others get more; what is then left raises whole
    tables, the most looked-up rows first, or pays for a table's map after all.

    Args:
        space: that the boundaries were fitted in. precision: a table's index into its costs.
        mapped: a table, whether it needs a map when its rows differ; the problem's if None.
    """
    mapped = problem.mapped if mapped is None else mapped
    maps = [
        problem.memory.id_map_cost(table.num_embeddings) * needs
        for table, needs in zip(problem.tables, mapped, strict=True)
    ]
    if not any(maps):
        return boundaries
    spending = _Spending(problem, space, boundaries.clone(), list(precision), maps)
    spending.share()
    by_promise = sorted(
        range(len(maps)), key=lambda t: -problem.counts[t].total / problem.counts[t].rows
    )
    while sum(spending.raise_whole(t) or spending.pay_map(t) for t in by_promise):
        spending.share()
    return spending.boundaries


class _Spending:
    """Boundaries on their way; ``paid`` are the tables whose rows may differ."""

    def __init__(
        self,
        problem: SizingProblem,
        space: FitSpace,
        boundaries: Tensor,
        precision: list[int],
        maps: list[int],
    ) -> None:
        self.boundaries, self._maps = boundaries, maps
        self._limit, self._space = min(problem.limit, space.limit + sum(maps)), space
        self._steps = space.steps(torch.tensor([precision]))
        self.paid = {t for t, cost in enumerate(maps) if not cost or not self._of_one_width(t)}

    def _of_one_width(self, t: int) -> bool:
        return set(self.boundaries[t].tolist()) <= {0, int(self._space.rows[t])}

    def _row_limit(self) -> int:
        return self._limit - sum(self._maps[t] for t in self.paid)

    def _rest(self) -> int:
        return self._row_limit() - int(self._steps.cost(self.boundaries[None])[0])

    def share(self) -> None:
        """Give what is left to the rows of tables that pay for a map, or need none."""
        while True:
            allowed = self._steps.allowed.clone()
            allowed[0, [t for t in range(len(self._maps)) if t not in self.paid]] = False
            steps = replace(self._steps, allowed=allowed, alike=False)
            self.boundaries = settle(self.boundaries[None], steps, self._row_limit())[0]
            idle = {t for t in self.paid if self._maps[t] and self._of_one_width(t)}
            if not idle:
                return
            self.paid -= idle

    def raise_whole(self, t: int) -> bool:
        """All rows of a table of one width to the next width, if that fits."""
        if t in self.paid:
            return False
        allowed = self._steps.allowed[0, t]
        level = int((self.boundaries[t] > 0).sum()) - 1
        if level + 1 >= int(allowed.sum()):
            return False
        before, rest = self.boundaries[t].clone(), self._rest()
        cost = int(self._steps.cost(self.boundaries[None])[0])
        self.boundaries[t, level + 1] = self._space.rows[t]
        if int(self._steps.cost(self.boundaries[None])[0]) - cost <= rest:
            return True
        self.boundaries[t] = before
        return False

    def pay_map(self, t: int) -> bool:
        """A map for a table of one width, if that and a row's step fit."""
        if t in self.paid:
            return False
        level = int((self.boundaries[t] > 0).sum()) - 1
        if level + 1 >= int(self._steps.allowed[0, t].sum()) or int(self._space.rows[t]) == 1:
            return False
        raised = self.boundaries.clone()
        raised[t, level + 1] = 1
        step = int(self._steps.cost(raised[None])[0] - self._steps.cost(self.boundaries[None])[0])
        if step + self._maps[t] > self._rest():
            return False
        self.paid.add(t)
        return True
