"""Plans of methods that learn a size a row: scaled to a budget, or as they are.

Most published methods have no budget of their own: what they end at is what it is. Asked for that
(budgeted=False), they answer it, or an error that says what it takes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from numpy.typing import NDArray

from ..plan import SizePlan
from .fixed_precision import one_precision
from .forms import infeasible
from .problem import SizingProblem
from .survivors import boundaries_at, by_wish, sizes_plan


def plan_of_wishes(
    problem: SizingProblem,
    wanted: Mapping[str, NDArray[Any]],
    sizer: str,
    *,
    budgeted: bool,
    precision: str | None = None,
    metadata: Mapping[str, str] | None = None,
) -> SizePlan:
    """``sizes_plan`` where budgeted; else the wishes themselves, rounded down to allowed widths.

    Args:
        wanted: {table: (R,) sizes in id order}.

    Raises:
        InfeasibleBudgetError: nothing fits; or, not budgeted, the wishes don't.
    """
    if budgeted:
        return sizes_plan(problem, wanted, sizer, precision=precision, metadata=metadata)
    orders, falling = by_wish(problem, wanted)
    precision, space = one_precision(problem, precision, mapped=(False,) * len(problem.tables))
    boundaries = boundaries_at(problem, space, falling, 1.0)
    steps = space.steps(torch.zeros(1, len(problem.tables), dtype=torch.int64))
    cost = int(steps.cost(boundaries[None])[0])
    for table, order, own in zip(problem.tables, orders, boundaries, strict=True):
        of_one_width = {0, table.num_embeddings} >= set(own.tolist())
        if order is not None and not of_one_width:
            cost += problem.memory.id_map_cost(table.num_embeddings)
    if cost > problem.limit:
        advice = "it is asked for the sizes that it ends at: give more, or take budgeted=True"
        raise infeasible(problem, sizer, cost, advice)
    precisions = (precision,) * len(problem.tables)
    return problem.plan(boundaries, precisions, sizer, metadata, orders=orders)
