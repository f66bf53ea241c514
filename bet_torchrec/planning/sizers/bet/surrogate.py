"""A Gaussian process over what a candidate gives its tables: a predictor for few probes.

A candidate is described by two numbers a table, the mean of log2(1 + width) over its lookups and
over its rows, and by the tables' bits where they may differ. On these a linear and a smooth
(squared exponential) kernel are added; their scales are those, of a small grid, under which the
probes so far are likeliest. Milliseconds a fit, whatever the tables' rows are.

Legend: m candidates, F tables, W widths, n probes, q features.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from torch import Tensor

from ...counts import RowCounts
from ...settle import bucket_rows
from .predictor import Predictor, Scene
from .sampler import Candidates

SMOOTH = (0.0, 0.5, 1.0)  # the smooth kernel's part; the rest is the linear one's
LENGTHS = (0.5, 1.0, 2.0)  # of the smooth kernel, in typical distances between probes
NOISES = (0.01, 0.05, 0.3)  # variance of a probe's noise, in that of the probes' fitness
WRECKED = 2.0  # times as far under the median as the best is over it: how bad no longer matters
BITS_WEIGHT = 0.5  # of a factor of two in bits beside one in width


@dataclass(frozen=True)
class GaussianProcess:
    """Each iteration afresh, on all of the history. Deterministic; the seed does not matter."""

    def __call__(
        self, scene: Scene, candidates: Candidates, fitness: Sequence[float], seed: int
    ) -> Predictor:
        """A predictor in units of fitness."""
        return FittedProcess(Features(scene), candidates, np.array(fitness, dtype=np.float64))


class Features:
    """Describes candidates by numbers on which a plan's quality depends smoothly."""

    def __init__(self, scene: Scene) -> None:
        self._log_width = torch.log2(1.0 + scene.widths.to(torch.float64))
        self._log_bits = torch.log2(torch.tensor(scene.bits, dtype=torch.float64))
        self._lookups = [_Lookups(counts) for counts in scene.counts]
        self._rows = torch.tensor([float(counts.rows) for counts in scene.counts]).double()

    def __call__(self, candidates: Candidates) -> Tensor:
        """(m, q) float64."""
        boundaries = candidates.boundaries
        upto = [lookups.upto(boundaries[:, t]) for t, lookups in enumerate(self._lookups)]
        looked_up = _parts(torch.stack(upto, 1)) @ self._log_width
        stored = (bucket_rows(boundaries).double() @ self._log_width) / self._rows
        about = [looked_up, stored]
        if len(self._log_bits) > 1:
            about.append(BITS_WEIGHT * self._log_bits[candidates.precision])
        return torch.cat(about, -1)


class _Lookups:
    """The share of a table's lookups that its first rows have."""

    def __init__(self, counts: RowCounts) -> None:
        occurrences = torch.tensor(counts.values * counts.multiplicity.astype(np.float64))
        self._values = torch.tensor(counts.values).double()
        self._starts = torch.nn.functional.pad(torch.tensor(counts.ends), (1, 0))
        self._before = torch.nn.functional.pad(occurrences.cumsum(0), (1, 0))
        self._total = self._before[-1].clamp(min=1.0)

    def upto(self, rows: Tensor) -> Tensor:
        """For any shape of row numbers."""
        group = (torch.searchsorted(self._starts, rows.contiguous(), right=True) - 1).clamp(
            max=len(self._values) - 1
        )
        into = (rows - self._starts[group]).double() * self._values[group]
        return (self._before[group] + into) / self._total


def _parts(upto: Tensor) -> Tensor:
    return upto - torch.nn.functional.pad(upto[..., 1:], (0, 1))


class FittedProcess:
    """What the probes say about any candidate."""

    def __init__(self, features: Features, tried: Candidates, fitness: np.ndarray) -> None:
        self._features = features
        x, fitness = features(tried), _above_wrecks(fitness)
        self._mean, self._spread = float(fitness.mean()), float(fitness.std()) or 1.0
        self._center = x.mean(0)
        self._x = x - self._center
        distance = torch.cdist(self._x, self._x)
        apart = distance[distance > 0]
        self._typical = float(apart.median()) if len(apart) else 1.0
        self._power = float(self._x.square().sum(-1).mean().clamp(min=1e-12))
        y = torch.from_numpy((fitness - self._mean) / self._spread)
        settings = list(product(SMOOTH, LENGTHS, NOISES))
        fits = [self._fit(y, *setting) for setting in settings]
        best = max(range(len(fits)), key=lambda i: fits[i][0])
        self._setting, (_, self._weights, self._lower) = settings[best], fits[best]

    def __call__(self, candidates: Candidates) -> Tensor:
        """(m,) expected fitness."""
        return self.fitness(self.embed(candidates))

    def fitness(self, codes: Tensor) -> Tensor:
        """(m,) expected fitness of what has these features."""
        kernel = self._kernel(codes, self._x, *self._setting[:2])
        return self._mean + self._spread * (kernel @ self._weights)

    def spread(self, codes: Tensor) -> Tensor:
        """(m,) its standard deviation."""
        smooth, length, _ = self._setting
        known = torch.linalg.solve_triangular(
            self._lower, self._kernel(self._x, codes, smooth, length), upper=False
        )
        prior = smooth + (1 - smooth) * codes.square().sum(-1) / self._power
        return self._spread * (prior - known.square().sum(0)).clamp(min=0.0).sqrt()

    def embed(self, candidates: Candidates) -> Tensor:
        """(m, q) their features, as seen from the mean of the probes."""
        return self._features(candidates) - self._center

    def _kernel(self, a: Tensor, b: Tensor, smooth: float, length: float) -> Tensor:
        scaled = torch.cdist(a, b) / (length * self._typical)
        linear = (a @ b.T) / self._power
        return smooth * torch.exp(-0.5 * scaled.square()) + (1 - smooth) * linear

    def _fit(
        self, y: Tensor, smooth: float, length: float, noise: float
    ) -> tuple[float, Tensor, Tensor]:
        """The probes' log likelihood, weights in a prediction, and covariance's Cholesky factor."""
        kernel = self._kernel(self._x, self._x, smooth, length)
        kernel = kernel + noise * torch.eye(len(y), dtype=torch.float64)
        lower, failed = torch.linalg.cholesky_ex(kernel)
        if int(failed):
            return -math.inf, torch.zeros_like(y), lower
        weights = torch.cholesky_solve(y[:, None], lower)[:, 0]
        likelihood = -0.5 * float(y @ weights) - float(lower.diagonal().log().sum())
        return likelihood, weights, lower


def _above_wrecks(fitness: np.ndarray) -> np.ndarray:
    """Fitness with what lies far under the median raised to a floor.

    A plan without the one table that matters would otherwise make all others look alike.
    """
    middle = np.median(fitness)
    return fitness.clip(min=middle - WRECKED * (fitness.max() - middle))
