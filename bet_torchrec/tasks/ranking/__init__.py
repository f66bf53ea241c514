"""Ranking from interactions: BPR over a backbone, batches, exact evaluation on any ranks."""

from __future__ import annotations

from .sampling import BPRSampler
from .task import BPR, BackboneName, RankingTask, Triples, bpr_loss, scores_of

__all__ = [
    "BPR",
    "BPRSampler",
    "BackboneName",
    "RankingTask",
    "Triples",
    "bpr_loss",
    "scores_of",
]
