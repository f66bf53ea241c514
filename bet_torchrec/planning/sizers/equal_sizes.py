"""ES: every row the same size, and what is left to the most frequent rows."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from ..fit import FitSpace
from ..plan import SizePlan
from ..settle import Steps, settle
from .fixed_precision import one_precision
from .id_maps import spend_unneeded_maps
from .problem import SizingProblem


@dataclass(frozen=True, kw_only=True)
class EqualSizes:
    """The largest width that all rows can have, then one step more for the most frequent rows.

    Frequent is by count, over all tables alike. A table that is too narrow for the width has all
    rows at its own widest. Needs no evaluation.

    precision: of all tables; None takes the first that the budget allows.
    """

    precision: str | None = None

    def __call__(self, problem: SizingProblem) -> SizePlan:
        """The plan: deterministic, within one step of one row of the budget.

        Raises:
            InvalidInputError: the budget does not allow this precision.
            InfeasibleBudgetError: nothing fits in this precision.
        """
        precision, _ = one_precision(problem, self.precision)
        boundaries = equal_boundaries(problem, precision)
        return problem.plan(boundaries, (precision,) * len(problem.tables), "es")


def equal_boundaries(
    problem: SizingProblem, precision: str, kept: Collection[int] | None = None
) -> torch.Tensor:
    """(F, W) rows of at least each width in ``EqualSizes``'s plan; raises as that does.

    kept: the tables that share the budget, all unless given; the others stay at the smallest width,
    whatever is left over.
    """
    _, space = one_precision(problem, precision)
    if kept is not None:
        out = [t not in kept for t in range(len(problem.tables))]
        space = replace(space, depth=space.depth.masked_fill(torch.tensor(out), 1))
    every = [0] * len(problem.tables)
    steps = space.steps(torch.tensor([every]))
    level = _largest_level(space, steps, problem.limit)
    boundaries = _at_level(space, level)
    if int(steps.cost(boundaries[None])[0]) <= space.limit:  # and the id maps, if rows differ
        if level + 1 < len(space.widths):
            boundaries = _raise_frequent(problem, space, steps, boundaries, level + 1)
        # rounding, and steps that alignment makes free, leave a last few bytes to give out
        boundaries = settle(boundaries[None], steps, space.limit)[0]
    return spend_unneeded_maps(problem, space, boundaries, every)


def _at_level(space: FitSpace, level: int) -> torch.Tensor:
    """(F, W) boundaries with all rows at widths[level], or their table's widest."""
    index = torch.arange(len(space.widths))
    reached = (index <= level) & (index < space.depth[:, None])
    return torch.where(reached, space.rows[:, None], 0)


def _largest_level(space: FitSpace, steps: Steps, limit: int) -> int:
    """The largest index of a width that all rows can have at once, without any id map."""
    low, high = 0, len(space.widths) - 1
    while low < high:
        middle = (low + high + 1) // 2
        fits = int(steps.cost(_at_level(space, middle)[None])[0]) <= limit
        low, high = (middle, high) if fits else (low, middle - 1)
    return low


def _raise_frequent(
    problem: SizingProblem, space: FitSpace, steps: Steps, boundaries: torch.Tensor, level: int
) -> torch.Tensor:
    """As many of the most frequent rows, over all tables, as fit go up to widths[level]."""
    tables = [t for t in range(len(problem.tables)) if level < int(space.depth[t])]
    if not tables:
        return boundaries
    values = np.concatenate([problem.counts[t].values for t in tables])
    rows = np.concatenate([problem.counts[t].multiplicity for t in tables])
    owner = np.concatenate([np.full(len(problem.counts[t].values), t) for t in tables])
    falling = np.argsort(-values, kind="stable")  # ties: the table that comes first
    rows, owner = rows[falling], owner[falling]
    ends = np.cumsum(rows)

    def raised(n: int) -> torch.Tensor:
        """Boundaries with the n most frequent rows one step up."""
        result = boundaries.clone()
        for t, rows_up in enumerate(_rows_among(n, rows, ends, owner, len(problem.tables))):
            if rows_up:
                result[t, level] = rows_up
        return result

    low, high = 0, int(ends[-1])
    while low < high:
        middle = (low + high + 1) // 2
        fits = int(steps.cost(raised(middle)[None])[0]) <= space.limit
        low, high = (middle, high) if fits else (low, middle - 1)
    return raised(low)


def _rows_among(
    n: int,
    rows: NDArray[np.int64],
    ends: NDArray[np.int64],
    owner: NDArray[np.int64],
    tables: int,
) -> list[int]:
    """How many of the first n rows, in groups of one count and table, each table has."""
    taken = np.clip(n - (ends - rows), 0, rows)
    return [int(taken[owner == t].sum()) for t in range(tables)]
