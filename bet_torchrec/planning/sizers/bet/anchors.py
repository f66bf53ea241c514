"""Anchors: the plans that any engineer would try, tried before and between what a search draws.

Equal sizes come first, once a precision and exactly as ``EqualSizes`` gives them. Then, in turns:
the small tables at full width and the rest by a power of the counts, or equal; sizes by
count^alpha; and the large tables left out, ever more of them, those first whose zeros cost the full
model least (without a full model one at a time, those first that cost most a lookup; with few
tables, nearly all of the budget for each subset).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, zip_longest
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ..equal_sizes import equal_boundaries
from ..problem import SizingProblem
from .importance import quality_lost
from .sampler import Candidates, Sampler

AnchorKind = Literal["anchor", "small", "count", "subset"]

FEW_TABLES = 4  # one can do another's work (a graph model's items); subsets of many are too many
STEEP = (0.5, 1.0)  # powers of the counts beside small tables at full width
ALPHAS = (0.25, 0.5)
# How many anchors beside equal sizes come in a row, and every how many iterations afterwards; with
# many tables what is drawn is better than most of them.
PACE = {False: (4, 3), True: (3, 5)}
WORTH = 0.05  # of all rows: a table with fewer frees too little by being left out
SMALL = 0.1  # of the budget: what the small tables at full width may take together


class Anchors:
    """Of a problem, by number: the first ``equal`` are equal sizes, one a precision."""

    def __init__(self, problem: SizingProblem, sampler: Sampler, precisions: Sequence[str]) -> None:
        self._problem, self._sampler, self._precisions = problem, sampler, precisions
        self.equal = len(precisions)
        shapes: list[tuple[AnchorKind, object]] = [("small", alpha) for alpha in (*STEEP, None)]
        shapes += [("count", alpha) for alpha in ALPHAS]
        subsets: list[tuple[AnchorKind, object]] = [("subset", s) for s in self._subsets()]
        many = len(problem.tables) > FEW_TABLES
        turns = zip_longest(shapes, subsets) if many else zip_longest(subsets, shapes)
        self._others = [anchor for turn in turns for anchor in turn if anchor is not None]

    def __len__(self) -> int:
        return self.equal + len(self._others)

    def due(self, iteration: int) -> int | None:
        """The number of the anchor whose turn it is, or None.

        After equal sizes and the first few, anchors leave the search most iterations.
        """
        first, every = PACE[len(self._problem.tables) > FEW_TABLES]
        straight = self.equal + first
        number = iteration
        if iteration >= straight:
            since = iteration - straight
            if (since + 1) % every:
                return None
            number = straight + since // every
        return number if number < len(self) else None

    def kind(self, number: int) -> AnchorKind:
        """What it is, for the history."""
        return "anchor" if number < self.equal else self._others[number - self.equal][0]

    def candidate(self, number: int, precision: int) -> Candidates:
        """An anchor as one candidate, in this precision unless it has its own.

        Its budget is spent: of those without some tables, by the others as far as they can.
        """
        if number < self.equal:
            boundaries = equal_boundaries(self._problem, self._precisions[number])
            return self._sampler.flat(boundaries[None], number)
        kind, what = self._others[number - self.equal]
        if kind == "subset":
            assert isinstance(what, tuple)
            boundaries = equal_boundaries(self._problem, self._precisions[precision], what)
            return self._sampler.flat(boundaries[None], precision)
        return self._sampler.settled(self._shape(kind, what, precision))

    def _shape(self, kind: AnchorKind, what: object, precision: int) -> Candidates:
        if kind == "count":
            assert isinstance(what, float)
            return self._sampler.by_count(what, precision)
        shares = self._small_first(precision)
        if what is None:
            return self._sampler.shaped(shares, precision)
        assert isinstance(what, float)
        return self._sampler.shaped(shares, precision, family="count_power", beta=what)

    def _subsets(self) -> list[tuple[int, ...]]:
        """Few tables: every subset. Many: without ever more of the large ones, or all but one."""
        tables = len(self._problem.tables)
        if tables <= FEW_TABLES:
            return [s for size in range(1, tables) for s in combinations(range(tables), size)]
        counts = self._problem.counts
        rows = sum(c.rows for c in counts)
        large = [t for t, c in enumerate(counts) if c.rows >= WORTH * rows]
        if self._problem.workbench is None:
            dear = sorted(large, key=lambda t: -counts[t].rows / max(counts[t].total, 1))
            left = [{t} for t in dear]
        else:
            cheap = [large[i] for i in quality_lost(self._problem, large).argsort(kind="stable")]
            left = [set(cheap[:n]) for n in range(1, len(cheap))]
        return [tuple(t for t in range(tables) if t not in out) for out in left]

    def _small_first(self, precision: int) -> Tensor:
        """Full width for the tables with the fewest rows, as many as take a tenth of the budget."""
        space = self._sampler.space
        full = self._sampler.full_costs(precision).numpy()
        order = np.argsort(full, kind="stable")
        small = order[np.cumsum(full[order]) <= SMALL * space.limit]
        shares = space.rows.to(torch.float64).clone()
        rest = np.setdiff1d(order, small)
        if len(rest):
            shares[rest] *= max(space.limit - full[small].sum(), 1) / shares[rest].sum()
        shares[small] = torch.from_numpy(full[small]).double() * 2  # more than it can use
        return shares
