"""The second moments of a table's rows, from one pass over its blocks.

Shapes: n rows of a block, d columns.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg.blas import dsyrk
from torch import Tensor

from ..errors import InvalidInputError

Rows: TypeAlias = "Tensor | NDArray[Any]"
"""Rows x d of any floating type: a tensor on any device, an array, a memory map."""

BLOCK = 1 << 13  # rows: a block in float64 stays in the cache


class Moments:
    """sum over rows of weight * row^T row, in float64: all that principal axes need of a table.

    Rows come block by block and none is kept. Moments of parts of a table (a rank's shards) add
    up: ``merge``.

    Attributes:
        dim: d. rows: how many have been added. weight: the sum of their weights.
    """

    def __init__(self, dim: int) -> None:
        if dim < 1:
            raise InvalidInputError(f"dim should be at least 1, got {dim}")
        self.dim, self.rows, self.weight = dim, 0, 0.0
        # Fortran order, so that BLAS adds to it in place; only the upper triangle is kept.
        self._upper = np.zeros((dim, dim), dtype=np.float64, order="F")

    def add(self, rows: Rows, weights: Any = None) -> Moments:
        """Add a block (n, d); returns itself.

        weights: (n,) not negative, each row's count; None for ones.

        Raises:
            InvalidInputError: other columns or weights, negative weights, or numbers not finite.
        """
        if rows.ndim != 2 or rows.shape[1] != self.dim:
            raise InvalidInputError(f"rows should be (n, {self.dim}), got {tuple(rows.shape)}")
        scale = None if weights is None else _roots(weights, len(rows))
        for start in range(0, len(rows), BLOCK):
            block = _float64(rows[start : start + BLOCK])
            if scale is not None:
                block *= scale[start : start + BLOCK, None]
            self._upper = dsyrk(1.0, block.T, beta=1.0, c=self._upper, overwrite_c=1)
            if not np.isfinite(self._upper).all():
                first = self.rows + start
                raise InvalidInputError(
                    f"rows {first} to {first + len(block) - 1} should be finite numbers, got some "
                    "that are not: has training diverged?"
                )
        self.weight += float(len(rows) if scale is None else np.square(scale).sum())
        self.rows += len(rows)
        return self

    def merge(self, other: Moments) -> Moments:
        """Add what another has seen; returns itself."""
        if other.dim != self.dim:
            raise InvalidInputError(f"expected moments of {self.dim} columns, got {other.dim}")
        self._upper += other._upper
        self.rows, self.weight = self.rows + other.rows, self.weight + other.weight
        return self

    def matrix(self) -> NDArray[np.float64]:
        """(d, d), symmetric, not divided by the weight."""
        upper = np.triu(self._upper)
        return upper + np.triu(upper, 1).T


def row_blocks(
    table: Rows, counts: Any = None, block_rows: int = 1 << 16
) -> Iterator[tuple[Rows, NDArray[np.float64] | None]]:
    """(rows, counts) block by block, as ``principal_basis`` takes; views, nothing is copied.

    counts: one number a row, in the rows' order, or None.
    """
    if counts is not None and len(counts) != len(table):
        raise InvalidInputError(f"counts should be one a row, {len(table)}, got {len(counts)}")
    for start in range(0, len(table), block_rows):
        stop = start + block_rows
        yield table[start:stop], None if counts is None else numbers(counts[start:stop])


def moments_of(blocks: Iterable[tuple[Rows, Any]]) -> Moments:
    """Of all blocks (rows, weights or None) together.

    Raises:
        InvalidInputError: no block, or as ``Moments.add``.
    """
    moments: Moments | None = None
    for rows, weights in blocks:
        if moments is None:
            moments = Moments(int(rows.shape[1]))
        moments.add(rows, weights)
    if moments is None:
        raise InvalidInputError("expected at least one block of rows, got none")
    return moments


def _float64(rows: Rows) -> NDArray[np.float64]:
    """A copy, C-contiguous."""
    if isinstance(rows, Tensor):
        # A tensor may be of a type that numpy lacks (bfloat16).
        made = torch.empty(rows.shape, dtype=torch.float64)
        return made.copy_(rows.detach()).numpy()
    return np.array(rows, dtype=np.float64, order="C")


def _roots(weights: Any, rows: int) -> NDArray[np.float64]:
    values = numbers(weights)
    if values.shape != (rows,) or not np.isfinite(values).all() or (values < 0).any():
        raise InvalidInputError(
            f"weights should be {rows} finite numbers, 0 or more, one a row, got "
            f"{values.dtype} of shape {values.shape}"
            + (f" from {values.min()} to {values.max()}" if values.size else "")
        )
    return np.sqrt(values)


def numbers(values: Any) -> NDArray[np.float64]:
    """As float64, of a tensor on any device too."""
    if isinstance(values, Tensor):
        values = values.detach().cpu().numpy()
    return np.asarray(values, dtype=np.float64)
