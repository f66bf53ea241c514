"""One table's part of a plan: its buckets in rank order, and which id has which rank."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InvalidInputError, PlanError
from .budget import PRECISIONS, MemoryModel
from .counts import RowCounts, check_order
from .tables import BasisKind, Table, TableSpec


@dataclass(frozen=True)
class Bucket:
    """All rows of one table that share a width: a contiguous range of ranks, one real table.

    Width 0 holds the dropped rows, which read as zeros and are stored nowhere.
    """

    width: int
    rows: int
    precision: str = "fp32"

    def __post_init__(self) -> None:
        object.__setattr__(self, "width", int(self.width))
        object.__setattr__(self, "rows", int(self.rows))
        if self.width < 0 or self.rows < 1 or self.precision not in PRECISIONS:
            raise PlanError(
                "a bucket should have a width of 0 or more, at least one row (leave empty buckets "
                f"out) and a precision of {', '.join(PRECISIONS)}, got {self}"
            )


@dataclass(frozen=True, eq=False)
class TablePlan:
    """The sizes of one table's rows.

    buckets: in rank order, widths strictly falling, rows adding up to ``rows``.
    order: int32 (rows,), order[rank] = id; None where ids are ranks or all rows share one width.
    counts_fingerprint: of the counts that it was planned for, "" if unknown.
    basis: None where sizes count a row's own columns; "fixed" or "trained" where they count
        coordinates in axes of the table's own: row = coordinates[:size] @ axes[:size].
    """

    name: str
    rows: int
    embedding_dim: int
    buckets: tuple[Bucket, ...]
    order: NDArray[np.int32] | None = None
    counts_fingerprint: str = ""
    basis: BasisKind | None = None

    def __post_init__(self) -> None:
        spec = TableSpec(self.name, self.rows, self.embedding_dim, self.basis)
        object.__setattr__(self, "rows", spec.num_embeddings)
        object.__setattr__(self, "embedding_dim", spec.embedding_dim)
        object.__setattr__(self, "buckets", tuple(self.buckets))
        widths = self.widths
        if any(a <= b for a, b in pairwise(widths)):
            raise PlanError(f"table {self.name!r}: widths should fall strictly, got {widths}")
        if widths and widths[0] > self.embedding_dim:
            raise PlanError(
                f"table {self.name!r}: no width should exceed embedding_dim {self.embedding_dim}, "
                f"got {widths[0]}"
            )
        if (planned := sum(bucket.rows for bucket in self.buckets)) != self.rows:
            raise PlanError(
                f"table {self.name!r}: buckets should hold all {self.rows} rows, got {planned}"
            )
        if self.order is not None:
            order = np.array(self.order, dtype=np.int32)
            try:
                check_order(order, self.rows)
            except InvalidInputError as error:
                raise PlanError(f"table {self.name!r}: {error}") from None
            order.setflags(write=False)
            # rows of one width may lie anywhere: no map is needed
            object.__setattr__(self, "order", order if len(self.buckets) > 1 else None)

    @classmethod
    def from_sizes(
        cls, table: Table, sizes: Any, counts: RowCounts | None = None, *, precision: str = "fp32"
    ) -> TablePlan:
        """From one size a row, in id order; by hand, without counts, too.

        Sizes that fall with the counts' rank keep the counts' order. Any others get an order of
        their own, by size and then by rank, so that every bucket is a contiguous range again.
        """
        spec = TableSpec.of(table)
        by_id = np.asarray(sizes)
        if by_id.shape != (spec.num_embeddings,) or by_id.dtype.kind not in "iu":
            raise InvalidInputError(
                f"table {spec.name!r}: sizes should be {spec.num_embeddings} integers, one a row, "
                f"got {by_id.dtype} of shape {by_id.shape}"
            )
        if counts is not None and counts.rows != spec.num_embeddings:
            raise InvalidInputError(
                f"table {spec.name!r}: counts should cover {spec.num_embeddings} rows, "
                f"got {counts.rows}"
            )
        by_id = by_id.astype(np.int64)
        order = None if counts is None else counts.order
        by_rank = by_id if order is None else by_id[order]
        if (by_rank[1:] > by_rank[:-1]).any():
            sorting = np.argsort(-by_rank, kind="stable")
            by_rank = by_rank[sorting]
            order = sorting.astype(np.int32) if order is None else order[sorting]
        widths, rows = np.unique(by_rank, return_counts=True)
        falling = zip(widths[::-1].tolist(), rows[::-1].tolist(), strict=True)
        return cls(
            name=spec.name,
            rows=spec.num_embeddings,
            embedding_dim=spec.embedding_dim,
            buckets=tuple(Bucket(width, n, precision) for width, n in falling),
            order=order,
            counts_fingerprint="" if counts is None else counts.fingerprint(),
            basis=spec.basis,
        )

    @property
    def num_embeddings(self) -> int:
        """The same as ``rows``: a table's plan is a Table too."""
        return self.rows

    @property
    def widths(self) -> tuple[int, ...]:
        """The widths of the buckets, strictly falling."""
        return tuple(bucket.width for bucket in self.buckets)

    @property
    def ends(self) -> NDArray[np.int64]:
        """int64, one a bucket: the first rank after it. ``searchsorted(ends, rank, "right")``."""
        return np.cumsum([bucket.rows for bucket in self.buckets], dtype=np.int64)

    @property
    def axes(self) -> int:
        """The axes of its basis: as many as its widest row has coordinates; 0 without a basis."""
        return 0 if self.basis is None else max(self.widths)

    @property
    def read_width(self) -> int:
        """Columns of a read that may be other than zeros."""
        return self.embedding_dim if self.axes else max(self.widths)

    @property
    def parameters(self) -> int:
        """Weights that are kept, those of the basis among them."""
        rows = sum(bucket.width * bucket.rows for bucket in self.buckets)
        return rows + self.axes * self.embedding_dim

    def sizes(self) -> NDArray[np.int32]:
        """int32 (rows,): each row's size in id order. The only call with memory a row."""
        rows = [bucket.rows for bucket in self.buckets]
        by_rank = np.repeat(np.array(self.widths, dtype=np.int32), rows)
        if self.order is None:
            return by_rank
        by_id = np.empty_like(by_rank)
        by_id[self.order] = by_rank
        return by_id

    def cost(self, model: MemoryModel) -> int:
        """All that the table takes: buckets, basis and, where ids are no ranks, an id map."""
        buckets = sum(model.bucket_cost(b.width, b.rows, b.precision) for b in self.buckets)
        id_map = 0 if self.order is None else model.id_map_cost(self.rows)
        return buckets + id_map + model.basis_cost(self.basis, self.axes, self.embedding_dim)


def all_widths(tables: Iterable[TablePlan]) -> tuple[int, ...]:
    """Every width in use, ascending."""
    return tuple(sorted({width for table in tables for width in table.widths}))
