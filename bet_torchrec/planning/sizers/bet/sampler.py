"""Candidates: a size for every row, drawn within the budget (BET Section 3.2, Eq. 4-6).

A candidate's sizes are order statistics of i.i.d. draws, sorted by rank. For N rows they are, up
to sampling noise, the quantiles at 1 - (rank - 1/2) / N, so the number of rows that reach a width
follows from the distribution's survival function alone: O(widths) a candidate, whatever N is.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ....errors import InvalidInputError
from ...counts import RowCounts
from ...fit import FitSpace, Profile, fit
from ...settle import bucket_rows, settle
from .families import PAPER_FAMILIES, Family, Knots
from .shares import Dirichlet, Shares, move_mass


@dataclass(frozen=True, eq=False, kw_only=True)
class Candidates:
    """m candidates over F tables and W widths.

    boundaries: (m, F, W) int64, rows of size >= widths[k]. precision: (m, F) index into the
    budget's precisions. family: (m, F) index; beta: (m, F).
    shares: (m, F), what each table takes of what all take; sums to 1.
    """

    boundaries: Tensor
    precision: Tensor
    family: Tensor
    beta: Tensor
    shares: Tensor

    def __len__(self) -> int:
        return len(self.boundaries)

    def __getitem__(self, which: Sequence[int] | Tensor) -> Candidates:
        index = torch.as_tensor(which)
        return Candidates(**{name: value[index] for name, value in vars(self).items()})


@dataclass(frozen=True, eq=False)
class Sampler:
    """Draws candidates that fit.

    draws: "quantiles" (closed form) or "iid" (the paper's literal draws, O(rows) each).
    shares: how the tables' shares are drawn, see ``shares.py``.
    alike: the share of fresh candidates in which all tables have one family, beta and precision.
    exact: spend the budget to the last byte; without it candidates come much faster where tables
        are aligned, and the one that is taken is to be ``settled``.
    """

    space: FitSpace
    counts: Sequence[RowCounts]
    families: Sequence[Family] = PAPER_FAMILIES
    draws: Literal["quantiles", "iid"] = "quantiles"
    shares: Shares = field(default_factory=Dirichlet)
    alike: float = 0.0
    exact: bool = True

    def __call__(self, m: int, rng: np.random.Generator) -> Candidates:
        """Draw m candidates: shares, then a family, a beta and a precision a table."""
        tables = len(self.counts)
        shares = torch.from_numpy(self.shares(m, self._rows(), self._lookups(), rng))
        family = torch.from_numpy(rng.integers(len(self.families), size=(m, tables)))
        beta = torch.from_numpy(rng.uniform(1e-6, 1.0, size=(m, tables)))
        precision = torch.from_numpy(rng.integers(len(self.space.costs), size=(m, tables)))
        if self.alike:
            drawn = (family, beta, precision)
            same = torch.from_numpy(rng.random((m, 1)) < self.alike)
            family, beta, precision = (torch.where(same, x[:, :1], x) for x in drawn)
        beta = beta * self._beta_max()[family]
        return self.fit(shares=shares, family=family, beta=beta, precision=precision, rng=rng)

    def around(self, parents: Candidates, m: int, rng: np.random.Generator) -> Candidates:
        """Draw m candidates near the parents: some budget moves between few tables, and a few
        tables get another family, beta or precision. Not in the paper, whose only local step is
        strategy III."""
        tables, families = len(self.counts), len(self.families)
        parent = parents[torch.from_numpy(rng.integers(len(parents), size=m))]
        widest = parent.boundaries.gather(-1, (self.space.depth - 1).expand(m, -1)[..., None])
        room = (widest[..., 0] < self.space.rows).numpy()
        shares = torch.from_numpy(move_mass(parent.shares.numpy(), room, rng))
        shape, few = (m, tables), min(0.3, 2 / tables)
        anew = torch.from_numpy(rng.random(shape) < few)
        drawn = torch.from_numpy(rng.integers(families, size=shape))
        family = torch.where(anew, drawn, parent.family)
        touched = torch.from_numpy(rng.random(shape) < 2 * few)
        shaken = parent.beta * torch.from_numpy(np.exp(rng.normal(0, 0.4, shape)))
        beta_max = self._beta_max()[family]
        fresh = torch.from_numpy(rng.uniform(1e-6, 1.0, shape)) * beta_max
        beta = torch.where(anew, fresh, torch.where(touched, shaken, parent.beta))
        other = torch.from_numpy(rng.random(shape) < few / 2)
        drawn = torch.from_numpy(rng.integers(len(self.space.costs), size=shape))
        return self.fit(
            shares=shares,
            family=family,
            beta=torch.minimum(beta, beta_max),
            precision=torch.where(other, drawn, parent.precision),
            rng=rng,
        )

    def shaped(
        self, shares: Tensor, precision: int, *, family: str = "flat", beta: float = 0.5
    ) -> Candidates:
        """One candidate of these shares (F,), each table's sizes of one family; equal ones."""
        return self._alike(shares, precision, family, beta)

    def by_count(self, alpha: float, precision: int) -> Candidates:
        """One candidate whose sizes follow (count + 1)^alpha, at one scale over all tables."""
        widths, cost = self.space.widths.double(), self.space.costs[precision].double()
        top = widths[self.space.depth - 1]
        a_width = float(cost[-1] / widths[-1])
        powers = [torch.tensor(c.values).double().add(1).pow(alpha) for c in self.counts]
        rows = [torch.tensor(c.multiplicity).double() for c in self.counts]

        def costs(scale: float) -> Tensor:
            pairs = zip(powers, rows, top, strict=True)
            return torch.stack([(n * (scale * p).clamp(max=d)).sum() for p, n, d in pairs])

        low, high = 0.0, float(widths[-1])
        for _ in range(50):
            middle = (low + high) / 2
            fits = float(costs(middle).sum()) * a_width <= self.space.limit
            low, high = (middle, high) if fits else (low, middle)
        return self._alike(costs(high), precision, "count_power", alpha)

    def flat(self, boundaries: Tensor, precision: int) -> Candidates:
        """Boundaries (1, F, W) that are there already, described as equal sizes."""
        shape = boundaries.shape[:2]
        return self._candidates(
            boundaries,
            precision=torch.full(shape, precision),
            family=torch.full(shape, self._index("flat")),
            beta=torch.full(shape, 0.5, dtype=torch.float64),
        )

    def full_costs(self, precision: int) -> Tensor:
        """(F,) int64: what each table costs with every row at its full width."""
        rows = self.space.rows * self.space.costs[precision][self.space.depth - 1]
        if self.space.bases is None:
            return rows
        return rows + self.space.bases.gather(-1, self.space.depth[:, None] - 1).squeeze(-1)

    def fit(
        self,
        *,
        shares: Tensor,
        family: Tensor,
        beta: Tensor,
        precision: Tensor,
        rng: np.random.Generator | None = None,
    ) -> Candidates:
        """The candidates that these parameters, all (m, F), describe. rng: for iid draws only."""
        profile: Profile = _Quantiles(self, family.flatten(), beta.flatten())
        if self.draws == "iid":
            if rng is None:
                raise InvalidInputError('draws="iid" needs a random generator; pass rng')
            profile = _Draws(self, family.flatten(), beta.flatten(), rng)
        boundaries = fit(self.space, profile, shares=shares, precision=precision, exact=self.exact)
        return self._candidates(boundaries, precision=precision, family=family, beta=beta)

    def settled(self, candidates: Candidates) -> Candidates:
        """The same, the budget spent to the last byte."""
        steps = self.space.steps(candidates.precision)
        return self._candidates(
            settle(candidates.boundaries, steps, self.space.limit),
            precision=candidates.precision,
            family=candidates.family,
            beta=candidates.beta,
        )

    def _candidates(self, boundaries: Tensor, *, precision: Tensor, **more: Tensor) -> Candidates:
        """With the shares that the tables really have, so that what is moved later is there."""
        cost = (bucket_rows(boundaries) * self.space.costs[precision]).sum(-1).double() + 1e-9
        if self.space.bases is not None:
            cost += self.space.steps(precision).basis_cost(boundaries)
        shares = cost / cost.sum(-1, keepdim=True)
        return Candidates(boundaries=boundaries, precision=precision, shares=shares, **more)

    def _alike(self, shares: Tensor, precision: int, family: str, beta: float) -> Candidates:
        shape = (1, len(shares))
        if family not in [f.name for f in self.families]:
            family = "flat"
        return self.fit(
            shares=(shares / shares.sum())[None],
            family=torch.full(shape, self._index(family)),
            beta=torch.full(shape, beta, dtype=torch.float64),
            precision=torch.full(shape, precision),
            rng=np.random.default_rng(0),
        )

    def _index(self, family: str) -> int:
        return [f.name for f in self.families].index(family)

    def _beta_max(self) -> Tensor:
        return torch.tensor([f.beta_max for f in self.families], dtype=torch.float64)

    @cached_property
    def knots(self) -> Knots:
        """The tables' counts, for families that use them."""
        return Knots.of(self.counts)

    def _rows(self) -> NDArray[np.float64]:
        return np.array([c.rows for c in self.counts], dtype=np.float64)

    def _lookups(self) -> NDArray[np.float64]:
        return np.array([c.total for c in self.counts], dtype=np.float64)


class _Quantiles:
    """The fit's profile in closed form. Problems are grouped so that a family runs once."""

    def __init__(self, sampler: Sampler, family: Tensor, beta: Tensor) -> None:
        self._families, self._family, self._beta = sampler.families, family, beta
        self._log_widths = sampler.space.widths.clamp(min=1e-3).to(torch.float64).log()
        self._table = torch.arange(len(family)) % len(sampler.counts)
        self._rows = sampler.space.rows.to(torch.float64)[self._table]
        self._knots = {dtype: sampler.knots.to(dtype) for dtype in (torch.float32, torch.float64)}

    def _groups(self, which: Tensor, dtype: torch.dtype) -> Iterator[_Group]:
        """For each family that problems ``which`` have: them, by place in ``which``."""
        family = self._family[which]
        for f, each in enumerate(self._families):
            n = (family == f).nonzero().flatten()
            if len(n):
                mine = which[n]
                knots = self._knots[dtype].take(self._table[mine]) if each.uses_counts else None
                yield _Group(each, n, self._beta[mine, None].to(dtype), knots)

    def _log_quantiles(self, log_u: Tensor) -> Tensor:
        """(P, q) for (P, q)."""
        result = torch.empty_like(log_u)
        for family, n, beta, knots in self._groups(torch.arange(len(log_u)), torch.float64):
            result[n] = family.log_quantile(log_u[n], beta, knots)
        return result

    def log_span(self) -> tuple[Tensor, Tensor]:
        half = 0.5 / self._rows
        ends = self._log_quantiles(torch.stack([torch.log1p(-half), half.log()], -1))
        # one part in a hundred beyond, so that rounding at the ends cannot matter
        return self._log_widths[0] - ends[:, 0] - 0.01, self._log_widths[-1] - ends[:, 1] + 0.01

    def log_mean(self) -> Tensor:
        levels = ((torch.arange(8) + 0.5) / 8).double().log()
        return self._log_quantiles(levels.repeat(len(self._rows), 1)).logsumexp(-1) - math.log(8)

    def rows_at_least(self, log_scale: Tensor, which: Tensor) -> Tensor:
        log_x = self._log_widths.to(log_scale.dtype) - log_scale[:, None]
        result = torch.empty_like(log_x)
        for family, n, beta, knots in self._groups(which, log_scale.dtype):
            result[n] = family.survival(log_x[n], beta, knots)
        return result.mul_(self._rows[which, None].to(log_scale.dtype))


class _Group(NamedTuple):
    family: Family
    problems: Tensor
    beta: Tensor  # (n, 1)
    knots: Knots | None


class _Draws:
    """The fit's profile by literal i.i.d. draws, inverse-transformed and sorted."""

    def __init__(
        self, sampler: Sampler, family: Tensor, beta: Tensor, rng: np.random.Generator
    ) -> None:
        self._log_widths = sampler.space.widths.clamp(min=1e-3).to(torch.float64).log()
        self._sorted: list[Tensor] = []
        for i, (f, b) in enumerate(zip(family.tolist(), beta, strict=True)):
            t = i % len(sampler.counts)
            uniforms = rng.standard_exponential(sampler.counts[t].rows)  # minus their logs
            log_u = -torch.from_numpy(uniforms)[None]
            knots = sampler.knots.take(torch.tensor([t]))
            draws = sampler.families[f].log_quantile(log_u, b.view(1, 1), knots)
            self._sorted.append(draws[0].sort().values)

    def log_span(self) -> tuple[Tensor, Tensor]:
        top = torch.stack([s[-1] for s in self._sorted])
        bottom = torch.stack([s[0] for s in self._sorted])
        return self._log_widths[0] - top - 0.01, self._log_widths[-1] - bottom + 0.01

    def log_mean(self) -> Tensor:
        return torch.stack([s.logsumexp(0) - math.log(len(s)) for s in self._sorted])

    def rows_at_least(self, log_scale: Tensor, which: Tensor) -> Tensor:
        log_x = self._log_widths - log_scale[:, None].double()
        mine = [self._sorted[int(p)] for p in which]
        below = [torch.searchsorted(s, x) for s, x in zip(mine, log_x, strict=True)]
        rows = torch.tensor([len(s) for s in mine])
        return (rows[:, None] - torch.stack(below)).to(log_scale.dtype)


def concatenate(parts: Sequence[Candidates]) -> Candidates:
    """One batch of candidates from several."""
    return Candidates(
        **{name: torch.cat([vars(p)[name] for p in parts]) for name in vars(parts[0])}
    )
