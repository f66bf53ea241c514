"""Where a workbench works: in one process, or on all ranks of a process group."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from ..evaluation import evaluate
from ..models import BipartiteGraph, PartitionedGraph
from ..team import team
from .distributed import evaluate_sharded
from .model import model_scores
from .ranks import Peers
from .sized_embedding import SizedEmbedding

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from ..data import Split


class Workplace:
    """The graph of a split and the evaluation on it, shared out among the ranks of a group.

    pg: None is this process alone. With a group all ranks make the same calls in the same order.
    team, ranks: for messages, and for ``train_bpr``.
    """

    def __init__(
        self, split: Split, pg: ProcessGroup | None, device: torch.device | str = "cpu"
    ) -> None:
        self._split, self._pg, self._device = split, pg, device
        self.team = team(pg)
        self.ranks = None if pg is None else Peers(pg)

    @cached_property
    def graph(self) -> BipartiteGraph:
        """Of the training interactions; in a group this rank's part of it."""
        interactions = self._split.train.csr()
        if self._pg is None:
            return BipartiteGraph(interactions).to(self._device)
        return PartitionedGraph(interactions, self._pg).to(self._device)

    def quality(
        self,
        backbone: nn.Module,
        embedding: SizedEmbedding,
        precisions: Mapping[str, ArrayLike | str] | None = None,
        users: ArrayLike | None = None,
    ) -> float:
        """Validation quality over ``users`` (all of them without it), the same on every rank."""
        if self._pg is None:
            scores = model_scores(backbone, embedding, precisions)
            return evaluate(scores, self._split, on="validation", users=users).quality()
        tables = embedding if precisions is None else embedding.quantised(precisions)
        found = evaluate_sharded(
            backbone, tables, self._split, self._pg, on="validation", users=users
        )
        return found.quality()

    def alike(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The first rank's, for all: what other hardware computed may differ in its signs."""
        if self._pg is None:
            return dict(tensors)
        on_cpu = {name: tensor.cpu() for name, tensor in tensors.items()}
        firsts: dict[str, Tensor] = self.team.broadcast(on_cpu)
        return firsts
