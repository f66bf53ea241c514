"""Paired t-test between two models, user by user, as in BET's Table 1."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
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
