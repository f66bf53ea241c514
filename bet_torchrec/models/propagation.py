"""Products with the normalised adjacency of a user-item graph, fast on a CPU.

A = D^-1/2 [[0, R], [R^T, 0]] D^-1/2 is kept as its two blocks, each in CSR form, and a product with
a dense matrix is an embedding bag: the weighted sum of the rows that an adjacency row names. On CPU
that is FBGEMM's vectorised kernel with prefetching, several times faster than a sparse COO product.
Two blocks instead of one matrix keep each gathered table smaller (cache) and ids are int32. A is
symmetric, so the backward pass of a product is the same product.

Shapes: U users, I items, E edges (distinct interactions), D width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ..errors import InvalidInputError

if TYPE_CHECKING:
    from .protocol import EmbeddingModule

Pick: TypeAlias = Callable[[Tensor], Tensor]


class BipartiteGraph(nn.Module):
    """The normalised adjacency of distinct interactions, ready for products.

    interactions: (U, I) sparse matrix whose stored non-zero entries are the edges (whatever their
        value: an interaction that occurs twice is one edge). Rows without edges read as zeros.

    A model of it reads its tables by ``tables``, rows of some ids by ``picker``, and gives final
    rows away by ``whole``; then it also runs on a graph that several processes share, of which each
    only has its own rows (``PartitionedGraph``).
    """

    users_columns: Tensor
    users_offsets: Tensor
    users_weights: Tensor
    items_columns: Tensor
    items_offsets: Tensor
    items_weights: Tensor

    def __init__(self, interactions: sparse.spmatrix | sparse.sparray) -> None:
        super().__init__()
        if not sparse.issparse(interactions):
            raise InvalidInputError(
                "a graph is made of a sparse (users, items) matrix, such as Interactions.csr(), "
                f"got {type(interactions).__name__}"
            )
        edges = sparse.csr_matrix(interactions, dtype=np.float64)
        edges.sum_duplicates()
        edges.eliminate_zeros()
        edges.data[:] = 1.0
        self.num_users, self.num_items = edges.shape
        left = _inverse_root(np.diff(edges.indptr))
        right = _inverse_root(np.bincount(edges.indices, minlength=self.num_items))
        to_users = sparse.csr_matrix(sparse.diags(left) @ edges @ sparse.diags(right))
        to_users.sort_indices()
        to_items = sparse.csr_matrix(to_users.T)
        to_items.sort_indices()
        self._keep("users", to_users)
        self._keep("items", to_items)

    def _keep(self, side: str, block: sparse.csr_matrix) -> None:
        # Not persistent: made again from the interactions, no weights to save.
        for name, array, dtype in (
            ("columns", block.indices, np.int32),
            ("offsets", block.indptr, np.int32),
            ("weights", block.data, np.float32),
        ):
            tensor = torch.from_numpy(np.ascontiguousarray(array, dtype=dtype))
            self.register_buffer(f"{side}_{name}", tensor, persistent=False)

    @property
    def num_edges(self) -> int:
        """Distinct interactions."""
        return int(self.users_columns.numel())

    def tables(self, embedding: EmbeddingModule) -> tuple[Tensor, Tensor]:
        """The "user" and "item" rows that this process computes with: here all of them."""
        return embedding.table("user"), embedding.table("item")

    def picker(self, ids: Tensor | None) -> Pick:
        """A differentiable function: this process's rows -> the rows of int64 ids (B,).

        Without ids the rows as they are.
        """
        return _as_they_are if ids is None else lambda rows: F.embedding(ids, rows)

    def whole(self, users: Tensor, items: Tensor) -> tuple[Tensor, Tensor]:
        """All users' and all items' rows in id order, out of this process's. No autograd."""
        return users, items

    def to_users(self, items_ID: Tensor, scale: float = 1.0) -> Tensor:
        """scale * R @ items, (U, D). No autograd: see ``propagate``."""
        return _bag(items_ID, self.users_columns, self.users_offsets, self.users_weights, scale)

    def to_items(self, users_UD: Tensor, scale: float = 1.0) -> Tensor:
        """scale * R^T @ users, (I, D). No autograd: see ``propagate``."""
        return _bag(users_UD, self.items_columns, self.items_offsets, self.items_weights, scale)

    def propagate(self, users_UD: Tensor, items_ID: Tensor) -> tuple[Tensor, Tensor]:
        """One layer, A @ [users; items], as (U, D) and (I, D), differentiable."""
        return _Product.apply(self, users_UD, items_ID)

    def layer_mean(
        self, users_UD: Tensor, items_ID: Tensor, *, layers: int
    ) -> tuple[Tensor, Tensor]:
        """The mean over layers 0..layers of A^l @ [users; items], (U, D) and (I, D).

        Differentiable; the layers themselves are never kept.
        """
        if layers < 0:
            raise InvalidInputError(f"layers should be at least 0, got {layers}")
        if layers == 0:
            return users_UD, items_ID
        return _LayerMean.apply(self, layers, users_UD, items_ID)

    def layer_mean_rows(
        self,
        users_UD: Tensor,
        items_ID: Tensor,
        users: Tensor,
        items: Tensor,
        *,
        layers: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Rows of ``layer_mean``, and half the squared norm of the same rows of the tables.

        users, items: int64 ids, which may repeat. Equal to gathering the rows of ``layer_mean`` and
        of the tables, but with one gradient a table, in which the norm's part is added in place.
        """
        return _LayerMeanRows.apply(self, layers, users_UD, items_ID, users, items)


def _as_they_are(rows: Tensor) -> Tensor:
    return rows


def _inverse_root(degrees: NDArray[Any]) -> NDArray[np.float64]:
    return 1 / np.sqrt(np.maximum(degrees, 1, dtype=np.float64))


def _bag(table: Tensor, columns: Tensor, offsets: Tensor, weights: Tensor, scale: float) -> Tensor:
    weights = weights.to(table.dtype)
    if scale != 1.0:
        weights = weights * scale
    with torch.no_grad():
        return F.embedding_bag(
            columns,
            table.contiguous(),
            offsets,
            mode="sum",
            per_sample_weights=weights,
            include_last_offset=True,
        )


def _layer_mean(
    graph: BipartiteGraph, layers: int, users: Tensor, items: Tensor
) -> tuple[Tensor, Tensor]:
    """s * (1 + A + ... + A^L) with s = 1 / (L + 1).

    With an odd L that is (1 + A^2 + ... + A^(L-1)) (s + sA), by Horner's rule: as many products as
    layer by layer, fewer additions, and nothing but the running sum in memory. An even L has one
    plain Horner step less to factor: s + A * (the odd sum below it).
    """
    if layers == 0:
        return users.clone(), items.clone()
    s = 1.0 / (layers + 1)
    first_users = graph.to_users(items, s).add_(users, alpha=s)
    first_items = graph.to_items(users, s).add_(items, alpha=s)
    sum_users, sum_items = first_users, first_items
    for _ in range((layers - 1) // 2):
        sum_users, sum_items = (
            graph.to_users(graph.to_items(sum_users)).add_(first_users),
            graph.to_items(graph.to_users(sum_items)).add_(first_items),
        )
    if layers % 2 == 0:
        sum_users, sum_items = (
            graph.to_users(sum_items).add_(users, alpha=s),
            graph.to_items(sum_users).add_(items, alpha=s),
        )
    return sum_users, sum_items


class _LayerMean(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, graph: BipartiteGraph, layers: int, users: Tensor, items: Tensor
    ) -> tuple[Tensor, Tensor]:
        ctx.graph, ctx.layers = graph, layers
        return _layer_mean(graph, layers, users, items)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, users: Tensor, items: Tensor) -> tuple[None, None, Tensor, Tensor]:
        return None, None, *_layer_mean(ctx.graph, ctx.layers, users, items)


def _square(rows: Tensor) -> Tensor:
    return rows.view(-1).dot(rows.view(-1))


class _LayerMeanRows(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        graph: BipartiteGraph,
        layers: int,
        user_table: Tensor,
        item_table: Tensor,
        users: Tensor,
        items: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.graph, ctx.layers = graph, layers
        ctx.save_for_backward(user_table, item_table, users, items)
        final_users, final_items = _layer_mean(graph, layers, user_table, item_table)
        norm = _square(user_table.index_select(0, users)) + _square(
            item_table.index_select(0, items)
        )
        rows = final_users.index_select(0, users), final_items.index_select(0, items)
        return *rows, norm / 2

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, user_rows: Tensor, item_rows: Tensor, norm: Tensor
    ) -> tuple[None, None, Tensor, Tensor, None, None]:
        user_table, item_table, users, items = ctx.saved_tensors
        user_gradient, item_gradient = _layer_mean(
            ctx.graph,
            ctx.layers,
            torch.zeros_like(user_table).index_add_(0, users, user_rows),
            torch.zeros_like(item_table).index_add_(0, items, item_rows),
        )
        user_gradient.index_add_(0, users, user_table.index_select(0, users).mul_(norm))
        item_gradient.index_add_(0, items, item_table.index_select(0, items).mul_(norm))
        return None, None, user_gradient, item_gradient, None, None


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, graph: BipartiteGraph, users: Tensor, items: Tensor
    ) -> tuple[Tensor, Tensor]:
        ctx.graph = graph
        return graph.to_users(items), graph.to_items(users)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, users: Tensor, items: Tensor) -> tuple[None, Tensor, Tensor]:
        return None, ctx.graph.to_users(items), ctx.graph.to_items(users)
