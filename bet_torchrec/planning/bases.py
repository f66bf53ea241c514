"""Which tables are kept in axes of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import get_args

from ..errors import InvalidInputError
from .budget import Budget, MemoryModel
from .tables import BasisKind, TableSpec

WORTH = 10  # times what its basis costs: a table whose rows take less is better off without


def with_bases(
    tables: Sequence[TableSpec],
    basis: BasisKind | Mapping[str, BasisKind | None] | None,
    budget: Budget,
) -> tuple[TableSpec, ...]:
    """The tables, with the bases that are asked for.

    Args:
        basis: "fixed" or "trained" for every table whose rows at full width cost at least WORTH
            times its full basis in the budget's cheapest precision: axes of a table of few rows
            would take more than they save. By name, for just these; None leaves tables as given.

    Raises:
        InvalidInputError: another word, or a name of no table.
    """
    if basis is None:
        return tuple(tables)
    words = get_args(BasisKind)
    if isinstance(basis, Mapping):
        unknown = sorted(set(basis) - {table.name for table in tables})
        if unknown:
            raise InvalidInputError(
                f"basis should be of the tables {', '.join(t.name for t in tables)}, got one of "
                f"{', '.join(map(repr, unknown))}"
            )
        return tuple(replace(t, basis=basis.get(t.name, t.basis)) for t in tables)
    if basis not in words:
        raise InvalidInputError(
            f"basis should be None, {', '.join(map(repr, words))} or one of these by table name, "
            f"got {basis!r}"
        )
    model = MemoryModel.for_budget(budget)

    def pays(table: TableSpec) -> bool:
        dim = table.embedding_dim
        rows = min(model.bucket_cost(dim, table.num_embeddings, p) for p in budget.dtypes)
        return WORTH * model.basis_cost(basis, dim, dim) <= rows

    return tuple(replace(t, basis=basis) if t.basis is None and pays(t) else t for t in tables)
