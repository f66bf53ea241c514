"""A plan as text to read."""

from __future__ import annotations

from collections.abc import Sequence

from .budget import Budget, MemoryModel
from .table_plan import TablePlan

_COLUMNS = ("table", "width", "precision", "rows", "share")


def describe_plan(
    tables: Sequence[TablePlan], budget: Budget, *, sizer: str, seed: int | None
) -> str:
    """Per table its widths with their rows, precision and cost; then the share of the budget."""
    model, unit = MemoryModel.for_budget(budget), budget.cost_unit
    lines: list[tuple[str, ...]] = [(*_COLUMNS, unit)]
    for table in tables:
        lines.append(
            (
                table.name,
                f"of {table.embedding_dim}",
                "",
                f"{table.rows:,}",
                "",
                f"{table.cost(model):,}",
            )
        )
        for b in table.buckets:
            cost = model.bucket_cost(b.width, b.rows, b.precision)
            precision = b.precision if b.width else "dropped"
            share = f"{b.rows / table.rows:.1%}"
            lines.append(("", str(b.width), precision, f"{b.rows:,}", share, f"{cost:,}"))
        if table.axes:
            cost = model.basis_cost(table.basis, table.axes, table.embedding_dim)
            axes = f"{table.axes} axes"
            lines.append(
                ("", str(table.embedding_dim), f"{table.basis} basis", axes, "", f"{cost:,}")
            )
        if table.order is not None and (cost := model.id_map_cost(table.rows)):
            lines.append(("", "", "id map", f"{table.rows:,}", "", f"{cost:,}"))
    wide = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    rows = [
        "  ".join(
            cell.ljust(wide[i]) if i in (0, 2) else cell.rjust(wide[i])
            for i, cell in enumerate(line)
        ).rstrip()
        for line in lines
    ]
    cost, limit = sum(table.cost(model) for table in tables), budget.limit(tables)
    kept = sum(table.parameters for table in tables)
    full = sum(table.rows * table.embedding_dim for table in tables)
    made = f"SizePlan by {sizer}" + ("" if seed is None else f", seed {seed}")
    narrow = sorted({b.width for table in tables for b in table.buckets if b.width % 4})
    notes = []
    if narrow:
        notes.append(
            f"note: 4 does not divide widths {_list(narrow)}, which FBGEMM's fused kernels need of "
            "sharded tables"
        )
    used = f"{cost / limit:.2%}" if limit else "100%"
    return "\n".join(
        [
            f"{made}; budget: {budget.describe()}",
            *rows,
            f"{cost:,} of {limit:,} {unit} used ({used}); "
            f"{kept:,} of {full:,} parameters kept (sparsity {1 - kept / full:.2%})",
            *notes,
        ]
    )


def _list(numbers: Sequence[int]) -> str:
    """As text, cut where it gets long."""
    shown = ", ".join(map(str, numbers[:6]))
    return f"{shown}, ..." if len(numbers) > 6 else shown
