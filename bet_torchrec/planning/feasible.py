"""Whether a budget can be met at all; if not, the error that says what would help."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from ..errors import InfeasibleBudgetError, InvalidInputError
from .budget import Budget, MemoryModel
from .tables import Table, TableSpec


def allowed_widths(table: Table, widths: Iterable[int]) -> tuple[int, ...]:
    """The widths this table may use, ascending: those up to its embedding_dim.

    Raises:
        InvalidInputError: not one of them, apart from 0, is small enough.
    """
    allowed = tuple(sorted({int(w) for w in widths if w <= table.embedding_dim}))
    if not allowed or allowed[-1] < 1 or allowed[0] < 0:
        raise InvalidInputError(
            f"table {table.name!r}: widths should hold at least one from 1 to its embedding_dim "
            f"{table.embedding_dim} (and none below 0), got {tuple(widths)}"
        )
    return allowed


def smallest_cost(
    tables: Sequence[Table],
    budget: Budget,
    widths: Sequence[int],
    *,
    precisions: Mapping[str, Iterable[str]] | None = None,
) -> int:
    """What the smallest plan costs: every row at its smallest width and cheapest precision.

    A table's basis has as many axes then. No id map is among it: rows of one width need none.

    Args:
        precisions: by table, where it is not all of the budget's.
    """
    model, total = MemoryModel.for_budget(budget), 0
    for table in tables:
        width, rows = allowed_widths(table, widths)[0], table.num_embeddings
        choice = budget.dtypes if precisions is None else precisions[table.name]
        total += min(model.bucket_cost(width, rows, precision) for precision in choice)
        total += _basis_cost(model, table, width)
    return total


def require_feasible(
    tables: Sequence[Table],
    budget: Budget,
    widths: Sequence[int],
    *,
    precisions: Mapping[str, Iterable[str]] | None = None,
) -> None:
    """Raise InfeasibleBudgetError unless the smallest plan fits."""
    limit = budget.limit(tables)
    smallest = smallest_cost(tables, budget, widths, precisions=precisions)
    if smallest <= limit:
        return
    unit = budget.cost_unit

    def cost(**changes: object) -> int:
        """Of the smallest plan with something changed."""
        asked: dict[str, object] = {
            "budget": budget, "widths": widths, "precisions": precisions
        }  # fmt: skip
        return smallest_cost(tables, **{**asked, **changes})  # type: ignore[arg-type]

    as_sparsity = _as_sparsity(budget, tables, smallest)
    options = [f"raise the budget to {smallest} {unit} or more{as_sparsity}"]
    narrowest = min(widths)
    if narrowest > 1:
        options.append(f"allow width 1: needs {cost(widths=(1, *widths))}")
    if narrowest > 0:
        options.append(f"allow width 0, rows that read as zeros: needs {cost(widths=(0, *widths))}")
    if budget.purpose == "inference":
        if budget.alignment > 1:
            needed = cost(budget=replace(budget, alignment=1))
            options.append(f"align rows to 1 byte (alignment=1, on CPU): needs {needed}")
        if "int2" not in budget.dtypes or precisions is not None:
            needed = cost(budget=replace(budget, dtypes=("int2",)), precisions=None)
            options.append(f"allow precision int2: needs {needed}")
    if budget.purpose == "training":
        if budget.dtypes != ("fp16",):
            needed = cost(budget=replace(budget, dtypes=("fp16",)), precisions=None)
            options.append(f"train in fp16: needs {needed}")
        if budget.optimizer not in ("sgd", "rowwise_adagrad"):
            needed = cost(budget=replace(budget, optimizer="rowwise_adagrad"))
            options.append(f"train with rowwise_adagrad: needs {needed}")
    if any(TableSpec.of(table).basis is not None for table in tables):
        plain = [replace(TableSpec.of(table), basis=None) for table in tables]
        needed = smallest_cost(plain, budget, widths, precisions=precisions)
        options.append(f"keep no bases (basis=None): needs {needed}")
    useful = options[:1] + [o for o in options[1:] if int(o.rsplit(" ", 1)[1]) < smallest]
    numbered = "\n".join(f"  {i}. {option}" for i, option in enumerate(useful, 1))
    raise InfeasibleBudgetError(
        f"no plan fits the budget of {limit} {unit} ({budget.describe()}): the smallest possible "
        f"one for {len(tables)} table(s) with {sum(t.num_embeddings for t in tables)} rows is "
        f"{smallest} {unit}, every row {narrowest} wide.\nPossible solutions:\n{numbered}",
        smallest=smallest,
        limit=limit,
        unit=unit,
    )


def require_useful(
    parameters: int,
    tables: Sequence[Table],
    mapped: Sequence[bool],
    budget: Budget,
    widths: Sequence[int],
) -> None:
    """Raise InfeasibleBudgetError for a plan that keeps no weight at all.

    Args:
        parameters: that it keeps. mapped: a table, whether its ids are no ranks.
    """
    if parameters:
        return
    model, least, ranked = MemoryModel.for_budget(budget), [], []
    for table, is_mapped in zip(tables, mapped, strict=True):
        width = next(w for w in allowed_widths(table, widths) if w > 0)
        for precision in budget.dtypes:
            rows, basis = table.num_embeddings, _basis_cost(model, table, width)
            one = model.bucket_cost(width, 1, precision) + basis
            ranked.append(one)
            least.append(one + model.id_map_cost(rows) * (is_mapped and rows > 1))
            least.append(model.bucket_cost(width, rows, precision) + basis)
    smallest, limit, unit = min(least), budget.limit(tables), budget.cost_unit
    options = [f"raise the budget; the first row is kept at {smallest} {unit}"]
    if min(ranked) < smallest:
        options.append(
            "relabel ids by rank (Relabelling), which needs no id maps: then the first row is kept "
            f"at {min(ranked)} {unit}"
        )
    numbered = "\n".join(f"  {i}. {option}" for i, option in enumerate(options, 1))
    raise InfeasibleBudgetError(
        f"the plan keeps nothing: within {limit} {unit} ({budget.describe()}) every row of every "
        f"table is dropped.\nPossible solutions:\n{numbered}",
        smallest=smallest,
        limit=limit,
        unit=unit,
    )


def _basis_cost(model: MemoryModel, table: Table, width: int) -> int:
    return model.basis_cost(TableSpec.of(table).basis, width, table.embedding_dim)


def _as_sparsity(budget: Budget, tables: Sequence[Table], smallest: int) -> str:
    if budget.unit != "sparsity":
        return ""
    full = sum(table.num_embeddings * table.embedding_dim for table in tables)
    if smallest >= full:
        return " (the full tables' size: sparsity 0)" if smallest == full else ""
    return f" (a sparsity of {int(1e4 * (1 - smallest / full)) / 1e4:g} or less)"
