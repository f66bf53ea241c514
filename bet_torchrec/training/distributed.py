"""Evaluation of a model that is spread over the ranks of a process group; see ``ranks``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch.distributed as dist
from numpy.typing import ArrayLike
from torch import nn

from ..errors import CollectiveError
from ..evaluation import KS, Metrics, evaluate
from ..models.protocol import EmbeddingModule
from .model import model_scores
from .ranks import Peers

if TYPE_CHECKING:
    from ..data import Split


def evaluate_sharded(
    backbone: nn.Module,
    embedding: EmbeddingModule,
    split: Split,
    pg: dist.ProcessGroup,
    *,
    on: Literal["validation", "test"] = "test",
    mask: Literal["train", "train+validation"] | None = None,
    ks: Sequence[int] = KS,
    users: ArrayLike | None = None,
) -> Metrics:
    """``evaluation.evaluate`` with users shared out among the ranks; every rank gets all metrics.

    Final rows are gathered on every rank (all of them: what exact ranking needs).

    Raises:
        CollectiveError: another rank failed.
    """
    peers = Peers(pg)
    tables: Any = embedding
    scores = model_scores(backbone, tables)
    everyone = np.arange(split.train.num_users) if users is None else np.asarray(users)
    mine = everyone[peers.rank :: peers.size]
    parts = peers.gather(
        "evaluation", lambda: evaluate(scores, split, on=on, mask=mask, ks=ks, users=mine)
    )
    return _joined(parts)


def _joined(parts: Sequence[Metrics]) -> Metrics:
    users = np.concatenate([part.users for part in parts])
    order = users.argsort()
    first = parts[0]
    if any((part.ks, part.on, part.masked) != (first.ks, first.on, first.masked) for part in parts):
        raise CollectiveError("all ranks should evaluate the same part of the split at the same ks")
    return Metrics(
        users=users[order],
        recall={k: np.concatenate([p.recall[k] for p in parts])[order] for k in first.ks},
        ndcg={k: np.concatenate([p.ndcg[k] for p in parts])[order] for k in first.ks},
        on=first.on,
        masked=first.masked,
        left_out=sum(part.left_out for part in parts),
    )
