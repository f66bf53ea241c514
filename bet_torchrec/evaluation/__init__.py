"""Exact full ranking, Recall and NDCG by user, click metrics, tests, simulated quantisation."""

from .click_comparison import auc_difference_variance, compare_clicks
from .clicks import (
    ClickMetrics,
    auc,
    calibration,
    click_metrics,
    log_loss,
    log_losses,
    normalised_entropy,
)
from .metrics import KS, Metrics, Ranker, evaluate, metrics_of_lists
from .quantisation import fake_quantise_rows, fake_quantise_sized
from .ranking import top_items, top_items_by
from .separable import SeparableScores
from .significance import (
    PairedTTest,
    SeedComparison,
    compare_over_seeds,
    holm,
    mean_variance,
    paired_t_test,
)

__all__ = [
    "KS",
    "ClickMetrics",
    "Metrics",
    "PairedTTest",
    "Ranker",
    "SeedComparison",
    "SeparableScores",
    "auc",
    "auc_difference_variance",
    "calibration",
    "click_metrics",
    "compare_clicks",
    "compare_over_seeds",
    "evaluate",
    "fake_quantise_rows",
    "fake_quantise_sized",
    "holm",
    "log_loss",
    "log_losses",
    "mean_variance",
    "metrics_of_lists",
    "normalised_entropy",
    "paired_t_test",
    "top_items",
    "top_items_by",
]
