"""Rows whose columns are coded each in its own number of bits, and what they read as; numpy alone.

A table is cut into blocks of ranks. In a block every column has one scale and one offset (fp32 or
fp16) and a number of bits from 0 to 8; a row is its columns' codes one after the other without a
gap, the first in the lowest bits of the first byte, filled up to whole bytes once. A column reads
as scale * code + offset; one of 0 bits is nothing but its offset. With a basis, what is read so are
coordinates, and the row is coordinates @ axes.

The file: ``rows/T.B`` uint8 (rows, bytes), ``bits/T.B`` uint8, ``scale/T.B`` and ``offset/T.B``
fp32 or fp16 (columns,), table number T, block number B; ``id_map/T`` int32, the rank of each id;
``axes/T`` fp32, or int8 in 127ths (columns, embedding_dim).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import BetError, InvalidInputError
from ..files.tensors import Entry, write_file
from .container import Kind, open_container

FORMAT = "bet_torchrec.column_codes"
VERSION = 1
MAX_BITS = 8
AXIS_UNIT = 127
"""What an axis' entries are counted in where they are int8: 127ths."""
_GRIDS = (np.float32, np.float16)
_DTYPES = {"float32": "F32", "float16": "F16", "int32": "I32", "int8": "I8", "uint8": "U8"}


class CodeFileError(BetError, ValueError):
    """A file holds no coded tables: corrupted, foreign, or written by a newer version."""


_KIND = Kind(FORMAT, VERSION, "tables saved by write_coded_tables", CodeFileError)


