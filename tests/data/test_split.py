"""Splits: sizes, nothing lost, each user by itself, reproducible to the bit."""

from __future__ import annotations

import numpy as np
import pytest
from data_oracles import pair_lists, pairs_of, tiny
from hypothesis import given
from hypothesis import strategies as st

from bet_torchrec.data import (
    DataError,
    Interactions,
    Split,
    generate,
    published_split,
    random_split,
    temporal_split,
)

RATIOS = st.sampled_from([(0.5, 0.25, 0.25), (0.8, 0.1, 0.1), (1.0, 0.0, 0.0), (0.1, 0.0, 0.9)])


def plain_random_split(data: Interactions, ratios: tuple[float, ...], seed: int) -> list[set[int]]:
    """Positions of the three parts, user by user: what stored results were made with."""
    keys = np.random.default_rng(seed).random(len(data))
    parts: list[set[int]] = [set(), set(), set()]
    for user in range(data.num_users):
        own = sorted(np.flatnonzero(data.users == user).tolist(), key=lambda at: keys[at])
        first = max(int(np.floor(len(own) * ratios[0] + 0.5)), 1)
        second = max(int(np.floor(len(own) * (ratios[0] + ratios[1]) + 0.5)), first)
        for part, chosen in zip(parts, (own[:first], own[first:second], own[second:]), strict=True):
            part.update(chosen)
    return parts


@given(pair_lists(), RATIOS, st.integers(0, 9))
def test_random_split_is_the_plain_one(data: Interactions, ratios, seed: int):
    split = random_split(data, ratios=ratios, seed=seed)
    pairs = pairs_of(data)
    for part, positions in zip(split.parts(), plain_random_split(data, ratios, seed), strict=True):
        assert pairs_of(part) == [pairs[at] for at in sorted(positions)]


@given(pair_lists(), RATIOS, st.sampled_from(["random", "temporal", "published"]))
def test_nothing_is_lost_or_doubled(data: Interactions, ratios, how: str):
    if how == "random":
        split = random_split(data, ratios=ratios, seed=1)
    elif how == "temporal":
        split = temporal_split(data, ratios=ratios)
    else:
        split = published_split(data, validation_share=0.3)
    parts = [pair for part in split.parts() for pair in pairs_of(part)]
    assert sorted(parts) == sorted(pairs_of(data))
    if how != "published":
        assert set(split.train.users) == set(data.users)
    assert {part.num_users for part in split.parts()} == {data.num_users}
    assert sum(len(part.timestamps) for part in split.parts()) == len(data)


@given(pair_lists())
def test_ranks_are_by_training_counts_alone(data: Interactions):
    split = random_split(data, seed=0)
    ranked = split.by_rank()
    for side in ("user", "item"):
        assert (np.diff(ranked.train.counts()[side]) <= 0).all()
        labels = getattr(ranked.train, f"{side}_labels")
        for before, after in zip(split.parts(), ranked.parts(), strict=True):
            assert (labels[getattr(after, f"{side}s")] == getattr(before, f"{side}s")).all()


def test_sizes_by_hand():
    n = {1: (1, 0, 0), 2: (1, 1, 0), 3: (2, 0, 1), 9: (5, 2, 2), 10: (5, 3, 2)}
    for total, sizes in n.items():
        data = Interactions(users=[0] * total, items=range(total), num_users=1, num_items=total)
        assert tuple(map(len, random_split(data, seed=3).parts())) == sizes


def test_users_have_randomness_of_their_own():
    """With one permutation for all, users with the same items would have the same train."""
    users, items = 300, 20
    data = Interactions(
        users=np.repeat(np.arange(users), items),
        items=np.tile(np.arange(items), users),
        num_users=users,
        num_items=items,
    )
    counts = random_split(data, seed=0).train.counts()["item"]
    assert counts.sum() == users * items // 2
    # binomial(300, 1/2): 150 +- 8.7
    assert counts.min() > 150 - 45
    assert counts.max() < 150 + 45
    parts = [random_split(data, seed=seed).train.fingerprint() for seed in (0, 0, 1)]
    assert parts[0] == parts[1] != parts[2]


