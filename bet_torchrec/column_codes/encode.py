"""Trained tables to column codes within a budget of bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..axes import Basis
from ..axes.moments import Rows
from ..errors import InfeasibleBudgetError, InvalidInputError
from ..planning.counts import RowCounts
from ..serving.column_codes import CodedBlock, CodedTable, pack_codes, parameter_bytes, row_bytes
from .bits import CodeCost, allocate
from .cells import Weighted, cells_of
from .steps import Grids, best_grids, nearest

UNSEEN = 1e-3
"""What a row counts that training never had: something, as it is looked up by its table's error."""

_CHUNK = 1 << 14  # rows


@dataclass(frozen=True, eq=False)
class _Block:
    """Ranks [first, end) of a table with the grids of all bits. chunks: its values, anew a call."""

    first: int
    end: int
    chunks: Callable[[], Iterator[Weighted]]
    grids: Grids


@dataclass(frozen=True, eq=False)
class _Source:
    """A table in the order that it is coded in.

    ids: of each place, None where they are the same. ranks: of each place, None likewise.
    """

    table: Rows
    counts: RowCounts
    basis: Basis | None
    ids: NDArray[np.int32] | None
    ranks: NDArray[np.int32] | None

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
            values = (rows if self.basis is None else self.basis.coordinates(rows)).numpy()
            if not np.isfinite(values).all():
                raise InvalidInputError(
                    f"rows should be finite numbers, got others among those at {start} to "
                    f"{places[-1]}: has training diverged?"
                )
            weights = np.maximum(self.counts.at_ranks(ranks).astype(np.float64), UNSEEN)
            yield values, weights


def encode_tables(
    tables: Mapping[str, Rows],
    counts: Mapping[str, RowCounts],
    *,
    limit: int,
    bases: Mapping[str, Basis] | None = None,
    rank_blocks: int = 1,
    importance: Mapping[str, Any] | None = None,
) -> dict[str, CodedTable]:
    """Codes that lose least within ``limit`` bytes for everything: see ``coded_bytes``.

    What is lost is the squared error of rows, each weighted by its count. The tables are read
    chunk by chunk, three times, and never copied.

    Args:
        tables: full ones, {name: rows x embedding_dim} in id order. counts: of the same tables.
        bases: a table's axes; its columns are then coordinates (as many as the axes), and else
            the rows' own entries.
        rank_blocks: how many parts of the ranks have scales and bits of their own, at most; each
            has about as much of the square root of the counts. With more than one, ids that are no
            ranks need an id map, which is counted.
        importance: {table: what its error counts, one number or one a column}; ones unless given.

    Raises:
        InvalidInputError: tables, counts and bases that don't fit, or numbers not finite.
        InfeasibleBudgetError: scales, axes and id maps alone take more than ``limit``.
    """
    bases = bases or {}
    if set(tables) != set(counts) or not set(bases) <= set(tables):
        raise InvalidInputError(
            f"expected counts, and bases if any, of tables {sorted(tables)}, got counts of "
            f"{sorted(counts)} and bases of {sorted(bases)}"
        )
    if rank_blocks < 1:
        raise InvalidInputError(f"rank_blocks should be at least 1, got {rank_blocks}")
    measured: dict[str, list[_Block]] = {}
    maps: dict[str, NDArray[np.int32] | None] = {}
    for name, table in tables.items():
        basis = bases.get(name)
        _check(name, table, counts[name], basis)
        edges = rank_edges(counts[name], rank_blocks)
        rank_of_id = _rank_of_id(counts[name].order)
        if len(edges) > 2:
            source = _Source(table, counts[name], basis, counts[name].order, None)
            maps[name] = rank_of_id
        else:  # a single block has no use for ranks: its rows lie by id, and no map is needed
            source = _Source(table, counts[name], basis, None, rank_of_id)
            maps[name] = None
        measured[name] = [_measured(source, first, end) for first, end in pairwise(edges)]
    fixed = sum(_fixed(maps[name], bases.get(name), own) for name, own in measured.items())
    if fixed > limit:
        raise InfeasibleBudgetError(
            f"scales, axes and id maps take {fixed} bytes before any code, the limit is {limit}: "
            "allow more, or take fewer rank blocks or fewer axes",
            smallest=fixed,
            limit=limit,
            unit="bytes",
        )
    weigh = importance or {}
    costs = [
        CodeCost(block.end - block.first, block.grids.error * np.asarray(weigh.get(name, 1.0)))
        for name, own in measured.items()
        for block in own
    ]
    bits = iter(allocate(costs, limit - fixed))
    return {
        name: CodedTable(
            name,
            int(tables[name].shape[1]),
            tuple(_encoded(block, next(bits)) for block in own),
            bases[name].axes.numpy() if name in bases else None,
            maps[name],
        )
        for name, own in measured.items()
    }


