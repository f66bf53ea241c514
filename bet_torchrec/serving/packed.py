"""Rows of unlike widths as the bytes that serve them, and what they read as.

A row of n columns is, little-endian: fp32 or fp16 numbers; or for int8, int4 and int2 its fp16
scale, its fp16 bias and its codes in column order, the first in the lowest bits of a byte, filled
up to whole 2-byte words. It reads as scale * code + bias, rounded to fp32 once. That is FBGEMM's
own form for inference, less the alignment of rows.

Nothing here needs more than numpy, and nothing is copied before it is read: a block's rows may lie
in a file's memory map.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import InvalidInputError

Precision: TypeAlias = Literal["fp32", "fp16", "int8", "int4", "int2"]

_BITS = {"int8": 8, "int4": 4, "int2": 2}
PARAMETERS = 4  # bytes, fp16 scale and fp16 bias
_CHUNK = 1 << 16  # rows


def row_bytes(width: int, precision: Precision) -> int:
    """Bytes of a row of this many columns."""
    if precision not in _BITS:
        return width * (4 if precision == "fp32" else 2)
    return PARAMETERS + -(-width * _BITS[precision] // 16) * 2


def unpack_rows(packed: NDArray[np.uint8], width: int, precision: str) -> NDArray[np.float32]:
    """uint8 (rows, bytes) -> float32 (rows, width)."""
    packed = np.ascontiguousarray(packed)
    if precision not in _BITS:
        kind = "<f4" if precision == "fp32" else "<f2"
        return packed.view(kind)[:, :width].astype(np.float32)
    bits = _BITS[precision]
    codes: NDArray[np.uint8] = packed[:, PARAMETERS:]
    if bits < 8:
        shifts = np.arange(0, 8, bits, dtype=np.uint8)
        codes = (codes[:, :, None] >> shifts) & np.uint8((1 << bits) - 1)
    values: NDArray[np.float32] = codes.reshape(len(packed), -1)[:, :width].astype(np.float32)
    parameters = np.ascontiguousarray(packed[:, :PARAMETERS]).view("<f2").astype(np.float32)
    # The product is exact (11 + 8 bits), so the sum rounds once, like FBGEMM's fused form.
    values *= parameters[:, :1]
    values += parameters[:, 1:]
    return values


@dataclass(frozen=True, eq=False)
class PackedBlock:
    """Ranks [first_rank, first_rank + rows), columns [first_column, first_column + width).

    stride: the row of rank r is (r - first_rank) * stride % rows.
    data: uint8 (rows, bytes a row).
    """

    name: str
    first_rank: int
    rows: int
    first_column: int
    width: int
    precision: str
    stride: int
    data: NDArray[np.uint8]

    def read_into(self, out: NDArray[np.float32], ranks: NDArray[np.int64]) -> None:
        """Write what it holds of these ranks to out, (len(ranks), columns from 0)."""
        width = min(self.width, out.shape[1] - self.first_column)
        local = ranks - self.first_rank
        inside = np.flatnonzero((local >= 0) & (local < self.rows))
        if width <= 0 or not len(inside):
            return
        local = local[inside] * self.stride % self.rows
        columns = slice(self.first_column, self.first_column + width)
        out[inside, columns] = unpack_rows(self.data[local], self.width, self.precision)[:, :width]


@dataclass(frozen=True, eq=False)
class PackedTable:
    """One table: its blocks, and the rank of each id.

    id_map: int32 (rows,), the rank of each id; None where ids are ranks.
    axes: float32 (w, embedding_dim) where blocks hold coordinates: row = coordinates @ axes.
    """

    name: str
    rows: int
    embedding_dim: int
    blocks: tuple[PackedBlock, ...]
    id_map: NDArray[np.int32] | None = None
    axes: NDArray[np.float32] | None = None

    def read(self, ids: ArrayLike, *, width: int | None = None) -> NDArray[np.float32]:
        """Rows by id: (...,) integers -> float32 (..., embedding_dim), zeros beyond a row's size.

        width: read the first ``width`` columns only.

        Raises:
            InvalidInputError: ids that are no integers from 0 to rows - 1.
        """
        if self.axes is None:
            return self.stored(ids, width=width)
        return self.stored(ids, width=len(self.axes)) @ self.axes[:, :width]

    def stored(self, ids: ArrayLike, *, width: int | None = None) -> NDArray[np.float32]:
        """As ``read``, but what blocks hold: of a table with axes, coordinates."""
        wanted: NDArray[Any] = np.asarray(ids)
        columns = self.embedding_dim if width is None else width
        if wanted.size == 0:
            return np.zeros((*wanted.shape, columns), dtype=np.float32)
        if wanted.dtype.kind not in "iu" or wanted.min() < 0 or wanted.max() >= self.rows:
            raise InvalidInputError(
                f"ids of table {self.name!r} should be integers from 0 to {self.rows - 1}, got "
                f"{wanted.dtype} from {wanted.min()} to {wanted.max()}"
            )
        flat = wanted.ravel().astype(np.int64)
        ranks = flat if self.id_map is None else self.id_map[flat].astype(np.int64)
        out = np.zeros((len(flat), columns), dtype=np.float32)
        for block in self.blocks:
            block.read_into(out, ranks)
        return out.reshape(*wanted.shape, columns)

    def chunks(self) -> Iterator[NDArray[np.float32]]:
        """All rows in id order, some thousand at a time, float32 (n, embedding_dim)."""
        for start in range(0, self.rows, _CHUNK):
            yield self.read(np.arange(start, min(start + _CHUNK, self.rows)))