def row_bytes(bits: ArrayLike) -> int:
    """Bytes of a row whose columns have these bits."""
    return -(-int(np.asarray(bits, dtype=np.int64).sum()) // 8)


def pack_codes(codes: NDArray[np.uint8], bits: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(n, columns) codes below 2**bits -> (n, row_bytes)."""
    packed = np.zeros((len(codes), row_bytes(bits)), dtype=np.uint8)
    place = 0
    for column, width in enumerate(bits.tolist()):
        if not width:
            continue
        byte, shift = divmod(place, 8)
        word = codes[:, column].astype(np.uint16) << np.uint16(shift)
        packed[:, byte] |= (word & 0xFF).astype(np.uint8)
        if shift + width > 8:
            packed[:, byte + 1] |= (word >> 8).astype(np.uint8)
        place += width
    return packed


def unpack_codes(packed: NDArray[np.uint8], bits: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(n, row_bytes) -> (n, columns); 0 where a column has no bits."""
    if not packed.shape[1]:
        return np.zeros((len(packed), len(bits)), dtype=np.uint8)
    first, second, shift, mask = code_places(bits)
    word = packed[:, first].astype(np.uint16) | packed[:, second].astype(np.uint16) << 8
    codes: NDArray[np.uint8] = ((word >> shift) & mask).astype(np.uint8)
    return codes


def code_places(
    bits: NDArray[np.uint8],
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.uint16], NDArray[np.uint16]]:
    """Of each column: the two bytes that its code lies in, and its shift and mask in them."""
    ends = np.cumsum(bits, dtype=np.int64)
    first, last = (ends - bits) // 8, max(0, row_bytes(bits) - 1)
    shift = ((ends - bits) % 8).astype(np.uint16)
    mask = ((1 << bits.astype(np.int64)) - 1).astype(np.uint16)
    # Columns of no bits may stand at the end; their mask is 0, wherever they look.
    return np.minimum(first, last), np.minimum(first + 1, last), shift, mask


@dataclass(frozen=True, eq=False)
class CodedBlock:
    """Ranks [first_rank, first_rank + rows) of a table.

    bits: uint8 (columns,). scale, offset: float32 or float16 (columns,). data: uint8 (rows,
    row_bytes).
    """

    first_rank: int
    bits: NDArray[np.uint8]
    scale: NDArray[Any]
    offset: NDArray[Any]
    data: NDArray[np.uint8]

    def __post_init__(self) -> None:
        columns = self.bits.shape
        if self.scale.shape != columns or self.offset.shape != columns or self.bits.ndim != 1:
            raise InvalidInputError(
                "bits, scale and offset should be one a column each, got shapes "
                f"{self.bits.shape}, {self.scale.shape} and {self.offset.shape}"
            )
        if self.scale.dtype != self.offset.dtype or self.scale.dtype not in _GRIDS:
            raise InvalidInputError(
                "scale and offset should be both float32 or both float16, got "
                f"{self.scale.dtype} and {self.offset.dtype}"
            )
        if self.bits.max(initial=0) > MAX_BITS:
            raise InvalidInputError(f"bits should be 0 to {MAX_BITS}, got {self.bits.tolist()}")
        if self.data.ndim != 2 or self.data.shape[1] != row_bytes(self.bits):
            raise InvalidInputError(
                f"data should be (rows, {row_bytes(self.bits)}) bytes, got {self.data.shape}"
            )

    @property
    def rows(self) -> int:
        """Of the block."""
        return len(self.data)

    @property
    def nbytes(self) -> int:
        """Rows, and what is kept once a column."""
        return self.data.nbytes + parameter_bytes(len(self.bits), self.scale.dtype)

    def read(self, local: NDArray[np.int64]) -> NDArray[np.float32]:
        """Rows of the block, (n,) -> float32 (n, columns)."""
        codes = unpack_codes(self.data[local], self.bits)
        scale, offset = self.scale.astype(np.float32), self.offset.astype(np.float32)
        return codes.astype(np.float32) * scale + offset


def parameter_bytes(columns: int, dtype: Any = np.float32) -> int:
    """Of one block: a scale, an offset and a byte for the bits, a column."""
    return (2 * np.dtype(dtype).itemsize + 1) * columns


@dataclass(frozen=True, eq=False)
class CodedTable:
    """One table: its blocks in rank order, the rank of each id, the axes of its coordinates.

    axes: (columns, embedding_dim), float32, or int8 that count 127ths; None where columns are the
    row's first entries.
    id_map: int32 (rows,), or None where ids are ranks.
    """

    name: str
    embedding_dim: int
    blocks: tuple[CodedBlock, ...]
    axes: NDArray[Any] | None = None
    id_map: NDArray[np.int32] | None = None

    @property
    def rows(self) -> int:
        """Of the table."""
        return sum(block.rows for block in self.blocks)

    @property
    def nbytes(self) -> int:
        """All that it takes to serve: rows, parameters, axes, id map."""
        extra = sum(array.nbytes for array in (self.axes, self.id_map) if array is not None)
        return extra + sum(block.nbytes for block in self.blocks)

    def coordinates(self, ids: ArrayLike) -> NDArray[np.float32]:
        """(n,) ids -> float32 (n, columns), before the axes.

        Raises:
            InvalidInputError: ids that are no integers from 0 to rows - 1.
        """
        wanted: NDArray[Any] = np.asarray(ids)
        columns = len(self.blocks[0].bits)
        out = np.zeros((len(wanted), columns), dtype=np.float32)
        if wanted.size == 0:
            return out
        if wanted.dtype.kind not in "iu" or wanted.min() < 0 or wanted.max() >= self.rows:
            raise InvalidInputError(
                f"ids of table {self.name!r} should be integers from 0 to {self.rows - 1}, got "
                f"{wanted.dtype} from {wanted.min()} to {wanted.max()}"
            )
        ranks = wanted.astype(np.int64) if self.id_map is None else self.id_map[wanted]
        for block in self.blocks:
            local = ranks - block.first_rank
            inside = np.flatnonzero((local >= 0) & (local < block.rows))
            out[inside] = block.read(local[inside])
        return out

    def read(self, ids: ArrayLike) -> NDArray[np.float32]:
        """Rows by id: (n,) -> float32 (n, embedding_dim)."""
        coordinates = self.coordinates(ids)
        if self.axes is not None:
            return coordinates @ float_axes(self.axes)
        missing = self.embedding_dim - coordinates.shape[1]
        return np.pad(coordinates, ((0, 0), (0, missing)))


def float_axes(axes: NDArray[Any]) -> NDArray[np.float32]:
    """Axes as they multiply."""
    floats: NDArray[np.float32] = axes.astype(np.float32)
    return floats / np.float32(AXIS_UNIT) if axes.dtype == np.int8 else floats


def write_coded_tables(tables: Mapping[str, CodedTable], path: str | Path) -> Path:
    """Write one file (safetensors, no pickle), whole or not at all; returns its path."""
    told: list[dict[str, Any]] = []
    entries: list[tuple[int, Entry]] = []

    def add(name: str, array: NDArray[Any]) -> None:
        entry = Entry(name, _DTYPES[array.dtype.name], array.shape, partial(iter, [array]))
        entries.append((-array.itemsize, entry))

    for t, table in enumerate(tables.values()):
        if table.id_map is not None:
            add(f"id_map/{t}", table.id_map)
        if table.axes is not None:
            add(f"axes/{t}", table.axes)
        for b, block in enumerate(table.blocks):
            add(f"scale/{t}.{b}", block.scale)
            add(f"offset/{t}.{b}", block.offset)
            add(f"bits/{t}.{b}", block.bits)
            add(f"rows/{t}.{b}", block.data)
        told.append(
            {
                "name": table.name,
                "embedding_dim": table.embedding_dim,
                "first_ranks": [block.first_rank for block in table.blocks],
                "axes": table.axes is not None,
                "id_map": table.id_map is not None,
            }
        )
    metadata = {"format": FORMAT, "version": str(VERSION), "header": json.dumps({"tables": told})}
    path = Path(path)
    widest_first = [entry for _, entry in sorted(entries, key=lambda each: each[0])]
    write_file(path, metadata, widest_first)
    return path


def read_coded_tables(path: str | Path, *, verify: bool = True) -> dict[str, CodedTable]:
    """What ``write_coded_tables`` wrote, by name; rows stay in the file until they are read.

    Args:
        verify: read the whole file once and compare its checksum.

    Raises:
        CodeFileError: corrupted, foreign, or written by a newer version.
        FileNotFoundError: no such file.
    """
    path = Path(path)
    header, arrays = open_container(path, _KIND, verify=verify)
    try:
        return {
            told["name"]: CodedTable(
                told["name"],
                told["embedding_dim"],
                tuple(
                    CodedBlock(
                        first,
                        arrays[f"bits/{t}.{b}"],
                        arrays[f"scale/{t}.{b}"],
                        arrays[f"offset/{t}.{b}"],
                        arrays[f"rows/{t}.{b}"],
                    )
                    for b, first in enumerate(told["first_ranks"])
                ),
                arrays[f"axes/{t}"] if told["axes"] else None,
                arrays[f"id_map/{t}"] if told["id_map"] else None,
            )
            for t, told in enumerate(header["tables"])
        }
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _KIND.damaged(path, f"{type(error).__name__}: {error}") from error