def coded_bytes(tables: Mapping[str, CodedTable]) -> int:
    """All that these tables take: rows, scales, axes and id maps."""
    return sum(table.nbytes for table in tables.values())


def rank_edges(counts: RowCounts, blocks: int) -> list[int]:
    """Ranks that cut a table into at most ``blocks`` parts of like sums of sqrt(count)."""
    each = np.sqrt(np.maximum(counts.values, UNSEEN))
    mass = np.cumsum(each * counts.multiplicity)
    edges = {0, counts.rows}
    for part in range(1, blocks):
        wanted = mass[-1] * part / blocks
        group = int(np.searchsorted(mass, wanted))
        start = int(counts.ends[group] - counts.multiplicity[group])
        before = mass[group] - each[group] * counts.multiplicity[group]
        edges.add(min(counts.rows, start + round(float((wanted - before) / each[group]))))
    return sorted(edges)


def _measured(source: _Source, first: int, end: int) -> _Block:
    chunks = partial(source.chunks, first, end)
    return _Block(first, end, chunks, best_grids(cells_of(chunks, end - first)))


def _encoded(block: _Block, bits: NDArray[np.uint8]) -> CodedBlock:
    columns = np.arange(len(bits))
    scale, offset = block.grids.scale[bits, columns], block.grids.offset[bits, columns]
    last = (1 << bits.astype(np.int64)) - 1
    data = np.empty((block.end - block.first, row_bytes(bits)), dtype=np.uint8)
    at = 0
    for values, _ in block.chunks():
        exact = scale.astype(np.float64), offset.astype(np.float64)
        codes = nearest(values.T.astype(np.float64), *exact, last[:, None]).T.astype(np.uint8)
        data[at : at + len(values)] = pack_codes(codes, bits)
        at += len(values)
    return CodedBlock(block.first, bits, scale, offset, data)


def _rank_of_id(order: NDArray[np.int32] | None) -> NDArray[np.int32] | None:
    if order is None:
        return None
    ranks = np.empty_like(order)
    ranks[order] = np.arange(len(order), dtype=order.dtype)
    return ranks


def _fixed(id_map: NDArray[np.int32] | None, basis: Basis | None, own: list[_Block]) -> int:
    """What is spent before any code."""
    parameters = sum(parameter_bytes(block.grids.error.shape[1]) for block in own)
    arrays = (id_map, None if basis is None else basis.axes)
    return parameters + sum(int(array.nbytes) for array in arrays if array is not None)


def _check(name: str, table: Rows, counts: RowCounts, basis: Basis | None) -> None:
    if table.ndim != 2 or len(table) != counts.rows:
        raise InvalidInputError(
            f"table {name!r}: expected {counts.rows} rows, as the counts have, got shape "
            f"{tuple(table.shape)}"
        )
    if basis is not None and basis.dim != table.shape[1]:
        raise InvalidInputError(
            f"table {name!r}: expected axes of {table.shape[1]} columns, got {basis.dim}"
        )
