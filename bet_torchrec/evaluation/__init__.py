"""Exact full ranking, Recall and NDCG of each user, paired tests, and simulated quantisation."""

from .metrics import KS, Metrics, Ranker, evaluate, metrics_of_lists
from .quantisation import fake_quantise_rows, fake_quantise_sized
from .ranking import top_items, top_items_by
from .separable import SeparableScores
from .significance import PairedTTest, paired_t_test

__all__ = [
    "KS",
    "Metrics",
    "PairedTTest",
    "Ranker",
    "SeparableScores",
    "evaluate",
    "fake_quantise_rows",
    "fake_quantise_sized",
    "metrics_of_lists",
    "paired_t_test",
    "top_items",
    "top_items_by",
]
