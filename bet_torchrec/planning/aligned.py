"""Handing out the last bytes where every bucket's cost is rounded up, in plain integers.

What a row's step costs then depends on how full the two buckets' last blocks are, so one step
after the other is looked at; many are free.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .settle import Steps


def hand_out_aligned(boundaries: Tensor, steps: Steps, limit: int) -> None:
    """Raise one candidate's boundaries (F, W), in place, until no single step of a row fits."""
    cost, allowed = steps.row_cost[0].tolist(), steps.allowed[0].tolist()
    tables = [
        _Table(reach, own, may, steps.table_alignment)
        for reach, own, may in zip(boundaries.tolist(), cost, allowed, strict=True)
    ]
    rest = limit - int(steps.cost(boundaries[None]))

    def sweep(*, opening: bool) -> bool:
        """Raise every boundary as far as it goes; whether any went."""
        nonlocal rest
        changed = False
        for k in reversed(range(1, len(cost[0]))):  # the most frequent rows come first
            for table in tables:
                paid = table.raise_(k, rest, opening=opening)
                if paid is not None:
                    rest -= paid
                    changed = True
        return changed

    def fill() -> None:
        nonlocal rest
        for table in tables:
            rest -= table.fill()

    # a new bucket is a new table: only where those that are there can take no more
    fill()
    while sweep(opening=False) or sweep(opening=True):
        fill()
    boundaries.copy_(torch.tensor([table.reach for table in tables]))


class _Table:
    """One table's boundaries and what its buckets cost."""

    def __init__(
        self, reach: list[int], cost: Sequence[int], allowed: Sequence[bool], align: int
    ) -> None:
        self.reach, self.cost, self.allowed, self.align = reach, cost, allowed, align
        self.rows = [a - b for a, b in zip(reach, [*reach[1:], 0], strict=True)]

    def _blocks(self, k: int, rows: int) -> int:
        return -(-rows * self.cost[k] // self.align)

    def price(self, k: int, j: int, n: int) -> int:
        """Of raising n rows from width j to width k, alignment and all."""
        before = self._blocks(k, self.rows[k]) + self._blocks(j, self.rows[j])
        after = self._blocks(k, self.rows[k] + n) + self._blocks(j, self.rows[j] - n)
        return (after - before) * self.align

    def move(self, k: int, j: int, n: int) -> int:
        """Raise n rows from j to k, nothing being between; what it costs."""
        paid = self.price(k, j, n)
        self.rows[k] += n
        self.rows[j] -= n
        for i in range(j + 1, k + 1):
            self.reach[i] += n
        return paid

    def raise_(self, k: int, rest: int, *, opening: bool) -> int | None:
        """Raise boundary k as far as rest pays for; what it cost, None if it stayed."""
        room = self.rows[k - 1]
        if not room or not self.allowed[k] or not (self.rows[k] or opening):
            return None
        # the price is within two alignments of n steps
        step = self.cost[k] - self.cost[k - 1]
        tries = [(rest + i * self.align) // step for i in (2, 1, 0, -1, -2)] if step else [room]
        for n in (*(min(n, room) for n in tries), 1):
            if n > 0 and self.price(k, k - 1, n) <= rest:
                return self.move(k, k - 1, n)
        return None

    def fill(self) -> int:
        """Rows that fit into a wider bucket's last block for nothing; what that saves, negative.

        They may come from several widths below, as dropped rows do: step by step they would have
        to pay for a bucket that nobody needs.
        """
        saved, k = 0, len(self.rows) - 1
        while k > 0:
            j = next((i for i in reversed(range(k)) if self.rows[i]), None)
            if j is None:
                break
            if self.rows[k] and self.cost[k] > 0:
                free = self._blocks(k, self.rows[k]) * self.align // self.cost[k] - self.rows[k]
                n = min(free, self.rows[j])
                if n > 0 and self.price(k, j, n) <= 0:
                    saved += self.move(k, j, n)
                    if not self.rows[j]:
                        continue  # the next narrower rows may fit as well
            k -= 1
        return saved
