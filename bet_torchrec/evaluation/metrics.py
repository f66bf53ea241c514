"""Recall@k and NDCG@k of each user, from one exact ranking.

Definitions, with R_u the distinct items that user u has in the evaluated part and L the list:
Recall@k = |L[:k] & R_u| / |R_u|. NDCG@k = DCG / IDCG with gain 1 for an item in R_u, discount
1 / log2(place + 1) (places from 1), and IDCG that of min(k, |R_u|) hits in the first places.
A user with an empty R_u has neither and is left out; ``Metrics.left_out`` says how many were.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse
from torch import Tensor

from ..errors import InvalidInputError
from .ranking import Masked, top_items, top_items_by, user_ids

if TYPE_CHECKING:
    from ..data import Split

KS = (5, 10, 20)


@runtime_checkable
class Ranker(Protocol):
    """A model with a ranking of its own (NCF's, see ``separable``)."""

    def top_items(
        self,
        *,
        k: int,
        masked: Masked | Sequence[Masked] | None = None,
        users: ArrayLike | None = None,
        block: int | None = None,
    ) -> NDArray[np.int64]: ...


Scores: TypeAlias = "tuple[Tensor, Tensor] | Ranker | Callable[[Tensor], Tensor]"


@dataclass(frozen=True, eq=False, kw_only=True)
class Metrics:
    """Every evaluated user's Recall and NDCG at several k.

    users: int64 (n,) ids. recall, ndcg: {k: float64 (n,)} in the order of ``users``.
    on: what was evaluated. masked: which interactions were kept out of the lists.
    left_out: users that were asked for but have no relevant item.
    """

    users: NDArray[np.int64]
    recall: Mapping[int, NDArray[np.float64]]
    ndcg: Mapping[int, NDArray[np.float64]]
    on: str = "test"
    masked: str = "train+validation"
    left_out: int = 0

    @property
    def ks(self) -> tuple[int, ...]:
        """The list lengths, as asked for."""
        return tuple(self.recall)

    def mean(self) -> dict[str, float]:
        """{"recall@5": ..., "ndcg@5": ..., ...}: means over users, NaN without any."""
        named = (("recall", self.recall), ("ndcg", self.ndcg))
        return {f"{name}@{k}": _mean(by_k[k]) for k in self.ks for name, by_k in named}

    def quality(self, ks: Sequence[int] = KS) -> float:
        """Eq. 13: the mean over users of the mean over k of (Recall@k + NDCG@k) / 2."""
        missing = [k for k in ks if k not in self.recall]
        if missing:
            raise InvalidInputError(
                f"quality needs k in {tuple(ks)}, evaluated were {self.ks}: "
                f"evaluate with ks={tuple(sorted({*self.ks, *ks}))}"
            )
        return float(np.mean([(_mean(self.recall[k]) + _mean(self.ndcg[k])) / 2 for k in ks]))

    def __str__(self) -> str:
        means = "  ".join(f"{name} {value:.4f}" for name, value in self.mean().items())
        return f"{self.on} ({self.masked} masked, {len(self.users)} users): {means}"


def _mean(values: NDArray[np.float64]) -> float:
    return float(values.mean()) if len(values) else float("nan")


def metrics_of_lists(
    lists: NDArray[np.int64],
    relevant: sparse.csr_matrix,
    *,
    users: ArrayLike | None = None,
    ks: Sequence[int] = KS,
    on: str = "test",
    masked: str = "nothing",
) -> Metrics:
    """Score ranked lists: (U, K) item ids, best first, -1 for nothing, K >= max(ks).

    relevant: (num_users, num_items), stored entries are relevant, duplicates count once.
    users: (U,) whose lists these are; all users without it.
    """
    ks = _checked_ks(ks)
    ids = user_ids(users, relevant.shape[0])
    lists = np.asarray(lists)
    if lists.ndim != 2 or len(lists) != len(ids) or lists.shape[1] < max(ks):
        raise InvalidInputError(
            f"expected {len(ids)} lists of at least {max(ks)} items, got shape {lists.shape}"
        )
    relevant = _distinct(relevant)
    sizes = np.diff(relevant.indptr)[ids]
    kept = sizes > 0
    ids, sizes, lists = ids[kept], sizes[kept], lists[kept, : max(ks)]

    hits = _hits(lists, relevant, ids)
    discounts = 1 / np.log2(np.arange(2, max(ks) + 2))
    ideal = np.concatenate([[0.0], discounts.cumsum()])
    hits_up_to = hits.cumsum(axis=1)
    gain_up_to = (hits * discounts).cumsum(axis=1)
    return Metrics(
        users=ids,
        recall={k: hits_up_to[:, k - 1] / sizes for k in ks},
        ndcg={k: gain_up_to[:, k - 1] / ideal[np.minimum(k, sizes)] for k in ks},
        on=on,
        masked=masked,
        left_out=int((~kept).sum()),
    )


def _hits(
    lists: NDArray[np.int64], relevant: sparse.csr_matrix, ids: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """(U, K): whether the item in that place is relevant to that user."""
    if not len(ids):
        return np.zeros(lists.shape, dtype=bool)
    num_users, num_items = relevant.shape
    owners = np.repeat(np.arange(num_users, dtype=np.int64), np.diff(relevant.indptr))
    pairs = owners * num_items + relevant.indices  # sorted, for rows and columns are
    asked = ids[:, None] * num_items + lists
    places = np.minimum(np.searchsorted(pairs, asked), len(pairs) - 1)
    return (pairs[places] == asked) & (lists >= 0)


def _distinct(matrix: sparse.csr_matrix) -> sparse.csr_matrix:
    """Sorted columns, each stored once, whatever the stored values are."""
    matrix = sparse.csr_matrix(matrix)
    if matrix.has_canonical_format:
        return matrix
    matrix = matrix.copy()
    matrix.sum_duplicates()
    return matrix


def _checked_ks(ks: Sequence[int]) -> tuple[int, ...]:
    ks = tuple(int(k) for k in ks)
    if not ks or min(ks) < 1 or len(set(ks)) != len(ks):
        raise InvalidInputError(f"expected distinct list lengths of at least 1, got ks={ks}")
    return ks


def evaluate(
    scores: Scores,
    split: Split,
    *,
    on: Literal["validation", "test"] = "test",
    mask: Literal["train", "train+validation"] | None = None,
    ks: Sequence[int] = KS,
    users: ArrayLike | None = None,
    block: int | None = None,
) -> Metrics:
    """Rank all items for every user and score the lists against one part of a split.

    scores: (user matrix, item matrix) for inner products; or a model with its own ``top_items``;
        or a function of (B,) user ids that returns (B, items) scores (CPU).
    on: the part whose items are relevant.
    mask: the interactions kept out of the lists. Without it: training ones on validation, training
        and validation ones on test. ("train" on test is the original LightGCN protocol, whose
        split has no validation part.)
    users: a subset to evaluate, for a quicker estimate.
    """
    if on not in ("validation", "test"):
        raise InvalidInputError(f"expected on='validation' or on='test', got {on!r}")
    if mask is None:
        mask = "train" if on == "validation" else "train+validation"
    if mask not in ("train", "train+validation"):
        raise InvalidInputError(f"expected mask='train' or 'train+validation', got {mask!r}")
    if on == "validation" and mask == "train+validation":
        raise InvalidInputError(
            "masking validation items while evaluating on them leaves nothing to find: "
            "use mask='train'"
        )
    ks = _checked_ks(ks)
    relevant = _distinct((split.validation if on == "validation" else split.test).csr())
    masked = (split.train,) if mask == "train" else (split.train, split.validation)
    asked = user_ids(users, relevant.shape[0])
    # Ranking costs, so only users who count are ranked.
    ids = asked[np.diff(relevant.indptr)[asked] > 0]

    k = max(ks)
    if isinstance(scores, tuple):
        lists = top_items(*scores, k=k, masked=masked, users=ids, block=block)
    elif isinstance(scores, Ranker):
        lists = scores.top_items(k=k, masked=masked, users=ids, block=block)
    else:
        lists = top_items_by(
            scores,
            num_users=relevant.shape[0],
            num_items=relevant.shape[1],
            k=k,
            masked=masked,
            users=ids,
            block=block,
        )
    found = metrics_of_lists(lists, relevant, users=ids, ks=ks, on=on, masked=mask)
    return replace(found, left_out=len(asked) - len(ids))
