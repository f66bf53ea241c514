"""NGCF (Wang et al., SIGIR 2019), Eq. 7: propagation with weights and an interaction term.

    E_{l+1} = LeakyReLU((A E_l + E_l) W1_l + (A E_l * E_l) W2_l),   slope 0.2, no biases

The score is the inner product of [E_0, E_1/|E_1|, ..., E_L/|E_L|], rows normalised, as in the
authors' code. Node dropout blocks all outgoing messages of a node; message dropout zeroes entries
of a layer's output. As for LightGCN, final rows are dense whatever the base table's sizes are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import InvalidInputError
from .dropout import dropout_mask
from .propagation import BipartiteGraph
from .protocol import BPRTerms, EmbeddingModule, check_rows, principal_axes

_SLOPE = 0.2


class NGCF(nn.Module):
    """Tables: "user" and "item", at most ``dim`` wide.

    graph: of the training interactions. layers: widths of E_1 .. E_L, (dim, dim, dim) unless given.
    message_dropout, node_dropout: shares that are dropped in training. Tables narrower than ``dim``
    use the first rows of the first weights, as if padded with zeros.
    """

    graph: BipartiteGraph
    axes: Tensor
    rotated: Tensor

    def __init__(
        self,
        graph: BipartiteGraph,
        *,
        dim: int,
        layers: Sequence[int] | None = None,
        message_dropout: float = 0.1,
        node_dropout: float = 0.1,
    ) -> None:
        super().__init__()
        widths = (dim, *((dim,) * 3 if layers is None else layers))
        if len(widths) < 2 or min(widths) < 1:
            raise InvalidInputError(f"layers should be one or more widths, got {layers}")
        if not (0 <= message_dropout < 1 and 0 <= node_dropout < 1):
            raise InvalidInputError(
                f"dropouts should be at least 0 and under 1, got {message_dropout}, {node_dropout}"
            )
        self.graph = graph
        self.dim = dim
        self.message_dropout, self.node_dropout = message_dropout, node_dropout
        shapes = list(pairwise(widths))
        self.sum_weights = nn.ParameterList(nn.Parameter(torch.empty(s)) for s in shapes)
        self.product_weights = nn.ParameterList(nn.Parameter(torch.empty(s)) for s in shapes)
        # The interaction term doesn't commute with rotations, so a rotated table is turned back.
        self.register_buffer("axes", torch.eye(dim))
        self.register_buffer("rotated", torch.tensor(False))
        self.reset_parameters()

    @property
    def table_sides(self) -> Mapping[str, str]:
        return {"user": "user", "item": "item"}

    @property
    def table_rows(self) -> Mapping[str, int]:
        return {"user": self.graph.num_users, "item": self.graph.num_items}

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Glorot-uniform weights, no rotation."""
        for weight in (*self.sum_weights, *self.product_weights):
            bound = (6 / sum(weight.shape)) ** 0.5
            weight.copy_((2 * torch.rand(weight.shape, generator=generator) - 1) * bound)
        self.axes.copy_(torch.eye(self.dim))
        self.rotated.fill_(False)

    def final(self, embedding: EmbeddingModule) -> tuple[Tensor, Tensor]:
        """Final rows (U, D + sum of layers) and (I, ...) without dropout; differentiable.

        On a partitioned graph, this process's share of them.
        """
        return self._rows(embedding, None, None, None)

    def forward(
        self,
        embedding: EmbeddingModule,
        users: Tensor,
        positives: Tensor,
        negatives: Tensor,
        *,
        generator: torch.Generator | None = None,
    ) -> BPRTerms:
        items = torch.cat([positives, negatives])
        user, item = self._rows(embedding, users, items, generator)
        positive, negative = item.chunk(2)
        # The first part is the table's own rows, perhaps rotated, which leaves their norms.
        width = user.shape[1] - sum(w.shape[1] for w in self.sum_weights)
        l2 = user[:, :width].square().sum() + item[:, :width].square().sum()
        return BPRTerms(margin=(user * (positive - negative)).sum(dim=1), l2=l2 / 2)

    def _rows(
        self,
        embedding: EmbeddingModule,
        users: Tensor | None,
        items: Tensor | None,
        generator: torch.Generator | None,
    ) -> tuple[Tensor, Tensor]:
        """Final rows of some ids, or of all; the last layer's products are only made for those.

        (So an id that comes twice in a batch has two masks of message dropout in that layer.)
        """
        pick_user, pick_item = self.graph.picker(users), self.graph.picker(items)
        user, item = map(self._turned_back, self.graph.tables(embedding))
        user_parts, item_parts = [pick_user(user)], [pick_item(item)]
        last = len(self.sum_weights) - 1
        for layer, (w1, w2) in enumerate(zip(self.sum_weights, self.product_weights, strict=True)):
            near_user, near_item = self.graph.propagate(
                self._drop_nodes(user, generator), self._drop_nodes(item, generator)
            )
            if layer == last:
                near_user, near_item = pick_user(near_user), pick_item(near_item)
                user, item = pick_user(user), pick_item(item)
            width = user.shape[1]
            user = self._layer(user, near_user, w1[:width], w2[:width], generator)
            item = self._layer(item, near_item, w1[:width], w2[:width], generator)
            ended = layer == last
            user_parts.append(F.normalize(user if ended else pick_user(user)))
            item_parts.append(F.normalize(item if ended else pick_item(item)))
        return torch.cat(user_parts, dim=1), torch.cat(item_parts, dim=1)

    def _layer(
        self, own: Tensor, near: Tensor, w1: Tensor, w2: Tensor, generator: torch.Generator | None
    ) -> Tensor:
        mixed = torch.addmm((near + own) @ w1, near * own, w2)
        out = F.leaky_relu(mixed, _SLOPE)
        if not self.training or not self.message_dropout:
            return out
        return out * dropout_mask(out.shape, self.message_dropout, out.device, generator)

    def _drop_nodes(self, rows: Tensor, generator: torch.Generator | None) -> Tensor:
        if not self.training or not self.node_dropout:
            return rows
        return rows * dropout_mask((len(rows), 1), self.node_dropout, rows.device, generator)

    def _turned_back(self, table: Tensor) -> Tensor:
        return table @ self.axes[:, : table.shape[1]].T if bool(self.rotated) else table

    def scores(self, embedding: EmbeddingModule) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            return self.graph.whole(*self.final(embedding))

    @torch.no_grad()
    def rotate(self, tables: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Both tables by one rotation, which the module turns back after reading (dim x dim)."""
        check_rows(tables, self.table_rows)
        axes = principal_axes(tables["user"], tables["item"])
        self.axes.copy_(self.axes @ axes)
        self.rotated.fill_(True)
        return {name: table @ axes for name, table in tables.items()}
