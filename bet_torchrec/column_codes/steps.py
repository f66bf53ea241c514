"""The uniform grid a column that loses least, for every number of bits at once.

Shapes: C columns, K cells, levels 0 .. 2**bits - 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..serving.column_codes import MAX_BITS
from .cells import Cells

_CLIPS = (0.6, 0.9, 1.2, 1.6, 2.0, 2.5, 3.0, 4.0)  # half spans in standard deviations
_ROUNDS = 12

_Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Grids:
    """scale, offset: float32 (MAX_BITS + 1, C). error: float64, the same shape, falls with bits:
    the weighted squared error of all rows."""

    scale: NDArray[np.float32]
    offset: NDArray[np.float32]
    error: NDArray[np.float64]


def best_grids(cells: Cells) -> Grids:
    """For 0 to 8 bits.

    0 bits: the weighted mean. 1 bit: exact, the best of all thresholds. More: Lloyd's rounds
    between nearest levels and the regression of values on them, from the best of several clipped
    spans, the whole span and the grid of one bit less; never worse than any of these.
    """
    total = cells.weight.sum(axis=1)
    share = cells.weight / np.where(total > 0, total, 1.0)[:, None]
    mean = (share * cells.value).sum(axis=1)
    deviation = np.sqrt((share * (cells.value - mean[:, None]) ** 2).sum(axis=1))
    chosen = [(np.zeros_like(mean), mean), _one_bit(cells, mean)]
    for bits in range(2, MAX_BITS + 1):
        last = (1 << bits) - 1
        starts = [(2 * c * deviation / last, mean - c * deviation) for c in _CLIPS]
        low, high = cells.value[:, 0], cells.value[:, -1]
        starts += [((high - low) / last, low), chosen[-1]]
        chosen.append(_lloyd(cells, *_best(cells, starts, last), last))
    scale, offset = (np.stack(part).astype(np.float32) for part in zip(*chosen, strict=True))
    errors = [_error(cells, scale[0], offset[0], 0)]
    for bits in range(1, MAX_BITS + 1):
        last = (1 << bits) - 1
        # Rounding to fp32 may tip a tie: the grid of one bit less is always at hand.
        worse = _error(cells, scale[bits], offset[bits], last) > errors[-1]
        scale[bits][worse], offset[bits][worse] = scale[bits - 1][worse], offset[bits - 1][worse]
        errors.append(np.minimum(errors[-1], _error(cells, scale[bits], offset[bits], last)))
    return Grids(scale, offset, np.stack(errors) + cells.within)


def nearest(values: _Floats, scale: _Floats, offset: _Floats, last: Any) -> _Floats:
    """Codes 0 .. last, (C, K), by columns' scale and offset (C,). last: one number, or (C, 1)."""
    step = np.where(scale > 0, scale, 1.0)[:, None]
    found = np.rint((values - offset[:, None]) / step).clip(0, last)
    return np.where(scale[:, None] > 0, found, 0.0)


def _error(
    cells: Cells, scale: NDArray[np.floating], offset: NDArray[np.floating], last: int
) -> _Floats:
    step, first = scale.astype(np.float64), offset.astype(np.float64)
    read = nearest(cells.value, step, first, last) * step[:, None] + first[:, None]
    error: _Floats = (cells.weight * (cells.value - read) ** 2).sum(axis=1)
    return error


def _best(
    cells: Cells, starts: list[tuple[_Floats, _Floats]], last: int
) -> tuple[_Floats, _Floats]:
    errors = np.stack([_error(cells, scale, offset, last) for scale, offset in starts])
    winner, columns = errors.argmin(axis=0), np.arange(errors.shape[1])
    scales, offsets = (np.stack(part) for part in zip(*starts, strict=True))
    return scales[winner, columns], offsets[winner, columns]


def _lloyd(cells: Cells, scale: _Floats, offset: _Floats, last: int) -> tuple[_Floats, _Floats]:
    total = cells.weight.sum(axis=1)
    total = np.where(total > 0, total, 1.0)
    mean = (cells.weight * cells.value).sum(axis=1) / total
    for _ in range(_ROUNDS):
        code = nearest(cells.value, scale, offset, last)
        centre = (cells.weight * code).sum(axis=1) / total
        code -= centre[:, None]
        spread = (cells.weight * code * code).sum(axis=1)
        slope = (cells.weight * code * cells.value).sum(axis=1)
        usable = (spread > 0) & (slope > 0)
        scale = np.where(usable, slope / np.where(usable, spread, 1.0), scale)
        offset = np.where(usable, mean - scale * centre, offset)
    return scale, offset


def _one_bit(cells: Cells, mean: _Floats) -> tuple[_Floats, _Floats]:
    """The two levels that lose least: of all cuts of the rising values, by running sums."""
    weight = cells.weight.cumsum(axis=1)
    first = (cells.weight * (cells.value - mean[:, None])).cumsum(axis=1)
    left, right = weight, weight[:, -1:] - weight
    below, above = first, first[:, -1:] - first
    usable = (left > 0) & (right > 0)
    gain = np.where(
        usable,
        below**2 / np.where(usable, left, 1) + above**2 / np.where(usable, right, 1),
        -1.0,
    )
    cut = gain.argmax(axis=1)
    columns = np.arange(len(cut))
    found = gain[columns, cut] > 0
    safe = np.where(found, left[columns, cut], 1), np.where(found, right[columns, cut], 1)
    low, high = below[columns, cut] / safe[0], above[columns, cut] / safe[1]
    return np.where(found, high - low, 0.0), np.where(found, low, 0.0) + mean
