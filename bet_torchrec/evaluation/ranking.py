"""Exact full ranking: every item scored for every user, the k best kept.

Users go by in blocks, so that the scores of one block a thread are the only large arrays. Scores
are fp32. Ties go to the lower item id, also at the edge of the list, so that a ranking is a
function of the scores alone and not of the machine that sorted them.

On CPU each thread takes whole blocks, instead of all threads sharing every operation: no waiting at
thousands of barriers, which also keeps a busy machine from slowing it down many times over.

Shapes: U users asked for, I items, D width, B users in a block, k list length.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy import sparse
from torch import Tensor

from ..errors import InvalidInputError
from .threads import for_each

if TYPE_CHECKING:
    from ..data import Interactions

Masked: TypeAlias = "sparse.spmatrix | sparse.sparray | Interactions"

# (ids (B,), a buffer (B, I)) -> scores (B, I) in the buffer; called from several threads.
ScoreInto: TypeAlias = Callable[[Tensor, Tensor], Tensor]

_BLOCK = {"cpu": 256, "cuda": 2048}  # users; 42 MB of scores a thread at 40,981 items on CPU


def top_items(
    user_matrix: Tensor,
    item_matrix: Tensor,
    *,
    k: int,
    masked: Masked | Sequence[Masked] | None = None,
    users: ArrayLike | None = None,
    block: int | None = None,
) -> NDArray[np.int64]:
    """The k items with the largest inner product for each user, exactly.

    user_matrix: (num_users, D) and item_matrix: (I, D), on one device, which does the work (fp32).
    masked: what a list must not contain: a sparse (num_users, I) matrix whose stored entries are
        masked, ``Interactions``, or a sequence of those (all of them masked).
    users: ids to rank for, (U,), all users without it.
    block: users scored at a time by a thread; 256 on CPU and 2,048 on CUDA without it.

    Returns (U, k) item ids, best first, ties by id. A user with fewer than k unmasked items has -1
    in the places that are left.

    Raises:
        InvalidInputError: shapes that don't fit together, or scores that are not finite.
    """
    if user_matrix.ndim != 2 or item_matrix.ndim != 2:
        raise InvalidInputError(
            "expected two matrices (users x width, items x width), got shapes "
            f"{tuple(user_matrix.shape)} and {tuple(item_matrix.shape)}"
        )
    if user_matrix.shape[1] != item_matrix.shape[1]:
        raise InvalidInputError(
            f"user rows are {user_matrix.shape[1]} wide and item rows {item_matrix.shape[1]}: "
            "both must come from the same model"
        )
    left, right = user_matrix.detach().float(), item_matrix.detach().float().T.contiguous()
    return rank(
        lambda ids, out: torch.mm(left[ids], right, out=out),
        num_users=len(user_matrix),
        num_items=len(item_matrix),
        k=k,
        masked=masked,
        users=users,
        block=block,
        device=user_matrix.device,
    )


def top_items_by(
    score_block: Callable[[Tensor], Tensor],
    *,
    num_users: int,
    num_items: int,
    k: int,
    masked: Masked | Sequence[Masked] | None = None,
    users: ArrayLike | None = None,
    block: int | None = None,
    device: torch.device | str = "cpu",
) -> NDArray[np.int64]:
    """As ``top_items``, for any model that can score all items for a block of users.

    score_block: (B,) user ids on ``device`` -> (B, num_items) scores; called from one thread, and
        not written to.
    """

    def score_into(ids: Tensor, out: Tensor) -> Tensor:
        scores = score_block(ids)
        if scores.shape != out.shape:
            raise InvalidInputError(
                f"expected scores of shape {tuple(out.shape)}, got {tuple(scores.shape)}"
            )
        return out.copy_(scores)  # fp32 and ours to write to, whatever came

    return rank(
        score_into,
        num_users=num_users,
        num_items=num_items,
        k=k,
        masked=masked,
        users=users,
        block=block,
        device=device,
        concurrent=False,
    )


def rank(
    score_into: ScoreInto,
    *,
    num_users: int,
    num_items: int,
    k: int,
    masked: Masked | Sequence[Masked] | None,
    users: ArrayLike | None,
    block: int | None,
    device: torch.device | str,
    concurrent: bool = True,
) -> NDArray[np.int64]:
    """The common part of all rankings; the arguments are those of ``top_items``."""
    device = torch.device(device)
    block = _BLOCK.get(device.type, 1024) if block is None else block
    if k < 1 or block < 1:
        raise InvalidInputError(f"k and block must be at least 1, got k={k}, block={block}")
    ids = user_ids(users, num_users)
    mask = mask_matrix(masked, (num_users, num_items))
    found = np.full((len(ids), k), -1, dtype=np.int64)
    if not num_items:
        return found

    def rank_block(start: int, buffer: Tensor) -> None:
        part = ids[start : start + block]
        scores = score_into(torch.as_tensor(part, device=device), buffer[: len(part)])
        if mask is not None:
            hide(scores, mask, part)
        best = best_of(scores, min(k, num_items))
        found[start : start + block, : best.shape[1]] = best.cpu().numpy()

    for_each(
        range(0, len(ids), block),
        rank_block,
        # Made once a thread: fresh memory of this size costs as much as the product.
        resource=lambda: torch.empty(min(block, len(ids)), num_items, device=device),
        concurrent=concurrent and device.type == "cpu",
    )
    return found


def best_of(scores: Tensor, k: int) -> Tensor:
    """(B, I) scores -> (B, k) columns, best first, ties to the lower column, -1 where -inf."""
    width = scores.shape[1]
    values, columns = scores.topk(min(k + 1, width), dim=1)
    if values.isnan().any() or values.isposinf().any():
        raise InvalidInputError(
            "the model's scores are not finite: it has probably diverged in training"
        )
    if width > k:
        # Only rows whose k-th and next score are equal can hold a wrong member of the tie.
        edge = values[:, k - 1]
        tied = ((values[:, k] == edge) & ~edge.isneginf()).nonzero()[:, 0]
        values, columns = values[:, :k], columns[:, :k]
        if len(tied):
            columns = columns.clone()
            columns[tied] = _lowest_of_ties(scores[tied], edge[tied], k)
    columns = columns.sort(dim=1).values
    values, order = scores.gather(1, columns).sort(dim=1, descending=True, stable=True)
    return columns.gather(1, order).masked_fill_(values.isneginf(), -1)


def _lowest_of_ties(scores: Tensor, edge: Tensor, k: int) -> Tensor:
    """(R, k) columns: all above the edge, then the lowest of those equal to it."""
    width = scores.shape[1]
    key = torch.arange(width, 0, -1, dtype=torch.int32, device=scores.device).expand_as(scores)
    key = torch.where(scores > edge[:, None], key + width, key)
    return key.masked_fill(scores < edge[:, None], 0).topk(k, dim=1).indices


def hide(scores: Tensor, mask: sparse.csr_matrix, users: NDArray[np.int64]) -> None:
    """Set the masked items of each user's row to -inf, in place."""
    starts, ends = mask.indptr[users].astype(np.int64), mask.indptr[users + 1].astype(np.int64)
    lengths = ends - starts
    total = int(lengths.sum())
    if not total:
        return
    # Positions in mask.indices: a running number, shifted to where each row's entries begin.
    shift = np.repeat(starts - (lengths.cumsum() - lengths), lengths)
    columns = mask.indices[np.arange(total) + shift]
    flat = np.repeat(np.arange(len(users)) * scores.shape[1], lengths) + columns
    places = torch.as_tensor(flat, device=scores.device)
    scores.view(-1).index_fill_(0, places, -torch.inf)


