"""Any plan on few widths, at least loss, within the same budget. Works on buckets, not on rows."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import replace

from .budget import BITS, Budget, MemoryModel
from .feasible import allowed_widths, require_feasible
from .table_plan import Bucket, TablePlan


def coarsen_tables(
    tables: Sequence[TablePlan], widths: Sequence[int], budget: Budget
) -> tuple[TablePlan, ...]:
    """See ``SizePlan.coarsen``. A bucket keeps the precision of the old one nearest in width.

    Rows start at the allowed width below their size (at the smallest there is, if none is below);
    if that is too much, the lowest ranks give way. Then rows go up to the width above, those
    first that avoid most change of size a byte. Only where rows were wider than the widest allowed
    width can anything be left after that; it goes to the highest ranks.
    """
    used = {table.name: {bucket.precision for bucket in table.buckets} for table in tables}
    require_feasible(tables, budget, widths, precisions=used)
    limit = budget.limit(tables) - sum(
        MemoryModel.for_budget(budget).id_map_cost(table.rows)
        for table in tables
        if table.order is not None
    )
    drafts = [_TableDraft(table, allowed_widths(table, widths), budget) for table in tables]
    if sum(draft.smallest() for draft in drafts) > limit:
        # a table of several precisions whose narrow rows are the dear ones
        for draft in drafts:
            draft.use_cheapest_precision()
    rest, emptied = _take_back(drafts, limit - sum(draft.cost() for draft in drafts))
    moves = [(*move, draft) for draft in drafts for move in draft.moves()]
    for _, k, rows, draft in sorted(moves, key=lambda move: -move[0]):
        rest -= draft.raise_(k, rows, rest)
    if emptied or any(draft.capped for draft in drafts):
        rest = _top_up(drafts, rest)
    return tuple(draft.plan() for draft in drafts)


class _TableDraft:
    """One table's rows on the allowed widths: rows[k] of widths[k], changed in place."""

    def __init__(self, table: TablePlan, widths: Sequence[int], budget: Budget) -> None:
        self.table, self.widths = table, tuple(widths)
        self.model = MemoryModel.for_budget(budget)
        self.precision = [
            min(table.buckets, key=lambda b: (abs(b.width - w), -b.width)).precision for w in widths
        ]
        self._price_rows()
        self.bases = [self.model.basis_cost(table.basis, w, table.embedding_dim) for w in widths]
        self.rows = [0] * len(self.widths)
        for bucket in table.buckets:
            self.rows[self._below(bucket.width)] += bucket.rows
        self.capped = table.buckets[0].width > self.widths[-1]

    def _price_rows(self) -> None:
        pairs = zip(self.widths, self.precision, strict=True)
        self.row_cost = [self.model.row_cost(width, precision) for width, precision in pairs]

    def use_cheapest_precision(self) -> None:
        """One precision throughout: that of the table's in which its smallest plan costs least."""
        used = {bucket.precision for bucket in self.table.buckets}
        cheapest = min(used, key=lambda p: (self._all_at_smallest(p), BITS[p], p))
        self.precision = [cheapest] * len(self.widths)
        self._price_rows()

    def _all_at_smallest(self, precision: str) -> int:
        return self.bases[0] + self.model.bucket_cost(self.widths[0], self.table.rows, precision)

    def smallest(self) -> int:
        """What it costs with every row at the smallest width."""
        return self._all_at_smallest(self.precision[0])

    def lower_all(self) -> None:
        """Every row to the smallest width."""
        self.rows = [self.table.rows] + [0] * (len(self.widths) - 1)

    def _below(self, width: int) -> int:
        return max(bisect_right(self.widths, width) - 1, 0)

    def cost(self) -> int:
        return sum(self._bucket(k, rows) for k, rows in enumerate(self.rows)) + self._basis()

    def _basis(self) -> int:
        """What the axes of its widest rows cost."""
        return self.bases[max(k for k, rows in enumerate(self.rows) if rows)]

    def _bucket(self, k: int, rows: int) -> int:
        return self.model.bucket_cost(self.widths[k], rows, self.precision[k])

    def moves(self) -> list[tuple[float, int, int]]:
        """(change of size avoided a unit of cost, width index to go to, rows) of each old bucket.

        Within two neighbouring widths the widest rows avoid most, so they come first and the
        sizes still fall with rank.
        """
        moves = []
        for bucket in self.table.buckets:
            k = self._below(bucket.width) + 1
            if k == len(self.widths) or bucket.width <= self.widths[k - 1]:
                continue
            avoided = 2 * bucket.width - self.widths[k - 1] - self.widths[k]
            price = self.row_cost[k] - self.row_cost[k - 1]
            moves.append((avoided / price if price > 0 else math.inf, k, bucket.rows))
        return moves

    def price(self, k: int, rows: int) -> int:
        """What it costs to move so many rows from width k - 1 to k, alignment, basis and all."""
        before = self._bucket(k, self.rows[k]) + self._bucket(k - 1, self.rows[k - 1])
        widest = max((j for j, n in enumerate(self.rows) if n and j not in (k - 1, k)), default=0)
        moved = max(widest, k if self.rows[k] + rows else k - 1)
        return (
            self._bucket(k, self.rows[k] + rows)
            + self._bucket(k - 1, self.rows[k - 1] - rows)
            - before
            + self.bases[moved]
            - self._basis()
        )

    def raise_(self, k: int, most: int, rest: int) -> int:
        """Move up to ``most`` rows, as many as ``rest`` pays for, up to width k; what it took."""
        rows = min(most, self.rows[k - 1])
        step = self.row_cost[k] - self.row_cost[k - 1]
        slack = 2 * self.model.table_alignment  # a price is this near to rows * step
        if step > 0:
            rows = min(rows, (rest + slack) // step)
        while rows > 0 and (price := self.price(k, rows)) > rest:
            rows -= max(1, (price - rest - slack) // step) if step > 0 else rows
        if rows <= 0:
            return 0
        price = self.price(k, rows)
        self.rows[k] += rows
        self.rows[k - 1] -= rows
        return price

    def lower(self, k: int, over: int) -> int:
        """Move the fewest rows from width k down that save ``over``, or all; what they save."""
        step = self.row_cost[k] - self.row_cost[k - 1]
        if step <= 0 or not self.rows[k]:
            return 0
        rows = min(self.rows[k], max(1, -(-(over - 2 * self.model.table_alignment) // step)))
        while rows < self.rows[k] and -self.price(k, -rows) < over:
            rows += 1
        saved = -self.price(k, -rows)
        self.rows[k] -= rows
        self.rows[k - 1] += rows
        return saved

    def plan(self) -> TablePlan:
        buckets = [
            Bucket(width, rows, precision)
            for width, rows, precision in zip(self.widths, self.rows, self.precision, strict=True)
            if rows
        ]
        return replace(self.table, buckets=tuple(reversed(buckets)))


def _take_back(drafts: Sequence[_TableDraft], rest: int) -> tuple[int, bool]:
    """Lower rows, the narrowest first, until the plan fits.

    Returns:
        What is left then; and whether it had to start again from the smallest plan, which happens
        where only fewer buckets, hence less padding, make it fit.
    """
    widest = max(len(draft.widths) for draft in drafts)
    limit = rest + sum(draft.cost() for draft in drafts)
    while rest < 0:
        before = [list(draft.rows) for draft in drafts]
        for k in range(1, widest):
            for draft in drafts:
                if rest < 0 and k < len(draft.widths):
                    rest += draft.lower(k, -rest)
        if before == [draft.rows for draft in drafts]:
            for draft in drafts:
                draft.lower_all()
            return limit - sum(draft.cost() for draft in drafts), True
    return rest, False


def _top_up(drafts: Sequence[_TableDraft], rest: int) -> int:
    """Raise rows, the highest ranks first, until no step fits; what is left then."""
    widest = max(len(draft.widths) for draft in drafts)
    raised = True
    while raised:
        raised = False
        for k in range(widest - 1, 0, -1):
            for draft in (draft for draft in drafts if k < len(draft.widths)):
                before = draft.rows[k]
                rest -= draft.raise_(k, draft.rows[k - 1], rest)
                raised |= draft.rows[k] > before
    return rest
