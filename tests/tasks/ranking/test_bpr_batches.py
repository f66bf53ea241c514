"""What every batch must be, and that draws have the stated law."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse, stats
from training_oracles import small_split

from bet_torchrec.data import Interactions
from bet_torchrec.errors import InvalidInputError
from bet_torchrec.tasks.ranking import BPRSampler
from bet_torchrec.tasks.ranking.sampling import Negatives


def interactions(matrix: np.ndarray) -> Interactions:
    users, items = np.nonzero(matrix)
    return Interactions(
        users=users.astype(np.int32),
        items=items.astype(np.int32),
        num_users=matrix.shape[0],
        num_items=matrix.shape[1],
    )


@settings(max_examples=50, deadline=None)
@given(
    st.integers(1, 8),
    st.integers(2, 8),
    st.integers(0, 2**32 - 1),
    st.sampled_from(["users", "pairs"]),
)
def test_every_batch_is_lawful(num_users, num_items, seed, how):
    rng = np.random.default_rng(seed)
    matrix = rng.random((num_users, num_items)) < rng.random()
    degrees = matrix.sum(axis=1)
    usable = (degrees > 0) & (degrees < num_items)
    data = interactions(matrix)
    if not usable.any():
        with pytest.raises(InvalidInputError, match="BPR needs"):
            BPRSampler(data, batch_size=3, how=how)
        return
    sampler = BPRSampler(data, batch_size=3, how=how, seed=seed)
    assert sampler.steps_per_epoch == -(-degrees[usable].sum() // 3)
    for step in range(5):
        users, positives, negatives = sampler.batch(step)
        assert len(users) == len(positives) == len(negatives) > 0
        assert users.dtype == positives.dtype == negatives.dtype == np.int64
        assert matrix[users, positives].all()
        assert not matrix[users, negatives].any()
        if how == "users":
            times = np.bincount(users, minlength=num_users)[usable]
            assert len(users) == 3
            assert times.max() - times.min() <= 1


def test_an_epoch_of_pairs_is_every_pair_once():
    train = small_split().train
    sampler = BPRSampler(train, batch_size=64, how="pairs", seed=1)
    pairs = set(zip(train.users.tolist(), train.items.tolist(), strict=True))
    orders = []
    for epoch in range(2):
        steps = range(epoch * sampler.steps_per_epoch, (epoch + 1) * sampler.steps_per_epoch)
        batches = [sampler.batch(step) for step in steps]
        users = np.concatenate([b.users for b in batches])
        items = np.concatenate([b.positives for b in batches])
        drawn = list(zip(users.tolist(), items.tolist(), strict=True))
        assert len(drawn) == len(pairs)
        assert set(drawn) == pairs
        orders.append(drawn)
    assert orders[0] != orders[1]


@pytest.mark.parametrize("how", ["users", "pairs"])
def test_a_batch_is_a_function_of_seed_and_step(how):
    train = small_split().train
    first, second = (BPRSampler(train, batch_size=20, how=how, seed=3) for _ in range(2))
    other = BPRSampler(train, batch_size=20, how=how, seed=4)
    for step in (0, 1, 100):
        first.batch(step)
    for step in (100, 7):
        assert all(
            np.array_equal(a, b) for a, b in zip(first.batch(step), second.batch(step), strict=True)
        )
        assert not np.array_equal(first.batch(step).negatives, other.batch(step).negatives)


def test_negatives_are_uniform_over_the_other_items():
    matrix = np.zeros((3, 12), dtype=bool)
    matrix[1, [0, 1, 5, 11]] = True
    matrix[2, :11] = True
    negatives = Negatives(sparse.csr_matrix(matrix))
    rng = np.random.default_rng(0)
    drawn = negatives.draw(np.full(8000, 1), rng)
    counts = np.bincount(drawn, minlength=12)
    assert not counts[[0, 1, 5, 11]].any()
    assert stats.chisquare(counts[~matrix[1]]).pvalue > 1e-3
    assert (negatives.draw(np.full(10, 2), rng) == 11).all()
    assert set(negatives.draw(np.zeros(500, int), rng)) == set(range(12))


def test_users_and_positives_are_uniform():
    matrix = np.zeros((6, 5), dtype=bool)
    matrix[1, [0, 3]] = matrix[4, [1, 2, 4]] = matrix[5, 0] = True
    sampler = BPRSampler(interactions(matrix), batch_size=1, seed=0)
    batches = [sampler.batch(step) for step in range(3000)]
    users = np.concatenate([b.users for b in batches])
    positives = np.concatenate([b.positives for b in batches])
    assert stats.chisquare(np.bincount(users, minlength=6)[[1, 4, 5]]).pvalue > 1e-3
    assert stats.chisquare(np.bincount(positives[users == 4])[[1, 2, 4]]).pvalue > 1e-3


def test_duplicates_count_once():
    data = interactions(np.eye(3, dtype=bool))
    twice = Interactions(
        users=np.r_[data.users, data.users],
        items=np.r_[data.items, data.items],
        num_users=3,
        num_items=3,
    )
    assert BPRSampler(twice, batch_size=2).num_pairs == 3


def test_errors():
    train = small_split().train
    with pytest.raises(InvalidInputError, match="batch_size"):
        BPRSampler(train, batch_size=0)
    with pytest.raises(InvalidInputError, match="sampler"):
        BPRSampler(train, batch_size=1, how="all")