def mask_matrix(
    masked: Masked | Sequence[Masked] | None, shape: tuple[int, int]
) -> sparse.csr_matrix | None:
    """Everything masked as one (num_users, num_items) CSR matrix, or None."""
    if masked is None:
        return None
    parts = masked if isinstance(masked, Sequence) else (masked,)
    total: sparse.csr_matrix | None = None
    for part in parts:
        matrix = sparse.csr_matrix(part if sparse.issparse(part) else part.csr())
        # As truth values, so that no stored zero or negative number can undo a mask in the sum.
        stored = np.ones(matrix.nnz, dtype=bool)
        matrix = sparse.csr_matrix((stored, matrix.indices, matrix.indptr), shape=matrix.shape)
        if matrix.shape != shape:
            raise InvalidInputError(
                f"expected masked interactions of {shape[0]} users x {shape[1]} items, "
                f"got {matrix.shape[0]} x {matrix.shape[1]}"
            )
        total = matrix if total is None else total + matrix
    return total


def user_ids(users: ArrayLike | None, num_users: int) -> NDArray[np.int64]:
    """User ids to rank for, (U,), checked; all of them for None."""
    if users is None:
        return np.arange(num_users, dtype=np.int64)
    ids = np.asarray(users, dtype=np.int64)
    if ids.ndim != 1 or (len(ids) and (ids.min() < 0 or ids.max() >= num_users)):
        raise InvalidInputError(
            f"expected a flat list of user ids from 0 to {num_users - 1}, got shape {ids.shape}"
            + (f" with ids {ids.min()} to {ids.max()}" if ids.size else "")
        )
    return ids
