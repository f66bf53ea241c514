"""Candidates: a size for every row, drawn within the budget (BET Section 3.2, Eq. 4-6).

A candidate's sizes are order statistics of i.i.d. draws, sorted by rank. For N rows they are, up
to sampling noise, the quantiles at 1 - (rank - 1/2) / N, so the number of rows that reach a width
follows from the distribution's survival function alone: O(widths) a candidate, whatever N is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ....errors import InvalidInputError
from ...counts import RowCounts
from ...fit import FitSpace, Profile, fit
from ...settle import bucket_rows
from .families import PAPER_FAMILIES, Family
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
    """

    space: FitSpace
    counts: Sequence[RowCounts]
    families: Sequence[Family] = PAPER_FAMILIES
    draws: Literal["quantiles", "iid"] = "quantiles"
    shares: Shares = field(default_factory=Dirichlet)

    def __call__(self, m: int, rng: np.random.Generator) -> Candidates:
        """Draw m candidates: shares, then a family, a beta and a precision a table."""
        tables = len(self.counts)
        shares = torch.from_numpy(self.shares(m, self._rows(), self._lookups(), rng))
        family = torch.from_numpy(rng.integers(len(self.families), size=(m, tables)))
        beta = torch.from_numpy(rng.uniform(1e-6, 1.0, size=(m, tables))) * self._beta_max()[family]
        precision = torch.from_numpy(rng.integers(len(self.space.costs), size=(m, tables)))
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

    def shaped(self, shares: Tensor, precision: int) -> Candidates:
        """One candidate of these shares (F,), equal sizes within each table."""
        return self._alike(shares, precision, "flat", 0.5)

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
        return self.space.rows * self.space.costs[precision][self.space.depth - 1]

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
        boundaries = fit(self.space, profile, shares=shares, precision=precision)
        return self._candidates(boundaries, precision=precision, family=family, beta=beta)

    def _candidates(self, boundaries: Tensor, *, precision: Tensor, **more: Tensor) -> Candidates:
        """With the shares that the tables really have, so that what is moved later is there."""
        cost = (bucket_rows(boundaries) * self.space.costs[precision]).sum(-1).double() + 1e-9
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

    def _rows(self) -> NDArray[np.float64]:
        return np.array([c.rows for c in self.counts], dtype=np.float64)

    def _lookups(self) -> NDArray[np.float64]:
        return np.array([c.total for c in self.counts], dtype=np.float64)


class _Quantiles:
    """The fit's profile in closed form. Problems are grouped so that a family runs once."""

    def __init__(self, sampler: Sampler, family: Tensor, beta: Tensor) -> None:
        self._sampler = sampler
        self._beta = beta
        self._log_widths = sampler.space.widths.clamp(min=1e-3).to(torch.float64).log()
        tables = len(sampler.counts)
        table = torch.arange(len(family)) % tables
        # a family that looks at the counts runs a table, the others once for all tables
        own = torch.tensor([f.uses_counts for f in sampler.families])
        self._kind = family * tables + torch.where(own[family], table, 0)
        self._groups = [
            (int(kind), sampler.families[int(kind) // tables], sampler.counts[int(kind) % tables])
            for kind in self._kind.unique()
        ]
        self._rows = sampler.space.rows.to(torch.float64)[table]

    def log_span(self) -> tuple[Tensor, Tensor]:
        half = 0.5 / self._rows
        low, high = torch.empty_like(half), torch.empty_like(half)
        for kind, family, counts in self._groups:
            n = (self._kind == kind).nonzero().flatten()
            beta = self._beta[n]
            top = family.log_quantile(torch.log1p(-half[n]), beta, counts)
            bottom = family.log_quantile(half[n].log(), beta, counts)
            # one part in a hundred beyond, so that rounding at the ends cannot matter
            low[n] = self._log_widths[0] - top - 0.01
            high[n] = self._log_widths[-1] - bottom + 0.01
        return low, high

    def log_mean(self) -> Tensor:
        levels = ((torch.arange(8) + 0.5) / 8).double().log()
        result = torch.empty_like(self._rows)
        for kind, family, counts in self._groups:
            n = (self._kind == kind).nonzero().flatten()
            beta = self._beta[n].repeat_interleave(8)
            quantiles = family.log_quantile(levels.repeat(len(n)), beta, counts).view(-1, 8)
            result[n] = quantiles.logsumexp(-1) - math.log(8)
        return result

    def rows_at_least(self, log_scale: Tensor, which: Tensor) -> Tensor:
        dtype = log_scale.dtype
        log_widths, kinds = self._log_widths.to(dtype), self._kind[which]
        result = log_scale.new_empty(len(which), len(log_widths))
        for kind, family, counts in self._groups:
            n = (kinds == kind).nonzero().flatten()
            if len(n):
                log_x = log_widths - log_scale[n, None]
                beta, rows = (v[which[n], None].to(dtype) for v in (self._beta, self._rows))
                result[n] = family.survival(log_x, beta, counts).mul_(rows)
        return result


class _Draws:
    """The fit's profile by literal i.i.d. draws, inverse-transformed and sorted."""

    def __init__(
        self, sampler: Sampler, family: Tensor, beta: Tensor, rng: np.random.Generator
    ) -> None:
        self._log_widths = sampler.space.widths.clamp(min=1e-3).to(torch.float64).log()
        self._sorted: list[Tensor] = []
        for i, (f, b) in enumerate(zip(family.tolist(), beta, strict=True)):
            counts = sampler.counts[i % len(sampler.counts)]
            log_u = -torch.from_numpy(rng.standard_exponential(counts.rows))  # log of uniforms
            draws = sampler.families[f].log_quantile(log_u, b.expand(counts.rows), counts)
            self._sorted.append(draws.sort().values)

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
