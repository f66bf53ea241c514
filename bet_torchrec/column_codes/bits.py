"""How many bits every column of every block gets, under a budget in bytes.

Within a block exactly: bytes a row against the least error, over all ways to spread the bits
(dynamic programming; errors need not fall convexly with bits). Between blocks, and tables, by
marginal gain a byte on the lower hull of these curves (reverse water-filling), then whatever
single bytes a row still fit. Exact within a block's hull, never over the budget.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import InfeasibleBudgetError
from ..serving.column_codes import MAX_BITS, row_bytes

_Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class CodeCost:
    """One block. rows: of it. error: float64 (MAX_BITS + 1, C), of each column by its bits."""

    rows: int
    error: _Floats


def allocate(blocks: Sequence[CodeCost], limit: int) -> list[NDArray[np.uint8]]:
    """Bits of each block's columns, uint8 (C,) each: sum of rows * row_bytes(bits) <= limit.

    No block can take one more byte a row within the limit and lose less by it.

    Raises:
        InfeasibleBudgetError: limit below 0.
    """
    if limit < 0:
        raise InfeasibleBudgetError(
            f"codes of no bits take 0 bytes, got {limit} bytes left for them: allow more bytes, or "
            "fewer rank blocks or columns, whose scales are counted",
            smallest=0,
            limit=limit,
            unit="bytes",
        )
    curves = [_curve(block.error) for block in blocks]
    taken = [0] * len(blocks)
    rest = limit - _climb_hulls(blocks, curves, taken, limit)
    # The hull's next step may be too large where a smaller one, off the hull, still fits.
    while True:
        gains = [
            (least, b, step)
            for b, (least, step) in enumerate(
                _next(curve.least, taken[b], rest // max(1, blocks[b].rows))
                for b, curve in enumerate(curves)
            )
            if step
        ]
        gains = [(gain / (blocks[b].rows * step), b, step) for gain, b, step in gains]
        if not gains:
            break
        _, b, step = max(gains, key=lambda entry: (entry[0], -entry[1]))
        taken[b] += step
        rest -= step * blocks[b].rows
    return [curve.bits(n) for curve, n in zip(curves, taken, strict=True)]


def _climb_hulls(
    blocks: Sequence[CodeCost], curves: Sequence[_Curve], taken: list[int], limit: int
) -> int:
    """Take steps of the curves' hulls by gain a byte while they fit; returns what was spent."""
    steps: list[tuple[float, int, int, int]] = []
    hulls = [_hull(curve.least) for curve in curves]

    def push(b: int, corner: int) -> None:
        hull = hulls[b]
        if corner + 1 < len(hull):
            here, there = hull[corner], hull[corner + 1]
            gain = curves[b].least[here] - curves[b].least[there]
            price = (there - here) * blocks[b].rows
            heapq.heappush(steps, (-gain / price, b, corner + 1, price))

    for b in range(len(blocks)):
        push(b, 0)
    spent = 0
    while steps:
        _, b, corner, price = heapq.heappop(steps)
        if spent + price <= limit:
            spent += price
            taken[b] = hulls[b][corner]
            push(b, corner)
    return spent


def _next(least: _Floats, at: int, room: int) -> tuple[float, int]:
    """The best gain a byte within ``room`` more bytes a row: (gain, bytes), or (0, 0)."""
    reach = min(len(least) - 1 - at, room)
    if reach < 1:
        return 0.0, 0
    gain = least[at] - least[at + 1 : at + reach + 1]
    a_byte = gain / np.arange(1, reach + 1)
    best = int(a_byte.argmax())
    return (float(gain[best]), best + 1) if gain[best] > 0 else (0.0, 0)


@dataclass(frozen=True, eq=False)
class _Curve:
    """least: (C + 1,) the least error by bytes a row. choice: (C, 8 C + 1) the bits of column c
    where the columns up to it have so many bits together."""

    least: _Floats
    choice: NDArray[np.uint8]

    def bits(self, whole: int) -> NDArray[np.uint8]:
        """Of each column, at ``whole`` bytes a row."""
        rest = 8 * whole
        found = np.zeros(len(self.choice), dtype=np.uint8)
        for column in range(len(self.choice) - 1, -1, -1):
            found[column] = self.choice[column, rest]
            rest -= int(found[column])
        assert row_bytes(found) <= whole
        return found


def prefix_curves(error: _Floats) -> list[_Floats]:
    """For the first 1, 2, ... C columns: the least error by bytes a row, (columns + 1,)."""
    return [least[: 8 * c + 1 : 8].copy() for c, (least, _) in enumerate(_columns(error), 1)]


def _curve(error: _Floats) -> _Curve:
    found = list(_columns(error))
    return _Curve(found[-1][0][::8], np.stack([choice for _, choice in found]))


def _columns(error: _Floats) -> Iterator[tuple[_Floats, NDArray[np.uint8]]]:
    """Column by column: the least error up to it by bits, and its own share of them."""
    columns = error.shape[1]
    most = MAX_BITS * columns
    least = np.zeros(most + 1)
    for column in range(columns):
        before = least
        least = before + error[0, column]
        choice = np.zeros(most + 1, dtype=np.uint8)
        for bits in range(1, MAX_BITS + 1):
            tried = before[: most + 1 - bits] + error[bits, column]
            better = tried < least[bits:]
            choice[bits:][better] = bits
            least[bits:] = np.where(better, tried, least[bits:])
        yield least, choice  # least falls: bits that are left over cost nothing


def _hull(least: _Floats) -> list[int]:
    """The corners of the lower convex hull, from 0 bytes to where nothing is gained any more."""
    corners: list[int] = [0]
    end = int(least.argmin())
    for n in range(1, end + 1):
        while len(corners) > 1:
            a, b = corners[-2], corners[-1]
            if (least[a] - least[b]) * (n - b) > (least[b] - least[n]) * (b - a):
                break
            corners.pop()
        corners.append(n)
    return corners
