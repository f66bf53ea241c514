"""Tables read for coding: chunk by chunk, in the order and the axes that they are coded in."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..axes.moments import Rows
from ..errors import InvalidInputError
from ..planning.counts import RowCounts
from ..serving.column_codes import CodedBlock, pack_codes, row_bytes
from .cells import Weighted, cells_of
from .steps import Grids, best_grids, nearest
from .turn import Turn

UNSEEN = 1e-3
"""What a row counts that training never had: something, as it is looked up by its table's error."""

_CHUNK = 1 << 14  # rows


@dataclass(frozen=True, eq=False)
class Measured:
    """Ranks [first, end) of a table with the grids of all bits.

    squares: float64 (C,), each column's weighted sum of squares. chunks: its values, anew a call.
    """

    first: int
    end: int
    chunks: Callable[[], Iterator[Weighted]]
    grids: Grids
    squares: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Source:
    """A table in the order that it is coded in.

    ids: of each place, None where they are the same. ranks: of each place, None likewise.
    """

    table: Rows
    counts: RowCounts
    turn: Turn | None
    ids: NDArray[np.int32] | None
    ranks: NDArray[np.int32] | None

    @classmethod
    def of(cls, table: Rows, counts: RowCounts, turn: Turn | None, *, by_rank: bool) -> Source:
        """In rank order, or by id: a single block has no use for ranks, and needs no id map."""
        if by_rank:
            return cls(table, counts, turn, counts.order, None)
        return cls(table, counts, turn, None, rank_of_id(counts.order))

    def measured(self, first: int, end: int) -> Measured:
        chunks = partial(self.chunks, first, end)
        cells = cells_of(chunks, end - first)
        squares = (cells.weight * cells.value**2).sum(axis=1) + cells.within
        return Measured(first, end, chunks, best_grids(cells), squares)

    def chunks(self, first: int, end: int) -> Iterator[Weighted]:
        """Values and weights of places [first, end)."""
        for start in range(first, end, _CHUNK):
            places = np.arange(start, min(start + _CHUNK, end))
            ids = places if self.ids is None else self.ids[places]
            ranks = places if self.ranks is None else self.ranks[places]
            if isinstance(self.table, torch.Tensor):
                own = torch.from_numpy(ids).to(self.table.device)
                rows = self.table.detach()[own].float().cpu()
            else:
                rows = torch.from_numpy(np.asarray(self.table[ids], dtype=np.float32))
            values = (rows if self.turn is None else self.turn.coordinates(rows)).numpy()
            if not np.isfinite(values).all():
                raise InvalidInputError(
                    f"rows should be finite numbers, got others among those at {start} to "
                    f"{places[-1]}: has training diverged?"
                )
            weights = np.maximum(self.counts.at_ranks(ranks).astype(np.float64), UNSEEN)
            yield values, weights


def encoded(block: Measured, bits: NDArray[np.uint8], dtype: Any = np.float32) -> CodedBlock:
    """The block in so many bits a column; columns beyond those of ``bits`` are left out.

    dtype: that the grids are kept in; codes are found for what is kept.
    """
    columns = np.arange(len(bits))
    scale, offset = block.grids.scale[bits, columns], block.grids.offset[bits, columns]
    scale, offset = scale.astype(dtype), offset.astype(dtype)
    last = (1 << bits.astype(np.int64)) - 1
    data = np.empty((block.end - block.first, row_bytes(bits)), dtype=np.uint8)
    at = 0
    for values, _ in block.chunks():
        exact = scale.astype(np.float64), offset.astype(np.float64)
        codes = nearest(values.T[: len(bits)].astype(np.float64), *exact, last[:, None]).T.astype(
            np.uint8
        )
        data[at : at + len(values)] = pack_codes(codes, bits)
        at += len(values)
    return CodedBlock(block.first, bits, scale, offset, data)


def rank_of_id(order: NDArray[np.int32] | None) -> NDArray[np.int32] | None:
    """int32 (rows,): the rank of each id; None where they are the same."""
    if order is None:
        return None
    ranks = np.empty_like(order)
    ranks[order] = np.arange(len(order), dtype=order.dtype)
    return ranks
