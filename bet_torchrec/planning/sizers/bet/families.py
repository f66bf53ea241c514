"""The distributions that a candidate's sizes are drawn from.

A family describes how sizes fall with rank, up to a scale that the fit to the budget chooses.
Scales span hundreds of orders of magnitude, so everything is in logarithms.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...counts import RowCounts

_SQRT2 = math.sqrt(2.0)


MOST_KNOTS = 256


class Knots(NamedTuple):
    """Tables' counts, as the points of piecewise linear functions; n tables, or one for all.

    log_count: (n, K) log(count + 1), falling. share: (n, K) of the rows that have at least that,
    rising from 0 to 1. Rows of one count are spread evenly up to the next count.
    """

    log_count: Tensor
    share: Tensor

    @classmethod
    def of(cls, counts: Sequence[RowCounts]) -> Knots:
        """One row a table; of more than 256 distinct counts, those that tell most."""
        pairs = [_points(c) for c in counts]
        most = max(len(at) for at, _ in pairs)

        def padded(which: int) -> Tensor:
            rows = [np.pad(pair[which], (0, most - len(pair[which])), "edge") for pair in pairs]
            return torch.from_numpy(np.stack(rows))

        return cls(padded(0), padded(1))

    def take(self, tables: Tensor) -> Knots:
        """One row for each of these tables."""
        return Knots(self.log_count[tables], self.share[tables])

    def to(self, dtype: torch.dtype) -> Knots:
        """In this precision."""
        return Knots(self.log_count.to(dtype), self.share.to(dtype))


def _points(counts: RowCounts) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    at = np.log1p(counts.values.astype(np.float64))
    share = counts.ends / counts.rows
    if len(at) >= MOST_KNOTS:
        # evenly spread over counts, over rows, and over the head of the rows
        third = MOST_KNOTS // 3
        by_count = np.searchsorted(-at, -np.linspace(at[0], at[-1], third))
        by_row = np.searchsorted(share, np.linspace(share[0], 1.0, third))
        by_head = np.searchsorted(share, np.geomspace(share[0], 1.0, third))
        kept = np.unique(np.concatenate([by_count, by_row, by_head, [0, len(at) - 1]]))
        kept = kept[kept < len(at)]
        at, share = at[kept], share[kept]
    return np.concatenate([at[:1] + 1e-3, at]), np.concatenate([[0.0], share])


class Family(Protocol):
    """One shape of sizes with a parameter beta ~ U(0, beta_max)."""

    @property
    def name(self) -> str: ...
    @property
    def beta_max(self) -> float: ...
    @property
    def uses_counts(self) -> bool:
        """Whether the shape depends on the table's counts."""

    def log_quantile(self, log_u: Tensor, beta: Tensor, knots: Knots | None) -> Tensor:
        """(n, q): log of the u-quantile, for log_u (n, q) and beta (n, 1)."""

    def survival(self, log_x: Tensor, beta: Tensor, knots: Knots | None) -> Tensor:
        """(n, W): the share of rows whose unscaled size is at least exp(log_x), beta (n, 1)."""


@dataclass(frozen=True)
class PowerLaw:
    """F(x) = x^beta on [0, 1]; SciPy's powerlaw(a=beta)."""

    beta_max: float = 20.0
    name: str = "power_law"
    uses_counts: bool = False

    def log_quantile(self, log_u: Tensor, beta: Tensor, knots: Knots | None) -> Tensor:
        return log_u / beta

    def survival(self, log_x: Tensor, beta: Tensor, knots: Knots | None) -> Tensor:
        return -torch.expm1(beta * log_x.clamp(max=0.0))


@dataclass(frozen=True)
class TruncatedNormal:
    """The standard normal on [0, beta]; SciPy's truncnorm(0, beta)."""

    beta_max: float = 20.0
    name: str = "truncated_normal"
    uses_counts: bool = False

    def log_quantile(self, log_u: Tensor, beta: Tensor, knots: Knots | None) -> Tensor:
        x = _SQRT2 * torch.erfinv(log_u.exp() * torch.erf(beta / _SQRT2))
        return torch.minimum(x.clamp(min=1e-300), beta).log()

    def survival(self, log_x: Tensor, beta: Tensor, knots: Knots | None) -> Tensor:
        x = torch.minimum(log_x.exp(), beta)
        return 1 - torch.erf(x / _SQRT2) / torch.erf(beta / _SQRT2)


