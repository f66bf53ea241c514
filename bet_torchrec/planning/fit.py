"""Exact fit of size profiles to a budget, for many candidates at once and without touching a row.

A profile says how many rows of a table have at least a given width once its sizes are scaled by
lambda; sizes fall with rank, so these numbers *are* the plan. Every table's lambda is found by
bracketed root finding on its share of the budget, the numbers are rounded to whole rows, and what
rounding left over is handed out (or taken back) row by row until no single step fits any more.

Shapes: m candidates, F tables, W widths, P = m * F (candidate, table) problems.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from .root import solve_increasing
from .settle import Steps, settle

RELATIVE_TOLERANCE = 5e-4  # of a table's share; the remainder is handed out exactly


@dataclass(frozen=True, eq=False, kw_only=True)
class FitSpace:
    """What a fit may choose from.

    widths: (W,) int64 ascending, the first is every row's minimum.
    rows: (F,) int64. depth: (F,) how many of the widths a table may use (its own embedding_dim).
    costs: (precisions, W) int64, what a row costs. limit: what all rows may cost together.
    table_alignment: a bucket's total is rounded up to this (1: not at all).
    bases: (F, W) int64 rising, what a table's basis costs once its widest row has this width; None
        where no table has one.
    """

    widths: Tensor
    rows: Tensor
    depth: Tensor
    costs: Tensor
    limit: int
    table_alignment: int = 1
    bases: Tensor | None = None

    def steps(self, precision: Tensor) -> Steps:
        """The cost of each step from a width to the next, for precision indices (m, F)."""
        allowed = torch.arange(len(self.widths)) < self.depth[:, None]  # F, W
        alike = len(self.costs) == 1
        costs = self.costs[0].expand(*precision.shape, -1) if alike else self.costs[precision]
        return Steps(
            row_cost=costs,
            allowed=allowed.expand(*precision.shape, -1),
            table_alignment=self.table_alignment,
            alike=alike and self.bases is None,
            bases=self.bases,
        )


class Profile(Protocol):
    """P size profiles, one a (candidate, table) pair, flattened candidate-major."""

    def log_span(self) -> tuple[Tensor, Tensor]:
        """(P,), (P,): log lambda at which every row is at its minimum, and at its maximum."""

    def log_mean(self) -> Tensor:
        """(P,) log of the mean unscaled size, roughly; a first guess starts from it."""

    def rows_at_least(self, log_scale: Tensor, which: Tensor) -> Tensor:
        """(n, W), in log_scale's precision: how many rows of problem which[i], sizes scaled,
        reach each width; entry 0 is not looked at."""


def fit(
    space: FitSpace, profile: Profile, *, shares: Tensor, precision: Tensor, exact: bool = True
) -> Tensor:
    """Fit m candidates to the budget: never over it, and no affordable step of a row left.

    Args:
        shares: (m, F) positive, each table's share of the budget; what a table cannot use
            (or needs beyond its share, for its minimum) is taken from the others in proportion.
        precision: (m, F) int64 index into ``space.costs``.
        exact: see ``settle``.

    Returns:
        (m, F, W) int64: the number of rows of size >= widths[k]; entry 0 counts all rows.
    """
    m, tables = shares.shape
    steps = space.steps(precision)
    # few problems differ in what steps cost, so the cost of all is one small product
    kind = (precision * tables + torch.arange(tables)).flatten()
    each = space.steps(torch.arange(len(space.costs))[:, None].expand(-1, tables))
    each_cost = (each.step_cost * each.allowed).flatten(0, 1)
    distinct, mine = each_cost.to(torch.float32).unique(dim=0, return_inverse=True)
    mine = mine[kind]
    least = space.rows * steps.row_cost[..., 0]
    most = space.rows * each_cost.sum(-1)[kind].view(m, tables)
    opening = None
    if space.bases is not None:
        opening = space.bases.diff(dim=-1, prepend=torch.zeros_like(space.bases[:, :1]))
        opening = opening * (torch.arange(len(space.widths)) < space.depth[:, None])
        least, most = least + opening[:, 0], most + opening.sum(-1)
        opening = opening.to(torch.float32)
    target = _waterfill(shares, least.double(), most.double(), total=float(space.limit)).flatten()
    rows = space.rows.to(torch.float32).repeat(m)

    def cost(log_scale: Tensor, which: Tensor) -> Tensor:
        counts = profile.rows_at_least(log_scale, which)
        counts[:, 0] = rows[which]
        paid = (counts @ distinct.T).gather(-1, mine[which, None]).squeeze(-1)
        if opening is not None:  # a jump where the first row reaches a width
            paid = paid + ((counts >= 0.5) * opening[which % tables]).sum(-1)
        return paid

    # single precision finds the scale; the numbers of rows at it are then exact
    low, high = profile.log_span()
    mean_width = target / rows * space.widths[-1] / space.costs[precision.flatten(), -1]
    scale = solve_increasing(
        cost,
        low.float(),
        high.float(),
        target.float(),
        start=(mean_width.log() - profile.log_mean()).float(),
        ends=(least.flatten().float(), most.flatten().float()),
        tolerance=(RELATIVE_TOLERANCE * target).float(),
    )
    counts = profile.rows_at_least(scale.double(), torch.arange(m * tables))
    boundaries = (counts + 0.5).floor_().to(torch.int64).view(m, tables, -1)
    boundaries = torch.where(steps.allowed, boundaries, 0).clamp_(min=0)
    boundaries = torch.minimum(boundaries, space.rows[:, None])
    boundaries[..., 0] = space.rows
    return settle(boundaries.cummin(-1).values, steps, space.limit, exact=exact)


def minimum_cost(space: FitSpace, precision: Tensor) -> Tensor:
    """(m,) cost of the smallest plan there is, every row at its smallest width."""
    least = torch.zeros(*precision.shape, len(space.widths), dtype=torch.int64)
    least[..., 0] = space.rows
    return space.steps(precision).cost(least)


def _waterfill(shares: Tensor, lowest: Tensor, highest: Tensor, *, total: float) -> Tensor:
    """Split total by shares, within each table's possible cost: clip(mu * share, low, high)."""
    shares = shares.to(torch.float64).clamp(min=1e-12)
    low = torch.zeros(len(shares), 1, dtype=torch.float64)
    high = (highest / shares).amax(-1, keepdim=True).clamp(min=total)
    for _ in range(60):
        middle = (low + high) / 2
        over = (middle * shares).clamp(lowest, highest).sum(-1, keepdim=True) > total
        low, high = torch.where(over, low, middle), torch.where(over, middle, high)
    return (low * shares).clamp(lowest, highest)
