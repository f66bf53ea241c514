"""Widths by marginal gain under a budget: of every block of rows, the prefix that pays.

At a price lambda a byte a block takes the width with the largest gain - lambda * cost; lambda is
found by bisection. That is the greedy choice by gain per cost after pooling adjacent violators (a
width off the concave hull of its block's gains never wins at any price). Where widths must fall
with the rank, because ids are ranks and a bucket is a range of them, the same optimum over falling
widths, by dynamic programming over the blocks: exact at every price.

Shapes: G blocks of a table in rank order, W widths.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ....errors import InvalidInputError

_HALVINGS = 60


@dataclass(frozen=True, eq=False)
class Gains:
    """One table. gain: float64 (G, W), what a block's rows together gain at each width over
    nothing, rising with the width. rows: int64 (G,). depth: how many of the widths it may use.
    falling: whether widths must fall from block to block.
    """

    gain: NDArray[np.float64]
    rows: NDArray[np.int64]
    depth: int
    falling: bool = True

    def __post_init__(self) -> None:
        if self.gain.ndim != 2 or self.rows.shape != self.gain.shape[:1]:
            raise InvalidInputError(
                "gain should be (blocks, widths) and rows (blocks,), got shapes "
                f"{self.gain.shape} and {self.rows.shape}"
            )
        if not np.isfinite(self.gain).all():
            raise InvalidInputError("gains should be finite numbers, got others")


def choose_widths(
    tables: Sequence[Gains], row_costs: NDArray[np.int64], limit: int
) -> list[NDArray[np.int64]]:
    """The index of each block's width, int64 (G,), at the lowest price that fits the limit.

    row_costs: int64 (W,), rising. limit: what all rows may cost; at least what they do at their
    narrowest. What is left to the limit is less than the blocks that would change next.
    """

    def at(price: float) -> list[NDArray[np.int64]]:
        return [_at_price(table, row_costs, price) for table in tables]

    def cost(chosen: list[NDArray[np.int64]]) -> int:
        pairs = zip(tables, chosen, strict=True)
        return sum(int((table.rows * row_costs[own]).sum()) for table, own in pairs)

    best = at(0.0)
    if cost(best) <= limit:
        return best
    # Where a unit of cost is dearer than all that can be gained, every row is at its cheapest.
    low, high = 0.0, 2 * max(float(table.gain.max(initial=0.0)) for table in tables) + 1
    best = at(high)
    if cost(best) > limit:
        return [np.zeros_like(table.rows) for table in tables]
    for _ in range(_HALVINGS):
        # Gains may be of any magnitude: halve the exponent first, then the number.
        middle = np.sqrt(low * high) if low > 0 else high / 16
        if not low < middle < high:
            break
        tried = at(middle)
        if cost(tried) <= limit:
            best, high = tried, middle
        else:
            low = middle
    return best


def _at_price(table: Gains, row_costs: NDArray[np.int64], price: float) -> NDArray[np.int64]:
    worth = table.gain[:, : table.depth] - price * (
        table.rows[:, None] * row_costs[None, : table.depth]
    ).astype(np.float64)
    if not table.falling:
        return worth.argmax(axis=1)
    blocks, widths = worth.shape
    # best[k]: of the blocks so far, the last at width k and none before it narrower.
    came = np.zeros((blocks, widths), dtype=np.int64)
    best = worth[0]
    for block in range(1, blocks):
        # The best of widths k and above, and which: a running maximum from the right.
        backwards = best[::-1]
        top = np.maximum.accumulate(backwards)
        places = np.where(backwards >= top, np.arange(widths), 0)
        which = widths - 1 - np.maximum.accumulate(places)
        came[block] = which[::-1]
        best = worth[block] + top[::-1]
    chosen = np.zeros(blocks, dtype=np.int64)
    chosen[-1] = best.argmax()
    for block in range(blocks - 1, 0, -1):
        chosen[block - 1] = came[block, chosen[block]]
    return chosen
