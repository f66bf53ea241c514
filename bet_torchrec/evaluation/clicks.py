"""AUC, log loss, normalised entropy and calibration of click predictions.

Predictions are logits throughout: a loss computed from them is right far from zero too, where a
probability in fp32 is 0 or 1. Metrics are computed in float64. AUC is exact with ties and counts in
integers; torchmetrics' is too, but sums in fp32, takes six times as long on a million examples and
needs more than a second to be imported.

Shapes: N examples.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InvalidInputError


@dataclass(frozen=True, kw_only=True)
class ClickMetrics:
    """Of one model on one set of examples.

    auc: the share of (positive, negative) pairs in the right order, ties as halves.
    log_loss: mean cross entropy in nats. normalised_entropy: that over the cross entropy of always
    predicting the mean label (TorchRec's definition); below 1 is better than knowing only that.
    calibration: predicted clicks over clicks. examples: N.
    """

    auc: float
    log_loss: float
    normalised_entropy: float
    calibration: float
    examples: int

    def mean(self) -> dict[str, float]:
        """{metric: value}, what reports print."""
        return {
            "auc": self.auc,
            "log_loss": self.log_loss,
            "normalised_entropy": self.normalised_entropy,
            "calibration": self.calibration,
        }

    def __str__(self) -> str:
        return (
            f"AUC {self.auc:.4f}  log loss {self.log_loss:.4f}  "
            f"normalised entropy {self.normalised_entropy:.4f}  "
            f"calibration {self.calibration:.3f}  ({self.examples} examples)"
        )


def click_metrics(labels: Any, logits: Any) -> ClickMetrics:
    """All of them; labels and logits as in ``auc``."""
    y, z = checked_clicks(labels, logits)
    return ClickMetrics(
        auc=auc(y, z),
        log_loss=log_loss(y, z),
        normalised_entropy=normalised_entropy(y, z),
        calibration=calibration(y, z),
        examples=len(y),
    )


def auc(labels: Any, scores: Any) -> float:
    """Area under the ROC curve, O(N log N), exact with ties.

    labels: (N,) of 0 and 1 (or bool). scores: (N,), higher for a click; arrays or CPU tensors.

    Raises:
        InvalidInputError: other labels, NaN scores, different lengths, or one class only.
    """
    y, z = checked_clicks(labels, scores)
    _both_classes(y)
    # Which positive wins how often doesn't matter to the sum; sorted, they are looked up fastest.
    wins = half_wins(np.sort(z[y]), z[~y])
    return int(wins.sum()) / (2 * int(y.sum()) * int((~y).sum()))


def half_wins(values: NDArray[Any], others: NDArray[Any]) -> NDArray[np.int64]:
    """int64, as values: twice how many of ``others`` lie below each value, ties counted once."""
    ranked = np.sort(others)
    below = np.searchsorted(ranked, values, side="left")
    return below + np.searchsorted(ranked, values, side="right")


def log_losses(labels: Any, logits: Any) -> NDArray[np.float64]:
    """(N,) cross entropy of each example in nats."""
    y, z = checked_clicks(labels, logits)
    return _softplus(np.where(y, -z, z).astype(np.float64))


def log_loss(labels: Any, logits: Any) -> float:
    """Mean cross entropy in nats; defined for one class too."""
    return float(log_losses(labels, logits).mean())


def normalised_entropy(labels: Any, logits: Any) -> float:
    """Log loss over that of predicting the mean label everywhere (He et al., ADKDD 2014)."""
    y, z = checked_clicks(labels, logits)
    _both_classes(y)
    rate = y.mean()
    entropy = -(rate * np.log(rate) + (1 - rate) * np.log1p(-rate))
    return log_loss(y, z) / float(entropy)


def calibration(labels: Any, logits: Any) -> float:
    """Sum of predicted probabilities over the number of clicks."""
    y, z = checked_clicks(labels, logits)
    if not y.any():
        raise InvalidInputError("calibration needs at least one example of label 1, got none")
    return float(np.exp(-_softplus(-z.astype(np.float64))).sum() / y.sum())


def checked_clicks(labels: Any, scores: Any) -> tuple[NDArray[np.bool_], NDArray[Any]]:
    """Labels as bool and scores as a float array, or InvalidInputError."""
    y, z = np.asarray(labels), np.asarray(scores)
    if y.ndim != 1 or y.shape != z.shape or not len(y):
        raise InvalidInputError(
            f"expected as many labels as scores, both flat and at least one, got shapes {y.shape} "
            f"and {z.shape}"
        )
    if y.dtype != bool:
        other = (y != 0) & (y != 1)
        if other.any():
            raise InvalidInputError(
                f"labels should be 0 or 1, got {y[other][0]}: binarise ratings first"
            )
        y = y.astype(bool)
    if z.dtype.kind != "f":
        z = z.astype(np.float64)
    missing = int(np.isnan(z).sum())
    if missing:
        raise InvalidInputError(
            f"{missing} of {len(z)} scores are NaN: the model has diverged, lower its rate"
        )
    return y, z


def _both_classes(y: NDArray[np.bool_]) -> None:
    positives = int(y.sum())
    if not 0 < positives < len(y):
        raise InvalidInputError(
            f"AUC and normalised entropy need labels of both classes, got {positives} positives "
            f"among {len(y)} examples"
        )


def _softplus(z: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.maximum(z, 0) + np.log1p(np.exp(-np.abs(z)))
