"""What sizers share that use one precision throughout."""

from __future__ import annotations

from collections.abc import Sequence

from ...errors import InvalidInputError
from ..feasible import require_feasible
from ..fit import FitSpace
from .problem import SizingProblem


def one_precision(
    problem: SizingProblem, precision: str | None, *, mapped: Sequence[bool] | None = None
) -> tuple[str, FitSpace]:
    """The precision to use, and the space to fit in.

    Args:
        precision: None for the first that the budget allows.
        mapped: a table, whether the plan will need an id map; None as the problem has it.

    Raises:
        InvalidInputError: the budget does not allow this precision.
        InfeasibleBudgetError: nothing fits in this precision.
    """
    allowed = problem.precisions
    precision = allowed[0] if precision is None else precision
    if precision not in allowed:
        raise InvalidInputError(
            f"precision should be one that the budget allows, {', '.join(allowed)}, "
            f"got {precision!r}"
        )
    mapped = problem.mapped if mapped is None else mapped
    fixed = {table.name: (precision,) for table in problem.tables}
    require_feasible(
        problem.tables,
        problem.budget,
        problem.widths,
        precisions=fixed if len(allowed) > 1 else None,
    )
    maps = sum(
        problem.memory.id_map_cost(table.num_embeddings)
        for table, is_mapped in zip(problem.tables, mapped, strict=True)
        if is_mapped
    )
    return precision, problem.fit_space(precisions=(precision,), limit=problem.limit - maps)