@dataclass(frozen=True)
class TruncatedExponential:
    """The standard exponential on [0, beta]; SciPy's truncexpon(b=beta)."""

    beta_max: float = 5.0
    name: str = "truncated_exponential"
    uses_counts: bool = False

    def log_quantile(self, log_u: Tensor, beta: Tensor, knots: Knots | None) -> Tensor:
        return (-torch.log1p(log_u.exp() * torch.expm1(-beta))).clamp(min=1e-300).log()

    def survival(self, log_x: Tensor, beta: Tensor, knots: Knots | None) -> Tensor:
        x = torch.minimum(log_x.exp(), beta)
        return 1 - torch.expm1(-x) / torch.expm1(-beta)


@dataclass(frozen=True)
class LogNormal:
    """exp of a normal of deviation beta; SciPy's lognorm(s=beta)."""

    beta_max: float = 0.5
    name: str = "log_normal"
    uses_counts: bool = False

    def log_quantile(self, log_u: Tensor, beta: Tensor, knots: Knots | None) -> Tensor:
        return beta * torch.special.ndtri(log_u.exp())

    def survival(self, log_x: Tensor, beta: Tensor, knots: Knots | None) -> Tensor:
        return 0.5 * torch.special.erfc(log_x / (_SQRT2 * beta))


@dataclass(frozen=True)
class CountPower:
    """Size proportional to (count + 1)^beta: the rows' own counts as the shape. Not in the paper.

    Rows of one count are spread evenly up to the next count (see ``Knots``), so that a budget can
    be met within a large group of equal counts.
    """

    beta_max: float = 1.5
    name: str = "count_power"
    uses_counts: bool = True

    def log_quantile(self, log_u: Tensor, beta: Tensor, knots: Knots | None) -> Tensor:
        assert knots is not None
        return beta * _interpolate(-torch.expm1(log_u), knots.share, knots.log_count)

    def survival(self, log_x: Tensor, beta: Tensor, knots: Knots | None) -> Tensor:
        assert knots is not None
        return _interpolate(log_x / beta, knots.log_count.flip(-1), knots.share.flip(-1))


def _interpolate(x: Tensor, xs: Tensor, ys: Tensor) -> Tensor:
    """Piecewise linear at x (n, q) through (xs, ys) (n or 1, K), xs rising; flat beyond."""
    xs, ys = xs.expand(len(x), -1), ys.expand(len(x), -1)
    right = torch.searchsorted(xs.contiguous(), x.contiguous()).clamp_(1, xs.shape[-1] - 1)
    x0, y0 = xs.gather(-1, right - 1), ys.gather(-1, right - 1)
    # counts that are close together may be one number in single precision: never 0 / 0
    rise = (xs.gather(-1, right) - x0).clamp_(min=torch.finfo(x.dtype).tiny)
    return y0 + ((x - x0) / rise).clamp_(0.0, 1.0) * (ys.gather(-1, right) - y0)


@dataclass(frozen=True)
class Flat:
    """Equal sizes, so that a search can never lose to them. Not in the paper.

    Between two widths the most frequent rows have the larger one, which is how a fit spends a
    budget that no single width uses up: survival here is that share, linear in the scale.
    """

    beta_max: float = 1.0
    name: str = "flat"
    uses_counts: bool = False

    def log_quantile(self, log_u: Tensor, beta: Tensor, knots: Knots | None) -> Tensor:
        return torch.zeros_like(log_u)

    def survival(self, log_x: Tensor, beta: Tensor, knots: Knots | None) -> Tensor:
        size = torch.exp(-log_x)  # scale / width, so 1 where the scale is the width
        narrower = torch.nn.functional.pad(torch.exp(log_x[:, :-1] - log_x[:, 1:]), (1, 0))
        return ((size - narrower) / (1 - narrower).clamp(min=1e-9)).clamp(0.0, 1.0)


PAPER_FAMILIES: tuple[Family, ...] = (
    PowerLaw(),
    TruncatedNormal(),
    TruncatedExponential(),
    LogNormal(),
)
EXPLORING_FAMILIES: tuple[Family, ...] = (*PAPER_FAMILIES, Flat(), CountPower())
