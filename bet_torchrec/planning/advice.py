"""Widths that suit a budget, and what to say where a setting wastes it."""

from __future__ import annotations

from collections.abc import Sequence

from .budget import Budget, MemoryModel
from .tables import TableSpec

DEFAULT_WIDTHS = (4, 8, 16, 32, 64, 128)
NARROW = (0, 1, 2)  # what small budgets need beside them: drop rows, or keep very little of each
MANY_MAPS = 0.1  # of a budget


def mean_width(tables: Sequence[TableSpec], budget: Budget) -> int:
    """The widest that all rows could be at once, in the cheapest precision, ids being ranks."""
    model, limit = MemoryModel.for_budget(budget), budget.limit(tables)

    def fits(width: int) -> bool:
        return any(
            limit
            >= sum(
                model.bucket_cost(own, table.num_embeddings, precision)
                + model.basis_cost(table.basis, own, table.embedding_dim)
                for table in tables
                for own in [min(width, table.embedding_dim)]
            )
            for precision in budget.dtypes
        )

    low, high = 0, max(table.embedding_dim for table in tables)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def widths_for(tables: Sequence[TableSpec], budget: Budget) -> tuple[int, ...]:
    """4, 8, ... 128 up to the widest table's own; with 0, 1 and 2 where the budget is small.

    Small is less than twice the smallest width a row, on average. Starting at 4 cost .021 AUC
    there (DeepFM, 9 tables, 1/64 of the parameters).
    """
    widest = max(table.embedding_dim for table in tables)
    wide = {width for width in DEFAULT_WIDTHS if width < widest} | {widest}
    small = mean_width(tables, budget) < 2 * DEFAULT_WIDTHS[0]
    narrowest = min(table.embedding_dim for table in tables)
    if small or narrowest < DEFAULT_WIDTHS[0]:
        wide |= {width for width in NARROW if width <= widest}
    return tuple(sorted(wide))


def advice(
    tables: Sequence[TableSpec], budget: Budget, widths: Sequence[int], id_maps: int
) -> list[str]:
    """What a planner should say before it plans, a sentence each.

    Args:
        id_maps: what the maps of ids that are no ranks would cost.
    """
    said = []
    mean, least = mean_width(tables, budget), min(width for width in widths if width > 0)
    missing = [width for width in NARROW if width < least and width not in widths]
    if mean < 2 * least and missing:
        said.append(
            f"the budget pays for about {mean} entries a row, and the smallest width is {least}: "
            f"allow {', '.join(map(str, missing))} too (widths='auto' does). Widths that 4 does "
            "not divide are not for FBGEMM's fused kernels."
        )
    if id_maps > MANY_MAPS * (limit := budget.limit(tables)):
        said.append(
            f"id maps take up to {id_maps} of {limit} {budget.cost_unit}: relabel ids by rank "
            "(Relabelling) and give the counts in rank order, and there are none."
        )
    return said
