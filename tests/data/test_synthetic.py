"""The generator: exact, skewed, reproducible, and worth learning."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse.linalg import svds

from bet_torchrec.data import DataError, generate, random_split


@settings(max_examples=30)
@given(st.integers(1, 40), st.integers(2, 40), st.floats(0, 1), st.integers(0, 3))
def test_exactly_so_many_distinct_pairs(users: int, items: int, fill: float, seed: int):
    most = users * items // 2
    n = int(users + fill * (most - users))
    data = generate(num_users=users, num_items=items, interactions=n, seed=seed)
    assert len(data) == n
    assert len(np.unique(data.users.astype(np.int64) * items + data.items)) == n
    assert data.counts()["user"].min() >= 1
    assert (data.num_users, data.num_items) == (users, items)


def test_same_seed_same_data():
    prints = [generate(num_users=90, num_items=80, interactions=900, seed=s) for s in (1, 1, 2)]
    assert prints[0].fingerprint() == prints[1].fingerprint() != prints[2].fingerprint()
    assert (prints[0].timestamps == prints[1].timestamps).all()


def test_counts_fall_as_a_power_law():
    data = generate(num_users=2000, num_items=3000, interactions=80_000, seed=0)
    for counts in data.counts().values():
        ranked = np.sort(counts)[::-1].astype(float)
        assert ranked[: len(ranked) // 10].sum() > 0.2 * len(data)
        middle = slice(len(ranked) // 100, len(ranked) // 2)
        ranks = np.log(np.arange(1, len(ranked) + 1))[middle]
        slope = np.polyfit(ranks, np.log(np.maximum(ranked[middle], 0.5)), 1)[0]
        assert -1.6 < slope < -0.3
    # ids carry no popularity
    order = np.argsort(-data.counts()["item"], kind="stable")
    assert abs(np.corrcoef(order, np.arange(3000))[0, 1]) < 0.1


def recall_at_20(scores: np.ndarray, split) -> float:
    scores = np.where(split.train.csr().toarray() > 0, -np.inf, scores)
    top = np.argpartition(-scores, 20, axis=1)[:, :20]
    hits = np.take_along_axis(split.test.csr().toarray(), top, axis=1).sum(axis=1)
    wanted = split.test.counts()["user"]
    return float((hits / np.maximum(wanted, 1))[wanted > 0].mean())


@pytest.mark.parametrize(("taste", "low", "high"), [(3.0, 1.5, np.inf), (0.0, 0.0, 1.05)])
def test_a_model_learns_more_than_popularity_only_where_there_is_taste(taste, low, high):
    data = generate(num_users=800, num_items=1000, interactions=40_000, seed=0, taste=taste)
    split = random_split(data, seed=0)
    seen = split.train.csr()
    u, s, v = svds(seen.astype(float), k=12, random_state=0)
    learned = recall_at_20((u * s) @ v, split)
    popular = recall_at_20(np.tile(split.train.counts()["item"], (800, 1)).astype(float), split)
    assert low * popular < learned < high * popular


@pytest.mark.parametrize(
    "wrong",
    [
        {"interactions": 9},
        {"interactions": 51},
        {"num_users": 0},
        {"factors": 0},
        {"num_items": -1},
    ],
)
def test_what_it_refuses(wrong: dict[str, int]):
    with pytest.raises(DataError, match="should be"):
        generate(**{"num_users": 10, "num_items": 10, "interactions": 30, "seed": 0, **wrong})
