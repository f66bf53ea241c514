"""Batches for BPR: users, one item each that they have, one that they have not.

A batch is a function of (seed, step) alone, so a run that resumes at a step needs no saved state
and continues identically.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from ...errors import InvalidInputError

if TYPE_CHECKING:
    from ...data import Interactions

SamplerName: TypeAlias = Literal["users", "pairs"]
Ids: TypeAlias = NDArray[np.int64]


class Batch(NamedTuple):
    """users, positives, negatives: int64 ids, (B,) each."""

    users: Ids
    positives: Ids
    negatives: Ids


class Negatives:
    """Items that a user has no interaction with, uniformly, exactly and without rejection.

    The j-th smallest positive p_j of a user has p_j - j other items below it, so the k-th other
    item is k + |{j: p_j - j <= k}|: one binary search in the sorted keys (user, p_j - j).
    """

    def __init__(self, positives: sparse.csr_matrix) -> None:
        self._starts = positives.indptr.astype(np.int64)
        self._others = positives.shape[1] - np.diff(self._starts)
        self._stride = positives.shape[1] + 1
        owners = np.repeat(np.arange(positives.shape[0], dtype=np.int64), np.diff(self._starts))
        places = np.arange(positives.nnz, dtype=np.int64) - self._starts[owners]
        self._keys = owners * self._stride + positives.indices - places

    def draw(self, users: Ids, rng: np.random.Generator) -> Ids:
        """One item for each of ``users``, (B,); each must have an item left."""
        k = (rng.random(len(users)) * self._others[users]).astype(np.int64)
        at_most = np.searchsorted(self._keys, users * self._stride + k, side="right")
        return k + at_most - self._starts[users]


class BPRSampler:
    """Draws the batches of one training run.

    how: "users", as in BET's published code: a batch is ``batch_size`` distinct users, each with
        one of its items; an epoch is ceil(pairs / batch_size) batches. (A larger batch than there
        are users has every user equally often, give or take one.) Metrics are means over users,
        and this weighs users alike. "pairs": an epoch is every distinct interaction once, shuffled.
    Users without interactions, and those who have every item, are never drawn.
    """

    def __init__(
        self,
        train: Interactions,
        *,
        batch_size: int,
        how: SamplerName = "users",
        seed: int = 0,
    ) -> None:
        if batch_size < 1:
            raise InvalidInputError(f"batch_size should be at least 1, got {batch_size}")
        if how not in ("users", "pairs"):
            raise InvalidInputError(f"sampler should be 'users' or 'pairs', got {how!r}")
        positives = sparse.csr_matrix(train.csr())
        positives.sum_duplicates()  # also sorts each user's items
        degrees = np.diff(positives.indptr)
        drawn = (degrees > 0) & (degrees < positives.shape[1])
        if not drawn.any():
            raise InvalidInputError(
                "BPR needs a user with at least one item and not all of them, got none among "
                f"{len(degrees)} users with {positives.nnz} distinct interactions"
            )
        self.how = how
        self.seed = seed
        self._items = positives.indices.astype(np.int64)
        self._starts = positives.indptr.astype(np.int64)
        self._users = np.flatnonzero(drawn)
        self._owners = np.repeat(np.arange(len(degrees), dtype=np.int64), degrees)
        self._pairs = np.flatnonzero(drawn[self._owners])
        self._negatives = Negatives(positives)
        self.num_pairs = len(self._pairs)
        self.batch_size = batch_size
        self.steps_per_epoch = -(-self.num_pairs // batch_size)
        self._shuffled: tuple[int, Ids] | None = None

    def batch(self, step: int) -> Batch:
        """The batch of a step, counted from 0 on; the same one whenever it is asked for."""
        rng = np.random.default_rng([self.seed, 0, step])
        if self.how == "users":
            times, rest = divmod(self.batch_size, len(self._users))
            drawn = np.full(len(self._users), times)
            drawn[rng.choice(len(drawn), rest, replace=False, shuffle=False)] += 1
            # Users in order: in a batch it means nothing, and every lookup below is faster.
            users = np.repeat(self._users, drawn)
            first, last = self._starts[users], self._starts[users + 1]
            positives = self._items[first + (rng.random(len(users)) * (last - first)).astype(int)]
        else:
            epoch, place = divmod(step, self.steps_per_epoch)
            begin = place * self.batch_size
            # Sorted for the same reason.
            pairs = np.sort(self._epoch(epoch)[begin : begin + self.batch_size])
            users, positives = self._owners[pairs], self._items[pairs]
        return Batch(users, positives, self._negatives.draw(users, rng))

    def _epoch(self, epoch: int) -> Ids:
        if self._shuffled is None or self._shuffled[0] != epoch:
            rng = np.random.default_rng([self.seed, 1, epoch])
            self._shuffled = (epoch, rng.permutation(self._pairs))
        return self._shuffled[1]
