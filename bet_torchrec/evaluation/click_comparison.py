"""Whether one click model beats another on the same examples, trained with several seeds each.

Shapes: S seeds, N examples, P of them positive, M negative.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..errors import InvalidInputError
from .clicks import auc, checked_clicks, half_wins, log_losses
from .significance import SeedComparison, compare_over_seeds, mean_variance


def compare_clicks(
    labels: Any,
    a: Any,
    b: Any,
    *,
    metric: Literal["auc", "logloss"] = "auc",
    confidence: float = 0.95,
) -> SeedComparison:
    """Compare two methods by their logits on one set of examples, with the noise of both kinds.

    labels: (N,) of 0 and 1. a, b: (S, N) logits, a row a seed. A positive difference says that a
    is better: more AUC, or less log loss. What one would see with other seeds comes from the
    differences between seeds, what with other examples from DeLong's variance (log loss: the
    examples' own) of the mean over seeds.

    For methods that were evaluated on a split of its own a seed, use ``compare_over_seeds``.
    """
    if metric not in ("auc", "logloss"):
        raise InvalidInputError(f"metric should be 'auc' or 'logloss', got {metric!r}")
    first, second = _rows(a), _rows(b)
    _same_seeds(first, second)
    if metric == "auc":
        qualities = [[auc(labels, row) for row in rows] for rows in (first, second)]
        variance = auc_difference_variance(labels, first, second)
    else:
        losses = [np.stack([log_losses(labels, row) for row in rows]) for rows in (first, second)]
        qualities = [list(-rows.mean(axis=1)) for rows in losses]
        variance = mean_variance(losses[1] - losses[0])
    return compare_over_seeds(*qualities, sampling_variance=variance, confidence=confidence)


def auc_difference_variance(labels: Any, a: Any, b: Any) -> float:
    """DeLong's variance (1988), over the drawing of examples, of the mean AUC(a) - AUC(b).

    labels: (N,) of 0 and 1, at least two of each. a, b: (S, N) scores, a row a seed; or (N,).
    O(S N log N). AUC is a mean over pairs, so seeds' components average before they vary.
    """
    first, second = _rows(a), _rows(b)
    _same_seeds(first, second)
    y = checked_clicks(labels, first[0])[0]
    if min(int(y.sum()), int((~y).sum())) < 2:
        raise InvalidInputError(
            f"a variance needs at least two examples of each class, got {int(y.sum())} positives "
            f"among {len(y)}"
        )
    positives, negatives = np.zeros(int(y.sum())), np.zeros(int((~y).sum()))
    for rows, sign in ((first, 1), (second, -1)):
        for row in rows:
            of_positives, of_negatives = _components(y, checked_clicks(labels, row)[1])
            positives += sign * of_positives / len(rows)
            negatives += sign * of_negatives / len(rows)
    parts = (positives.var(ddof=1) / len(positives), negatives.var(ddof=1) / len(negatives))
    return float(sum(parts))


def _components(
    y: NDArray[np.bool_], scores: NDArray[Any]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(P,) share of negatives that each positive beats; (M,) share of positives beating each."""
    positives, negatives = scores[y], scores[~y]
    return (
        half_wins(positives, negatives) / (2 * len(negatives)),
        1 - half_wins(negatives, positives) / (2 * len(positives)),
    )


def _rows(scores: Any) -> NDArray[Any]:
    rows = np.atleast_2d(np.asarray(scores))
    if rows.ndim != 2:
        raise InvalidInputError(f"expected scores (seeds, examples), got shape {rows.shape}")
    return rows


def _same_seeds(a: NDArray[Any], b: NDArray[Any]) -> None:
    if a.shape != b.shape:
        raise InvalidInputError(
            f"expected as many seeds and examples of both, paired, got {a.shape} and {b.shape}"
        )
