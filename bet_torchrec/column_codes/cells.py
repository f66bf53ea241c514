"""What the choice of a column's steps needs of its values: a fine, weighted histogram.

Two passes over the rows (range, then cells), one block of them in memory; afterwards nothing
depends on their number. Shapes: n rows, C columns, K cells.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Weighted: TypeAlias = "tuple[NDArray[np.float32], NDArray[np.float64]]"
"""Values (n, C) and their rows' weights (n,)."""

CELLS = 2048


@dataclass(frozen=True, eq=False)
class Cells:
    """weight, value: float64 (C, K), the cells' weights and mean values, values rising.

    within: float64 (C,), the weighted squared error of taking the values of a cell for its mean.
    Exact, a cell a row, where there are no more than ``CELLS`` rows.
    """

    weight: NDArray[np.float64]
    value: NDArray[np.float64]
    within: NDArray[np.float64]


def cells_of(blocks: Callable[[], Iterable[Weighted]], rows: int) -> Cells:
    """blocks: gives all rows, anew at every call. rows: how many they are."""
    if rows <= CELLS:
        return _each_row(blocks())
    low, high = _range(blocks())
    span = np.where(high > low, high - low, 1.0)
    columns = len(low)
    sums = np.zeros((3, columns * CELLS))
    base = np.arange(columns) * CELLS
    for values, weights in blocks():
        exact = values.astype(np.float64)
        cell = ((exact - low) * (CELLS / span)).astype(np.int64).clip(max=CELLS - 1) + base
        each = np.broadcast_to(weights[:, None], exact.shape)
        for total, term in zip(sums, (each, each * exact, each * exact * exact), strict=True):
            total += np.bincount(cell.ravel(), term.ravel(), minlength=len(total))
    weight, first, second = sums.reshape(3, columns, CELLS)
    middle = low[:, None] + (np.arange(CELLS) + 0.5) * span[:, None] / CELLS
    value = np.divide(first, weight, out=middle, where=weight > 0)
    return Cells(weight, value, (second - first * value).clip(min=0).sum(axis=1))


def _each_row(blocks: Iterable[Weighted]) -> Cells:
    pairs = list(blocks)
    values = np.concatenate([values for values, _ in pairs]).astype(np.float64).T
    weights = np.concatenate([weights for _, weights in pairs])
    order = np.argsort(values, axis=1, kind="stable")
    return Cells(weights[order], np.take_along_axis(values, order, 1), np.zeros(len(values)))


def _range(blocks: Iterable[Weighted]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    lows, highs = [], []
    for values, _ in blocks:
        lows.append(values.min(axis=0))
        highs.append(values.max(axis=0))
    return np.min(lows, axis=0).astype(np.float64), np.max(highs, axis=0).astype(np.float64)
