"""Trained tables to column codes within a budget of bytes."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..axes import Basis
from ..axes.moments import Rows
from ..errors import InfeasibleBudgetError, InvalidInputError
from ..planning.counts import RowCounts
from ..serving.column_codes import CodedTable, parameter_bytes
from .bits import CodeCost, allocate
from .source import UNSEEN, Measured, Source, encoded, rank_of_id
from .turn import Turn


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
    measured: dict[str, list[Measured]] = {}
    maps: dict[str, NDArray[np.int32] | None] = {}
    for name, table in tables.items():
        basis = bases.get(name)
        _check(name, table, counts[name], basis)
        edges = rank_edges(counts[name], rank_blocks)
        by_rank = len(edges) > 2
        turn = None if basis is None else Turn.of(basis)
        source = Source.of(table, counts[name], turn, by_rank=by_rank)
        maps[name] = rank_of_id(counts[name].order) if by_rank else None
        measured[name] = [source.measured(first, end) for first, end in pairwise(edges)]
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
            tuple(encoded(block, next(bits)) for block in own),
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


def _fixed(id_map: NDArray[np.int32] | None, basis: Basis | None, own: list[Measured]) -> int:
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
