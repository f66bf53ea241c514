"""Coded tables in one buffer, as the kernels read them: see rows.h.

Block by block: its rows, then its columns' scales, offsets and bits (a byte), nothing else:
the bytes are those that ``CodedTable.nbytes`` counts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...serving.column_codes import CodedBlock, CodedTable, parameter_bytes
from ..native.tables import DECODERS, Laid, integers

_EIGHT = 8  # columns that the kernel decodes at once


@dataclass(frozen=True)
class Shape:
    """One table's lie: where its blocks begin in the buffer, its columns, its id map's place among
    all (None: ids are ranks). grids: their numbers' type."""

    name: str
    dim: int
    rows: int
    columns: int
    first_ranks: tuple[int, ...]
    block_rows: tuple[int, ...]
    block_bytes: tuple[int, ...]
    grids: str
    starts: tuple[int, ...]
    map_start: int | None

    @property
    def width(self) -> int:
        """Its columns in the kernel's output."""
        return -(-self.columns // _EIGHT) * _EIGHT


def gathered(tables: Mapping[str, CodedTable]) -> tuple[Tensor, Tensor | None, dict[str, Shape]]:
    """(buffer uint8, id maps int32 or None, {table: how it lies})."""
    shapes: dict[str, Shape] = {}
    pieces: list[NDArray[np.uint8]] = []
    maps: list[NDArray[np.int32]] = []
    at = mapped = 0
    for name, table in tables.items():
        starts = []
        for block in table.blocks:
            starts.append(at)
            pieces.append(np.ascontiguousarray(block.data).ravel())
            pieces += [np.ascontiguousarray(a).view(np.uint8) for a in _grid(block)]
            at += block.nbytes
        shapes[name] = Shape(
            name,
            table.embedding_dim,
            table.rows,
            len(table.blocks[0].bits),
            tuple(block.first_rank for block in table.blocks),
            tuple(block.rows for block in table.blocks),
            tuple(block.data.shape[1] for block in table.blocks),
            table.blocks[0].scale.dtype.name,
            tuple(starts),
            None if table.id_map is None else mapped,
        )
        if table.id_map is not None:
            maps.append(np.asarray(table.id_map, dtype=np.int32))
            mapped += len(table.id_map)
    buffer = torch.from_numpy(np.concatenate(pieces))
    return buffer, torch.from_numpy(np.concatenate(maps)) if maps else None, shapes


def _grid(block: CodedBlock) -> tuple[NDArray[np.generic], ...]:
    return block.scale, block.offset, np.asarray(block.bits, dtype=np.uint8)


def blocks_in(buffer: Tensor, shape: Shape) -> Iterator[CodedBlock]:
    """A table's blocks as views of the buffer."""
    memory = buffer.numpy()
    n = shape.columns
    parts = zip(shape.first_ranks, shape.block_rows, shape.block_bytes, shape.starts, strict=True)
    for first, rows, each, start in parts:
        data = memory[start : start + rows * each].reshape(rows, each)
        grid = memory[start + rows * each :][: parameter_bytes(n, shape.grids)]
        numbers = np.frombuffer(grid[:-n].tobytes(), shape.grids)  # a copy: it may lie unaligned
        yield CodedBlock(first, grid[-n:], numbers[:n], numbers[n:], data)


def described(
    shapes: Mapping[str, Shape], slots: Sequence[tuple[str, bool]]
) -> tuple[Laid, Tensor, list[int]]:
    """The kernels' view, blocks' starts in the buffer, and slots' first columns and their end.

    slots: (table, whether its bags are means) in output order.
    """
    names = list(shapes)
    column, columns, slot_rows = 0, [], []
    for table, mean in slots:
        columns.append(column)
        slot_rows.append((names.index(table), column, shapes[table].width, int(mean)))
        column += shapes[table].width
    table_rows: list[tuple[int, ...]] = []
    block_rows: list[tuple[int, ...]] = []
    starts: list[int] = []
    decoder = DECODERS.index("columns")
    for shape in shapes.values():
        first, map_start = len(block_rows), -1 if shape.map_start is None else shape.map_start
        table_rows.append((shape.rows, map_start, first, first + len(shape.starts), 1))
        for rank, rows, each in zip(
            shape.first_ranks, shape.block_rows, shape.block_bytes, strict=True
        ):
            where = (rank, rank + rows, 1, rows)
            number = np.dtype(shape.grids).itemsize
            block_rows.append((*where, 0, shape.width, each, decoder, shape.columns, number))
        starts += shape.starts
    laid = Laid(integers(slot_rows, 4), integers(table_rows, 5), integers(block_rows, 10))
    return laid, torch.tensor(starts, dtype=torch.int64, device="cpu"), [*columns, column]
