"""Whether one model beats another: user by user as in BET's Table 1, and over trainings' seeds."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from ..errors import InvalidInputError
from .metrics import Metrics


@dataclass(frozen=True, kw_only=True)
class PairedTTest:
    """Whether model a beats model b on the same users.

    metric: "recall" or "ndcg" at k. t, p: two-sided; NaN for fewer than two users.
    mean_difference: a - b. relative_gain: that over b's mean (infinite where b's mean is 0).
    n: users compared.
    """

    metric: str
    k: int
    t: float
    p: float
    mean_difference: float
    relative_gain: float
    n: int

    def __str__(self) -> str:
        return (
            f"{self.metric}@{self.k} {self.mean_difference:+.4f} ({self.relative_gain:+.1%}), "
            f"t = {self.t:.2f}, p = {self.p:.2g}, n = {self.n}"
        )


def paired_t_test(
    a: Metrics, b: Metrics, metric: Literal["recall", "ndcg"] = "recall", k: int = 20
) -> PairedTTest:
    """Two-sided paired t-test of a against b over the users that both were evaluated on.

    Identical results give t = 0 and p = 1; a constant difference other than 0 gives p = 0.

    Raises:
        InvalidInputError: the users, the part or the masking differ, or k was not evaluated.
    """
    if metric not in ("recall", "ndcg"):
        raise InvalidInputError(f"expected metric 'recall' or 'ndcg', got {metric!r}")
    if not np.array_equal(a.users, b.users):
        raise InvalidInputError(
            f"a paired test needs the same users in the same order, got {len(a.users)} and "
            f"{len(b.users)} users that differ: evaluate both models on the same split"
        )
    if (a.on, a.masked) != (b.on, b.masked):
        raise InvalidInputError(
            f"a was evaluated on {a.on} with {a.masked} masked, b on {b.on} with {b.masked} "
            "masked: evaluate both alike"
        )
    if k not in a.recall or k not in b.recall:
        raise InvalidInputError(f"k={k} was not evaluated: a has k in {a.ks}, b in {b.ks}")
    first, second = getattr(a, metric)[k], getattr(b, metric)[k]
    difference = first - second
    n = len(difference)
    if n < 2:
        t = p = float("nan")
    elif not difference.any():
        t, p = 0.0, 1.0
    else:
        with np.errstate(divide="ignore"):
            t, p = (float(x) for x in stats.ttest_rel(first, second))
    mean = float(difference.mean()) if n else float("nan")
    base = float(second.mean()) if n else float("nan")
    if base:
        gain = mean / base
    else:
        gain = 0.0 if mean == 0 else float(np.copysign(np.inf, mean))
    return PairedTTest(metric=metric, k=k, t=t, p=p, mean_difference=mean, relative_gain=gain, n=n)


@dataclass(frozen=True, kw_only=True)
class SeedComparison:
    """How much method a differs from method b over several trainings of each.

    mean_difference: of a - b. low, high: its interval at ``confidence``. t, p: two-sided, of no
    difference. degrees: of freedom of t. seeds: pairs compared; with one alone, all but the mean
    are NaN, because it says nothing of what a training's chance is worth.
    """

    mean_difference: float
    low: float
    high: float
    confidence: float
    t: float
    p: float
    degrees: float
    seeds: int

    def __str__(self) -> str:
        return (
            f"{self.mean_difference:+.4f} [{self.low:+.4f}, {self.high:+.4f}] at "
            f"{self.confidence:.0%}, p = {self.p:.2g}, {self.seeds} seeds"
        )


def compare_over_seeds(
    a: ArrayLike, b: ArrayLike, *, sampling_variance: float = 0.0, confidence: float = 0.95
) -> SeedComparison:
    """Compare two methods by one quality a seed: (S,) each, the same seed or split at a place.

    The interval carries the noise of trainings (which a test over users or examples of one training
    does not see). Where every seed brings a split of its own, that is all: the differences vary by
    both. Where all were evaluated on the same examples, the examples' chance is common to all
    seeds and hidden from them: pass its variance as ``sampling_variance`` (``mean_variance``, or
    ``auc_difference_variance``); it adds to the seeds', with Satterthwaite's degrees of freedom.

    Raises:
        InvalidInputError: different numbers of seeds, none, a quality that is not finite, a
            negative variance, or a confidence outside of (0, 1).
    """
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if first.ndim != 1 or first.shape != second.shape or not len(first):
        raise InvalidInputError(
            f"expected one quality a seed of each method, paired, got shapes {first.shape} and "
            f"{second.shape}"
        )
    difference = first - second
    if not np.isfinite(difference).all():
        raise InvalidInputError(
            "qualities should be finite: leave a seed whose training diverged out of both methods"
        )
    if not (math.isfinite(sampling_variance) and sampling_variance >= 0):
        raise InvalidInputError(f"sampling_variance should be >= 0, got {sampling_variance}")
    if not 0 < confidence < 1:
        raise InvalidInputError(f"confidence should lie between 0 and 1, got {confidence}")
    seeds, mean = len(difference), float(difference.mean())
    if seeds < 2:
        t = p = margin = degrees = math.nan
    else:
        of_seeds = float(difference.var(ddof=1)) / seeds
        variance = of_seeds + sampling_variance
        # The examples' part is known from thousands of them: its own degrees of freedom are none.
        degrees = (seeds - 1) * (variance / of_seeds) ** 2 if of_seeds else math.inf
        error = math.sqrt(variance)
        margin = float(stats.t.ppf((1 + confidence) / 2, degrees)) * error
        t = mean / error if error else (math.copysign(math.inf, mean) if mean else 0.0)
        p = float(2 * stats.t.sf(abs(t), degrees))
    return SeedComparison(
        mean_difference=mean,
        low=mean - margin,
        high=mean + margin,
        confidence=confidence,
        t=t,
        p=p,
        degrees=degrees,
        seeds=seeds,
    )


def mean_variance(differences: ArrayLike) -> float:
    """Variance, over the drawing of users or examples, of their mean difference over all seeds.

    differences: (S, n), a's value less b's of each user or example, a row a seed; or (n,).
    """
    values = np.atleast_2d(np.asarray(differences, dtype=np.float64))
    if values.ndim != 2 or values.shape[1] < 2:
        raise InvalidInputError(
            f"expected differences (seeds, n) of at least 2 users or examples, got {values.shape}"
        )
    return float(values.mean(axis=0).var(ddof=1)) / values.shape[1]


def holm(p_values: ArrayLike) -> NDArray[np.float64]:
    """Holm's adjusted p-values (1979), in the order given: all below alpha hold together at alpha.

    Raises:
        InvalidInputError: not flat, or a value outside of [0, 1] (NaN included).
    """
    p = np.asarray(p_values, dtype=np.float64)
    if p.ndim != 1 or not ((p >= 0) & (p <= 1)).all():
        raise InvalidInputError(f"p-values should be a flat array within [0, 1], got {p_values!r}")
    order = np.argsort(p, kind="stable")
    scaled = p[order] * np.arange(len(p), 0, -1)
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(np.maximum.accumulate(scaled), 1)
    return adjusted