def test_published_split_is_the_mark():
    split = published_split(tiny())
    assert pairs_of(split.test) == [(0, 1), (1, 2), (2, 2)]
    assert pairs_of(split.train) == [(0, 0), (1, 0), (1, 1), (2, 1)]
    assert len(split.validation) == 0
    assert split.seed is None


def test_published_split_takes_validation_from_train_only():
    data = generate(num_users=50, num_items=60, interactions=1000, seed=0)
    rng = np.random.default_rng(0)
    marked = Interactions(
        users=data.users,
        items=data.items,
        num_users=50,
        num_items=60,
        test_mark=rng.random(1000) < 0.2,
    )
    split = published_split(marked, validation_share=0.1, seed=5)
    assert pairs_of(split.test) == pairs_of(published_split(marked).test)
    remaining = np.bincount(marked.users[~marked.test_mark], minlength=50)
    kept = np.maximum(np.floor(remaining * 0.9 + 0.5), remaining > 0)
    assert split.train.counts()["user"].tolist() == kept.tolist()
    assert "10%" in split.how


def test_temporal_split_cuts_each_users_history():
    split = temporal_split(tiny(), ratios=(0.5, 0.25, 0.25))
    assert pairs_of(split.train) == [(0, 1), (1, 0), (1, 1), (2, 2)]
    assert pairs_of(split.validation) == [(0, 0), (2, 1)]
    assert pairs_of(split.test) == [(1, 2)]


def test_temporal_split_over_all_cuts_at_two_moments():
    split = temporal_split(tiny(), ratios=(0.4, 0.3, 0.3), scope="global")
    latest = split.train.timestamps.max()
    assert latest <= split.validation.timestamps.min() <= split.test.timestamps.min()


def test_interactions_of_one_second_are_dealt_at_random():
    n = 400
    data = Interactions(
        users=np.repeat(np.arange(n), 2),
        items=np.tile([0, 1], n),
        num_users=n,
        num_items=2,
        timestamps=np.zeros(2 * n),
    )
    popular = temporal_split(data).train.counts()["item"]
    assert 150 < popular[0] < 250  # all 400 if ids settled it


@pytest.mark.parametrize(
    "ratios", [(0.5, 0.5), (0.5, 0.4, 0.4), (0, 0.5, 0.5), (1.5, -0.5, 0), (float("nan"), 0.5, 0.5)]
)
def test_ratios_that_are_none(ratios: tuple[float, ...]):
    with pytest.raises(DataError, match="ratios should be three numbers"):
        random_split(tiny(), ratios=ratios, seed=0)


@pytest.mark.parametrize("seed", [-1, 1.5, None, True])
def test_seeds_that_are_none(seed: object):
    with pytest.raises(DataError, match="seed should be a whole number"):
        random_split(tiny(), seed=seed)  # type: ignore[arg-type]


def test_what_the_data_lacks_is_said():
    bare = Interactions(users=[0, 0], items=[0, 1], num_users=1, num_items=2, name="bare")
    with pytest.raises(DataError, match="bare has no published split.*random_split"):
        published_split(bare)
    with pytest.raises(DataError, match="bare has no timestamps"):
        temporal_split(bare)
    with pytest.raises(DataError, match="validation_share"):
        published_split(tiny(), validation_share=1.0)
    with pytest.raises(DataError, match="scope"):
        temporal_split(tiny(), scope="world")  # type: ignore[arg-type]


def test_parts_share_their_tables():
    other = Interactions(users=[0], items=[0], num_users=9, num_items=4)
    with pytest.raises(DataError, match="same numbers of users and items"):
        Split(train=tiny(), validation=tiny(), test=other, how="by hand")
