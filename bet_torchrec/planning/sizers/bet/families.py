"""The distributions that a candidate's sizes are drawn from.

A family describes how sizes fall with rank, up to a scale that the fit to the budget chooses.
Scales span hundreds of orders of magnitude, so everything is in logarithms.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ...counts import RowCounts

_SQRT2 = math.sqrt(2.0)


class Family(Protocol):
    """One shape of sizes with a parameter beta ~ U(0, beta_max)."""

    @property
    def name(self) -> str: ...
    @property
    def beta_max(self) -> float: ...
    @property
    def uses_counts(self) -> bool:
        """Whether the shape depends on the table's counts."""

    def log_quantile(self, log_u: Tensor, beta: Tensor, counts: RowCounts) -> Tensor:
        """Log of the u-quantile, for log_u (n,) and beta (n,)."""

    def survival(self, log_x: Tensor, beta: Tensor, counts: RowCounts) -> Tensor:
        """(n, W): the share of rows whose unscaled size is at least exp(log_x), beta (n, 1)."""


@dataclass(frozen=True)
class PowerLaw:
    """F(x) = x^beta on [0, 1]; SciPy's powerlaw(a=beta)."""

    beta_max: float = 20.0
    name: str = "power_law"
    uses_counts: bool = False

    def log_quantile(self, log_u: Tensor, beta: Tensor, counts: RowCounts) -> Tensor:
        return log_u / beta

    def survival(self, log_x: Tensor, beta: Tensor, counts: RowCounts) -> Tensor:
        return -torch.expm1(beta * log_x.clamp(max=0.0))


@dataclass(frozen=True)
class TruncatedNormal:
    """The standard normal on [0, beta]; SciPy's truncnorm(0, beta)."""

    beta_max: float = 20.0
    name: str = "truncated_normal"
    uses_counts: bool = False

    def log_quantile(self, log_u: Tensor, beta: Tensor, counts: RowCounts) -> Tensor:
        x = _SQRT2 * torch.erfinv(log_u.exp() * torch.erf(beta / _SQRT2))
        return torch.minimum(x.clamp(min=1e-300), beta).log()

    def survival(self, log_x: Tensor, beta: Tensor, counts: RowCounts) -> Tensor:
        x = torch.minimum(log_x.exp(), beta)
        return 1 - torch.erf(x / _SQRT2) / torch.erf(beta / _SQRT2)


@dataclass(frozen=True)
class TruncatedExponential:
    """The standard exponential on [0, beta]; SciPy's truncexpon(b=beta)."""

    beta_max: float = 5.0
    name: str = "truncated_exponential"
    uses_counts: bool = False

    def log_quantile(self, log_u: Tensor, beta: Tensor, counts: RowCounts) -> Tensor:
        return (-torch.log1p(log_u.exp() * torch.expm1(-beta))).clamp(min=1e-300).log()

    def survival(self, log_x: Tensor, beta: Tensor, counts: RowCounts) -> Tensor:
        x = torch.minimum(log_x.exp(), beta)
        return 1 - torch.expm1(-x) / torch.expm1(-beta)


@dataclass(frozen=True)
class LogNormal:
    """exp of a normal of deviation beta; SciPy's lognorm(s=beta)."""

    beta_max: float = 0.5
    name: str = "log_normal"
    uses_counts: bool = False

    def log_quantile(self, log_u: Tensor, beta: Tensor, counts: RowCounts) -> Tensor:
        return beta * torch.special.ndtri(log_u.exp())

    def survival(self, log_x: Tensor, beta: Tensor, counts: RowCounts) -> Tensor:
        return 0.5 * torch.special.erfc(log_x / (_SQRT2 * beta))


@dataclass(frozen=True)
class CountPower:
    """Size proportional to (count + 1)^beta: the rows' own counts as the shape. Not in the paper.

    Rows of one count are spread evenly up to the next count, so that a budget can be met within
    a large group of equal counts.
    """

    beta_max: float = 1.0
    name: str = "count_power"
    uses_counts: bool = True

    def log_quantile(self, log_u: Tensor, beta: Tensor, counts: RowCounts) -> Tensor:
        at, share = self._knots(counts)
        return beta * _interpolate(-torch.expm1(log_u), share, at)

    def survival(self, log_x: Tensor, beta: Tensor, counts: RowCounts) -> Tensor:
        at, share = (knots.to(log_x.dtype) for knots in self._knots(counts))
        return _interpolate(log_x / beta, at.flip(0), share.flip(0))

    @staticmethod
    def _knots(counts: RowCounts) -> tuple[Tensor, Tensor]:
        """Falling log(count + 1) and the rising share of rows that have at least that."""
        at = torch.log1p(torch.tensor(counts.values, dtype=torch.float64))
        share = torch.tensor(counts.ends, dtype=torch.float64) / counts.rows
        top = at[:1] + 1e-3
        return torch.cat([top, at]), torch.cat([share.new_zeros(1), share])


def _interpolate(x: Tensor, xs: Tensor, ys: Tensor) -> Tensor:
    """Piecewise linear through (xs, ys), xs rising, flat beyond the ends."""
    right = torch.searchsorted(xs, x.contiguous()).clamp(1, len(xs) - 1)
    x0, y0 = xs[right - 1], ys[right - 1]
    slope = (ys[right] - y0) / (xs[right] - x0)
    return y0 + slope * (torch.minimum(torch.maximum(x, xs[0]), xs[-1]) - x0)


@dataclass(frozen=True)
class Flat:
    """Equal sizes, so that a search can never lose to them. Not in the paper.

    Between two widths the most frequent rows have the larger one, which is how a fit spends a
    budget that no single width uses up: survival here is that share, linear in the scale.
    """

    beta_max: float = 1.0
    name: str = "flat"
    uses_counts: bool = False

    def log_quantile(self, log_u: Tensor, beta: Tensor, counts: RowCounts) -> Tensor:
        return torch.zeros_like(log_u)

    def survival(self, log_x: Tensor, beta: Tensor, counts: RowCounts) -> Tensor:
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
