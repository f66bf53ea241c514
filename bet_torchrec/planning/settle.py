"""The last step of a fit: whole rows, exactly within the limit, and nothing affordable left.

Arrays are (m, F, W): boundaries[..., k] is the number of rows of size >= widths[k]. Raising
boundary k by n moves the n most frequent rows of the bucket below up one width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from .aligned import hand_out_aligned


@dataclass(frozen=True, eq=False, kw_only=True)
class Steps:
    """What rows cost: row_cost (m, F, W) int64, where a table may use a width (m, F, W) bool.

    bases: (F, W) int64, what a table's basis costs beside them, by its widest row; or None.
    """

    row_cost: Tensor
    allowed: Tensor
    table_alignment: int = 1
    alike: bool = False  # all candidates and tables cost the same: nothing is ever copied
    bases: Tensor | None = None

    @cached_property
    def step_cost(self) -> Tensor:
        """(m, F, W) the cost of a row's step from the width before; entry 0 is the minimum's."""
        if self.alike:
            one = self.row_cost[0, 0]
            return one.diff(prepend=one.new_zeros(1)).expand_as(self.row_cost)
        return self.row_cost.diff(dim=-1, prepend=torch.zeros_like(self.row_cost[..., :1]))

    def cost(self, boundaries: Tensor) -> Tensor:
        """(m,) exact, every bucket rounded up to the table alignment, and all bases."""
        rows = self._aligned(bucket_rows(boundaries) * self.row_cost).sum((-1, -2))
        return rows if self.bases is None else rows + self.basis_cost(boundaries).sum(-1)

    def basis_cost(self, boundaries: Tensor) -> Tensor:
        """(m, F) of the bases that these boundaries need."""
        return self._bases(reached(boundaries) - 1)

    def _bases(self, place: Tensor) -> Tensor:
        """(m, F) of tables whose widest rows have widths[place]."""
        assert self.bases is not None
        return self.bases.expand(len(place), -1, -1).gather(-1, place[..., None]).squeeze(-1)

    def opening_cost(self, boundaries: Tensor) -> Tensor:
        """(m, F) what the next width adds to a table's basis; where there is none, -1."""
        deep = reached(boundaries)
        last = self.row_cost.shape[-1] - 1
        open_ = self.allowed.gather(-1, deep.clamp(max=last)[..., None]).squeeze(-1)
        more = self._bases(deep.clamp(max=last)) - self._bases(deep - 1)
        return torch.where(open_ & (deep <= last), more, -1)

    def padding(self, boundaries: Tensor) -> Tensor:
        """(m,) the part of the cost that is alignment."""
        return self.cost(boundaries) - (boundaries * self.step_cost).sum((-1, -2))

    @cached_property
    def _has_free(self) -> bool:
        step, allowed = self.step_cost, self.allowed
        if self.alike:
            step, allowed = step[:1], allowed[:1]
        return bool(((step == 0) & allowed)[..., 1:].any())

    @cached_property
    def _free(self) -> tuple[Tensor, Tensor]:
        """For each width, the first width that costs as much, and the first that costs more."""
        places = torch.arange(self.row_cost.shape[-1]).expand_as(self.row_cost)
        dearer = (self.step_cost > 0) | ~self.allowed
        first = torch.where(dearer, places, 0).cummax(-1).values
        beyond = torch.where(dearer, places, places.shape[-1]).flip(-1).cummin(-1).values.flip(-1)
        return first, torch.nn.functional.pad(beyond[..., 1:], (0, 1), value=places.shape[-1])

    def take_free(self, boundaries: Tensor) -> Tensor:
        """Rows at the widest of the widths that cost the same (rows are aligned to bytes)."""
        if not self._has_free:
            return boundaries.clone()
        return boundaries.gather(-1, self._free[0])

    def removable(self, boundaries: Tensor) -> Tensor:
        """Rows that each paid step could be taken from without a row falling two steps."""
        if not self._has_free:
            rows = bucket_rows(boundaries)
            rows[..., 0] = 0
            return rows
        next_ = torch.nn.functional.pad(boundaries, (0, 1)).gather(-1, self._free[1])
        rows = torch.where(self.step_cost > 0, boundaries - next_, 0)
        rows[..., 0] = 0
        return rows

    def select(self, which: Tensor) -> Steps:
        if self.alike and len(which):
            n = len(which)
            return Steps(
                row_cost=self.row_cost[:1].expand(n, -1, -1),
                allowed=self.allowed[:1].expand(n, -1, -1),
                table_alignment=self.table_alignment,
                alike=True,
            )
        return Steps(
            row_cost=self.row_cost[which],
            allowed=self.allowed[which],
            table_alignment=self.table_alignment,
            bases=self.bases,
        )

    def _aligned(self, cost: Tensor) -> Tensor:
        if self.table_alignment == 1:
            return cost
        return -(-cost // self.table_alignment) * self.table_alignment


def bucket_rows(boundaries: Tensor) -> Tensor:
    """(m, F, W) rows of exactly each width."""
    return boundaries - torch.nn.functional.pad(boundaries[..., 1:], (0, 1))


def reached(boundaries: Tensor) -> Tensor:
    """(m, F) how many of the widths a table's widest row reaches."""
    return (boundaries > 0).sum(-1)


def settle(boundaries: Tensor, steps: Steps, limit: int, *, exact: bool = True) -> Tensor:
    """Boundaries within the limit from ones near it. A limit below the minimum gives the minimum.

    Args:
        exact: hand out the very last bytes too, which takes plain loops where tables are aligned;
            without it a few alignments stay unspent there. Settle again before use.

    Returns:
        (m, F, W) int64; no row can take one more step without going over the limit.
    """
    limits = torch.full((len(boundaries),), limit, dtype=torch.int64)
    if steps.bases is None:
        return _settle_rows(boundaries, steps, limits, exact=exact)
    opened: Tensor | None = boundaries
    while opened is not None:
        boundaries = _settle_within(opened, steps, limits, exact=exact)
        opened = _opened(boundaries, steps, limits)
    return boundaries


def _settle_within(boundaries: Tensor, steps: Steps, limits: Tensor, *, exact: bool) -> Tensor:
    """No basis gets wider than it is: beside what they cost, rows are settled as any."""
    boundaries = boundaries.clone()
    rows_alone = replace(steps, bases=None)
    least = torch.zeros_like(boundaries)
    least[..., 0] = boundaries[..., 0]
    while True:
        # Bases that leave no room even for narrow rows: the dearest loses its last width.
        deep = reached(boundaries)
        shrink = steps._bases(deep - 1) - steps._bases((deep - 2).clamp(min=0))
        over = rows_alone.cost(least) + steps.basis_cost(boundaries).sum(-1) > limits
        over = (over & (shrink.amax(-1) > 0)).nonzero().flatten()
        if not len(over):
            break
        table = shrink[over].argmax(-1)
        boundaries[over, table, deep[over, table] - 1] = 0
    while True:
        deep = reached(boundaries)
        open_ = torch.arange(boundaries.shape[-1]) < deep[..., None]
        own = replace(rows_alone, allowed=steps.allowed & open_)
        rest = limits - steps.basis_cost(boundaries).sum(-1)
        boundaries = _settle_rows(boundaries, own, rest, exact=exact)
        if bool((reached(boundaries) == deep).all()):
            return boundaries  # else a basis became narrower, and what it took is free


def _opened(boundaries: Tensor, steps: Steps, limits: Tensor) -> Tensor | None:
    """One table's first row a width wider, the cheapest there is, where it fits; None nowhere."""
    rest, price = limits - steps.cost(boundaries), steps.opening_cost(boundaries)
    possible = (price >= 0) & (price <= rest[:, None])
    result = None
    for i in possible.any(-1).nonzero().flatten().tolist():
        one, own = steps.select(torch.tensor([i])), boundaries[i : i + 1]
        tries = []
        for t in possible[i].nonzero().flatten().tolist():
            raised = own.clone()
            raised[0, t, int(reached(own)[0, t])] = 1
            tries.append((int((one.cost(raised) - one.cost(own))[0]), t, raised))
        paid, _, raised = min(tries, key=lambda found: found[:2])
        if paid <= int(rest[i]):
            result = boundaries.clone() if result is None else result
            result[i] = raised[0]
    return result


def _settle_rows(boundaries: Tensor, steps: Steps, limits: Tensor, *, exact: bool) -> Tensor:
    """``settle`` where rows are all that costs. limits: (m,) int64."""
    boundaries = steps.take_free(boundaries)
    if steps.table_alignment == 1:
        _hand_out(_take_back(boundaries, steps, limits), steps, limits)
        return boundaries
    # Alignment depends on the plan, so first aim at the limit less what alignment costs now.
    slack = 0
    while True:
        over = (steps.cost(boundaries) > limits).nonzero().flatten()
        if not len(over) or slack > 2 * steps.table_alignment * boundaries[0].numel():
            break
        chosen, some = steps.select(over), boundaries[over]
        aim = limits[over] - chosen.padding(some) - slack
        boundaries[over] = _take_back(some, chosen, aim)
        slack = 2 * slack + steps.table_alignment
    if not exact:
        return _hand_out_roughly(boundaries, steps, limits)
    for i, limit in enumerate(limits.tolist()):
        hand_out_aligned(boundaries[i], steps.select(torch.tensor([i])), limit)
    return boundaries


def _hand_out_roughly(boundaries: Tensor, steps: Steps, limits: Tensor) -> Tensor:
    """What is left but for some alignments, as if rows were not aligned; where that fits."""
    for blocks in (2, 4):
        rest = (limits - steps.cost(boundaries) - blocks * steps.table_alignment).clamp(min=0)
        aim = (boundaries * steps.step_cost).sum((-1, -2)) + rest
        raised = _hand_out(boundaries.clone(), steps, aim)
        fits = steps.cost(raised) <= limits
        boundaries = torch.where(fits[:, None, None], raised, boundaries)
    return boundaries


def _take_back(boundaries: Tensor, steps: Steps, limits: Tensor) -> Tensor:
    """Lower boundaries, narrow steps first, until the unaligned cost is within the limit."""
    over = (boundaries * steps.step_cost).sum((-1, -2)) - limits
    while True:
        which = (over > 0).nonzero().flatten()
        if not len(which):
            return boundaries
        chosen = steps.select(which)
        step, removable = chosen.step_cost, chosen.removable(boundaries[which])
        if not bool(removable.any()):
            return boundaries
        # ascending: rows that are just above the minimum give first
        gain = (removable * step).transpose(-1, -2).flatten(1)
        before = gain.cumsum(-1) - gain
        wanted = over[which, None] - before
        flat_step = step.transpose(-1, -2).flatten(1).clamp(min=1)
        taken = torch.minimum(-(-wanted // flat_step), gain // flat_step).clamp(min=0)
        taken = taken.view(len(which), step.shape[-1], step.shape[-2]).transpose(-1, -2)
        boundaries[which] = chosen.take_free(boundaries[which] - taken)
        over[which] -= (taken * step).sum((-1, -2))


def _hand_out(boundaries: Tensor, steps: Steps, limits: Tensor) -> Tensor:
    """Raise boundaries, widest first, until no step fits. Assumes no alignment, works in place."""
    rest = limits - (boundaries * steps.step_cost).sum((-1, -2))
    which = torch.arange(len(boundaries))
    while True:
        some, chosen = boundaries[which], steps.select(which)
        step = chosen.step_cost
        room = torch.zeros_like(some)
        room[..., 1:] = some[..., :-1] - some[..., 1:]
        fits = chosen.allowed & (step <= rest[which, None, None]) & (room > 0)
        going = fits.flatten(1).to(torch.uint8).amax(-1).bool()  # much faster than any()
        if not bool(going.any()):
            return boundaries
        which, some = which[going], some[going]
        chosen = steps.select(which)
        step = chosen.step_cost
        room = torch.where(fits[going], room[going], 0)
        # descending width, tables side by side, so that the most frequent rows come first
        price = (room * step).flip(-1).transpose(-1, -2).flatten(1)
        before = price.cumsum(-1) - price
        flat_step = step.flip(-1).transpose(-1, -2).flatten(1)
        flat_room = room.flip(-1).transpose(-1, -2).flatten(1)
        affordable = (rest[which, None] - before).clamp(min=0) // flat_step.clamp(min=1)
        raised = torch.minimum(affordable, flat_room)
        raised = raised.view(len(which), step.shape[-1], step.shape[-2]).transpose(-1, -2).flip(-1)
        boundaries[which] = chosen.take_free(some + raised)
        rest[which] -= (raised * step).sum((-1, -2))
