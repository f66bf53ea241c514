"""LightGCN (He et al., SIGIR 2020): the mean of the layers' propagated rows, inner product.

For serving, final rows are dense whatever the base table's sizes are: a compressed table needs the
graph and this propagation beside it, or a dense cache of ``final``.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..errors import InvalidInputError
from .propagation import BipartiteGraph
from .protocol import BPRTerms, EmbeddingModule, check_rows, principal_axes


class LightGCN(nn.Module):
    """LightGCN with alpha_l = 1 / (layers + 1). Tables: "user" and "item". No weights of its own.

    graph: of the training interactions. layers: propagation layers, 3 in BET's set-up.
    """

    graph: BipartiteGraph

    def __init__(self, graph: BipartiteGraph, *, layers: int = 3) -> None:
        super().__init__()
        if layers < 0:
            raise InvalidInputError(f"layers should be at least 0, got {layers}")
        self.graph = graph
        self.layers = layers

    @property
    def table_sides(self) -> Mapping[str, str]:
        return {"user": "user", "item": "item"}

    @property
    def table_rows(self) -> Mapping[str, int]:
        return {"user": self.graph.num_users, "item": self.graph.num_items}

    def final(self, embedding: EmbeddingModule) -> tuple[Tensor, Tensor]:
        """Final rows, (U, D) and (I, D), whose inner products are the scores; differentiable.

        On a partitioned graph, this process's share of them.
        """
        return self.graph.layer_mean(*self.graph.tables(embedding), layers=self.layers)

    def forward(
        self,
        embedding: EmbeddingModule,
        users: Tensor,
        positives: Tensor,
        negatives: Tensor,
        *,
        generator: torch.Generator | None = None,
    ) -> BPRTerms:
        user, items, l2 = self.graph.layer_mean_rows(
            *self.graph.tables(embedding),
            users,
            torch.cat([positives, negatives]),
            layers=self.layers,
        )
        positive, negative = items.chunk(2)
        return BPRTerms(margin=(user * (positive - negative)).sum(dim=1), l2=l2)

    def scores(self, embedding: EmbeddingModule) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            return self.graph.whole(*self.final(embedding))

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Nothing to draw: LightGCN has no weights beside its tables."""

    def rotate(self, tables: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Both tables by one rotation: inner products of linear combinations of rows stay."""
        check_rows(tables, self.table_rows)
        axes = principal_axes(tables["user"], tables["item"])
        return {name: table @ axes for name, table in tables.items()}
