"""A graph that several processes share: each has some nodes' rows, edges and products.

Nodes are dealt out like cards: rank r of R has the ids r, r + R, r + 2R, ... So shares differ by
one row at most, and by few edges even where ids fall with popularity, and an id's owner is plain
arithmetic. (Contiguous shares would need padding by either rows or edges on such ids.)

A layer is an all-gather of the other side's rows and the product of this rank's adjacency rows with
them. As the adjacency is symmetric, its backward pass is the same two steps: gradients are gathered
and multiplied, and nothing of the full size is ever reduced. Rows of a batch travel by themselves:
their ids to the owners, the rows back, and in the backward pass the gradients to the owners, who
add them up.

Gradients: every rank calls ``backward`` on a loss of its own, and what reaches a row is the
gradient of the *sum* of all ranks' losses. TorchRec's sharded tables divide that by R, as averaging
does for weights that every rank holds: both then have the gradient of the *mean* of the losses.

Every method but the constructor is collective: all ranks call it, in the same order. Layers, picks
and their backward passes do, when all ranks run the same model.

Shapes: U users, I items, D width, R ranks, B ids.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from scipy import sparse
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..errors import InvalidInputError
from .propagation import BipartiteGraph, Pick

if TYPE_CHECKING:
    from .protocol import EmbeddingModule


class PartitionedGraph(BipartiteGraph):
    """``BipartiteGraph`` over the ranks of a process group; tables are this rank's rows of them.

    interactions: all of them, on every rank, as for ``BipartiteGraph``. pg: gloo on CPU, NCCL on
        CUDA; any size, 1 included.
    Rows given and returned are this rank's: (len(user_ids), D) and (len(item_ids), D). A table is
    read by ``lookup`` of those ids, so every embedding module serves, sharded or not.
    """

    user_ids: Tensor
    item_ids: Tensor

    def __init__(
        self, interactions: sparse.spmatrix | sparse.sparray, pg: dist.ProcessGroup
    ) -> None:
        super().__init__(interactions)
        self.rank, self.ranks = dist.get_rank(pg), dist.get_world_size(pg)
        if self.rank < 0:
            raise InvalidInputError("a partitioned graph should be made on ranks of its group only")
        self._pg = pg
        for side, rows, others in (
            ("users", self.num_users, self.num_items),
            ("items", self.num_items, self.num_users),
        ):
            block = sparse.csr_matrix(
                tuple(
                    getattr(self, f"{side}_{part}") for part in ("weights", "columns", "offsets")
                ),
                shape=(rows, others),
            )
            mine = block[self.rank :: self.ranks]
            # Columns name places in what a gather returns: rank by rank, each padded alike.
            mine.indices = self._place(mine.indices.astype("int64"), others)
            self._keep(side, mine)
        for name, rows in (("user_ids", self.num_users), ("item_ids", self.num_items)):
            ids = torch.arange(rows)[self.rank :: self.ranks].contiguous()
            self.register_buffer(name, ids, persistent=False)

    @property
    def num_edges(self) -> int:
        """Distinct interactions of this rank's users."""
        return super().num_edges

    def tables(self, embedding: EmbeddingModule) -> tuple[Tensor, Tensor]:
        """This rank's rows of "user" and "item"."""
        return embedding.lookup("user", self.user_ids), embedding.lookup("item", self.item_ids)

    def picker(self, ids: Tensor | None) -> Pick:
        """A differentiable function: all ranks' rows -> the rows of this rank's int64 ids (B,).

        ids are global ones and any number of them, which may differ by rank. Without ids (on all
        ranks) the rows as they are.
        """
        if ids is None:
            return super().picker(None)
        exchange = _Exchange(ids, self._pg)
        return lambda rows: _Picked.apply(exchange, rows)

    def layer_mean_rows(
        self,
        users_UD: Tensor,
        items_ID: Tensor,
        users: Tensor,
        items: Tensor,
        *,
        layers: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        final_users, final_items = self.layer_mean(users_UD, items_ID, layers=layers)
        pick_user, pick_item = self.picker(users), self.picker(items)
        # Norms are taken where the rows are: one number an example travels.
        norm = pick_user(_norms(users_UD)).sum() + pick_item(_norms(items_ID)).sum()
        return pick_user(final_users), pick_item(final_items), norm / 2

    def to_users(self, items_ID: Tensor, scale: float = 1.0) -> Tensor:
        """This rank's rows of scale * R @ items. No autograd: see ``propagate``."""
        return super().to_users(self._gather(items_ID, self.num_items), scale)

    def to_items(self, users_UD: Tensor, scale: float = 1.0) -> Tensor:
        """This rank's rows of scale * R^T @ users. No autograd: see ``propagate``."""
        return super().to_items(self._gather(users_UD, self.num_users), scale)

    def whole(self, users: Tensor, items: Tensor) -> tuple[Tensor, Tensor]:
        """All users' and all items' rows in id order, on every rank. No autograd."""
        return self._whole(users, self.num_users), self._whole(items, self.num_items)

    def _whole(self, rows: Tensor, total: int) -> Tensor:
        gathered = self._gather(rows, total).view(self.ranks, -1, rows.shape[1])
        return gathered.transpose(0, 1).reshape(-1, rows.shape[1])[:total]

    def _gather(self, rows: Tensor, total: int) -> Tensor:
        """All ranks' rows, one rank after the other, each padded to as many as the first has."""
        own = len(range(self.rank, total, self.ranks))
        if len(rows) != own:
            raise InvalidInputError(
                f"rank {self.rank} of {self.ranks} has {own} of {total} rows, got {len(rows)}: "
                "give a partitioned graph this rank's rows only"
            )
        share = -(-total // self.ranks)
        padded = rows.detach().contiguous()
        if own < share:
            padded = torch.cat([padded, padded.new_zeros(share - own, rows.shape[1])])
        gathered = padded.new_empty(self.ranks * share, rows.shape[1])
        # Renamed in torch 2.13, where the old name warns at every call.
        gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
        gather(gathered, padded, group=self._pg)
        return gathered

    def _place(self, ids: Any, total: int) -> Any:
        return ids % self.ranks * -(-total // self.ranks) + ids // self.ranks


def _norms(rows: Tensor) -> Tensor:
    """Squared norms, (rows, 1)."""
    return rows.square().sum(dim=1, keepdim=True)


class _Exchange:
    """Who asks whom for which rows, found out once for all reads of a batch's ids."""

    def __init__(self, ids: Tensor, pg: dist.ProcessGroup) -> None:
        self._pg, ranks = pg, dist.get_world_size(pg)
        owners = ids % ranks
        self._order = owners.argsort(stable=True)
        asked = owners.bincount(minlength=ranks)
        wanted = torch.empty_like(asked)
        dist.all_to_all_single(wanted, asked, group=pg)
        self._asked, self._wanted = asked.tolist(), wanted.tolist()
        # Places in this rank's rows of all that is asked of it, by who asks.
        self._places = self._send(ids[self._order] // ranks, self._asked, self._wanted)

    def pick(self, rows: Tensor) -> Tensor:
        """The rows of this rank's ids, from their owners."""
        came = self._send(rows.index_select(0, self._places), self._wanted, self._asked)
        return torch.empty_like(came).index_copy_(0, self._order, came)

    def put(self, rows: Tensor, total: int) -> Tensor:
        """The adjoint: rows (B, D) of all ranks' ids, added up at their owners, (total, D)."""
        came = self._send(rows.index_select(0, self._order), self._asked, self._wanted)
        return came.new_zeros(total, rows.shape[1]).index_add_(0, self._places, came)

    def _send(self, values: Tensor, lengths: list[int], coming: list[int]) -> Tensor:
        came = values.new_empty(sum(coming), *values.shape[1:])
        dist.all_to_all_single(came, values.contiguous(), coming, lengths, group=self._pg)
        return came


class _Picked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, exchange: _Exchange, rows: Tensor) -> Tensor:
        ctx.exchange, ctx.rows = exchange, len(rows)
        return exchange.pick(rows)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor]:
        return None, ctx.exchange.put(gradient, ctx.rows)
