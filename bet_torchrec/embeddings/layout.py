"""How one table's plan is laid out in real tables, called blocks.

A block is a rectangle of the full table: a range of ranks and a range of columns. "bucketed" makes
one block a width, so that each row is in exactly one; "prefix" makes one block a step between
widths, so that a row is in every block up to its size and the blocks' outputs stand side by side.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray
from torch import nn

from ..errors import InvalidInputError
from ..planning.table_plan import Bucket, TablePlan

Layout: TypeAlias = Literal["bucketed", "prefix"]
RowOrder: TypeAlias = Literal["ranked", "interleaved"]

_GOLDEN = (math.sqrt(5) - 1) / 2


@dataclass(frozen=True)
class Block:
    """Ranks [first_rank, first_rank + rows), columns [first_column, first_column + width).

    precision: what the plan says that these rows are served in.
    stride: the row of rank r is (r - first_rank) * stride % rows; 1 keeps the ranks' order.
    padding: columns of zeros that its real table has behind these, because FBGEMM's fused kernels
        take some widths only. They are never looked at.
    """

    table: str
    name: str
    first_rank: int
    rows: int
    first_column: int
    width: int
    precision: str = "fp32"
    stride: int = 1
    padding: int = 0

    @property
    def real_width(self) -> int:
        """Columns of its real table."""
        return self.width + self.padding

    @property
    def columns(self) -> slice:
        """Its columns of the full table."""
        return slice(self.first_column, self.first_column + self.width)

    def rank_of_row(self) -> NDArray[np.int64]:
        """int64 (rows,): the rank of each of its rows."""
        ranks = np.arange(self.rows, dtype=np.int64)
        if self.stride != 1:
            ranks[ranks * self.stride % self.rows] = ranks.copy()
        return ranks + self.first_rank

    def ids(self, plan: TablePlan) -> NDArray[np.int64]:
        """int64 (rows,): the id of each of its rows."""
        ranks = self.rank_of_row()
        return ranks if plan.order is None else plan.order[ranks].astype(np.int64)


def blocks(
    plan: TablePlan, layout: Layout, row_order: RowOrder = "ranked", *, width_multiple: int = 1
) -> tuple[Block, ...]:
    """One table's blocks, widest rows or first columns first; none for rows of size 0.

    A table that needs one block only has it under its own name, as TorchRec would; but not under
    names that torch's dictionaries of modules refuse.

    row_order: "interleaved" scatters neighbouring ranks over the block, so that contiguous shards
        of rows get like shares of the lookups although counts fall with the rank.
    width_multiple: real tables are padded to multiples of it.

    Raises:
        InvalidInputError: an unknown layout or row order, or precisions that differ between a
            table's buckets in the prefix layout, which cuts through them.
    """
    if layout not in get_args(Layout):
        raise InvalidInputError(f"layout should be 'bucketed' or 'prefix', got {layout!r}")
    if row_order not in get_args(RowOrder):
        raise InvalidInputError(f"row_order should be 'ranked' or 'interleaved', got {row_order!r}")
    kept = [bucket for bucket in plan.buckets if bucket.width]
    if layout == "bucketed":
        made = _bucketed(plan.name, kept, row_order)
    else:
        made = _prefix(plan.name, kept, row_order)
    if len(made) == 1 and not hasattr(nn.ModuleDict(), plan.name):  # a table called "type" has not
        made = [replace(made[0], name=plan.name)]
    return tuple(replace(block, padding=-block.width % width_multiple) for block in made)


def _bucketed(table: str, kept: Sequence[Bucket], row_order: RowOrder) -> list[Block]:
    made, first = [], 0
    for bucket in kept:
        made.append(
            Block(
                table,
                f"{table}/w{bucket.width}",
                first_rank=first,
                rows=bucket.rows,
                first_column=0,
                width=bucket.width,
                precision=bucket.precision,
                stride=_stride(bucket.rows, row_order),
            )
        )
        first += bucket.rows
    return made


def _prefix(table: str, kept: Sequence[Bucket], row_order: RowOrder) -> list[Block]:
    precisions = sorted({bucket.precision for bucket in kept})
    if len(precisions) > 1:
        raise InvalidInputError(
            f"table {table!r}: the prefix layout needs one precision a table, got "
            f"{', '.join(precisions)}; use layout='bucketed'"
        )
    made, column, rows = [], 0, sum(bucket.rows for bucket in kept)
    for bucket in reversed(kept):
        made.append(
            Block(
                table,
                f"{table}/c{column}-{bucket.width}",
                first_rank=0,
                rows=rows,
                first_column=column,
                width=bucket.width - column,
                precision=bucket.precision,
                stride=_stride(rows, row_order),
            )
        )
        column, rows = bucket.width, rows - bucket.rows
    return made


def _stride(rows: int, row_order: RowOrder) -> int:
    """Near the golden section of the rows and coprime to them: any run of ranks spreads evenly.

    How evenly is up to the largest partial quotient of stride / rows, a small one for most strides
    but not for all.
    """
    if row_order == "ranked" or rows < 3:
        return 1
    near = round(rows * _GOLDEN)
    strides = [s for s in range(near, min(near + 64, rows)) if math.gcd(s, rows) == 1]
    return min(strides, key=lambda stride: _largest_quotient(stride, rows))


def _largest_quotient(numerator: int, denominator: int) -> int:
    """Of the continued fraction of numerator / denominator, which is below 1."""
    largest = 0
    while numerator:
        quotient, rest = divmod(denominator, numerator)
        largest = max(largest, quotient)
        numerator, denominator = rest, numerator
    return largest
