"""Splits of click logs: who goes where, and tables as the training part knows them."""

from __future__ import annotations

import numpy as np
import pytest
from click_oracles import examples_of, logs, tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from bet_torchrec.data import DataError
from bet_torchrec.data.clicks import (
    ClickLog,
    ClickSplit,
    Field,
    split_given,
    split_random,
    split_temporal,
)


@given(logs(), st.integers(0, 9))
@settings(max_examples=40, deadline=None)
def test_a_random_split_deals_every_example_once(log: ClickLog, seed: int):
    split = split_random(log, (0.6, 0.2, 0.2), seed=seed)
    assert sorted(e for part in split.parts() for e in examples_of(part)) == sorted(
        examples_of(log)
    )
    first, second = round(len(log) * 0.6), round(len(log) * 0.8)
    assert [len(part) for part in split.parts()] == [first, second - first, len(log) - second]
    again = split_random(log, (0.6, 0.2, 0.2), seed=seed)
    assert again.fingerprint() == split.fingerprint()


def test_seeds_differ():
    log = ClickLog.from_arrays(
        [Field("x", 100)], labels=np.arange(100) % 2, ids=[[i] for i in range(100)]
    )
    assert split_random(log, seed=0).fingerprint() != split_random(log, seed=1).fingerprint()


def test_a_temporal_split_cuts_at_moments():
    split = split_temporal(tiny(), (0.5, 1 / 6, 1 / 3))
    assert [sorted(part.timestamps.tolist()) for part in split.parts()] == [
        [10, 20, 30],
        [40],
        [50, 60],
    ]
    turned = split_temporal(tiny(), (0.5, 1 / 6, 1 / 3), timestamps=[6, 5, 4, 3, 2, 1.5])
    assert turned.test.timestamps.tolist() == [10, 30]


def test_given_parts():
    split = split_given(tiny(), train=slice(0, 3), validation=[5], test=np.array([4, 3]))
    assert [part.timestamps.tolist() for part in split.parts()] == [[10, 30, 20], [60], [40, 50]]
    with pytest.raises(DataError, match="should not overlap, got example 2 twice"):
        split_given(tiny(), train=slice(0, 3), validation=[2], test=[])
    with pytest.raises(DataError, match="should not overlap, got example 1 twice"):
        split_given(tiny(), train=[1, 1], validation=[2], test=[])
    with pytest.raises(DataError, match="at least one training example"):
        split_given(tiny(), train=[], validation=[2], test=[3])


def test_the_vocabulary_is_of_the_training_part():
    split = split_given(tiny(), train=[0, 1, 3, 4], validation=[2], test=[5]).with_vocabulary()
    # Users 1 and 3 are in train, 2 is not, and 4 nowhere.
    assert split.fields == (
        Field("user", 3),
        Field("genres", 3, multi_hot=True),
        Field("item", 3),
    )
    assert split.train.ids[:, 0].tolist() == [1, 1, 2, 2]
    assert split.validation.ids.tolist() == [[0, 1]]
    assert split.test.ids.tolist() == [[2, 1]]
    known = split.train.vocabularies["user"]
    assert known.encode(["ann", "bob", "cy", "dee", "eve"]).tolist() == [1, 0, 2, 0, 0]
    assert split.fingerprint() == split.with_vocabulary().fingerprint()


def test_a_minimum_count_by_field():
    split = split_given(tiny(), train=slice(0, 6), validation=[], test=[])
    both = split.with_vocabulary({"item": 3})
    assert [field.rows for field in both.fields] == [4, 3, 2]
    assert both.train.counts()["item"].tolist() == [2, 4]
    assert split.with_vocabulary(3).train.counts()["user"].tolist() == [3, 3]
    with pytest.raises(DataError, match="min_count should be 1 or more, got 0"):
        split.with_vocabulary(0)
    with pytest.raises(DataError, match="one of user, genres, item, got 'itme'"):
        split.with_vocabulary({"itme": 2})


def test_ranks_by_hand():
    split, ranks = split_given(tiny(), train=slice(0, 6), validation=[], test=[]).by_rank()
    # Counts were 0 2 1 3 0: rows 3, 1, 2, then 0 and 4.
    assert ranks["user"].tolist() == [3, 1, 2, 0, 4]
    assert split.fields[0] == Field("user", 5, oov=3)
    assert split.train.ids[:, 0].tolist() == [1, 1, 2, 0, 0, 0]
    assert split.train.vocabularies["user"].encode(["cy", "eve"]).tolist() == [0, 3]
    assert split.ranks["user"].tolist() == [3, 1, 2, 0, 4]
    assert split.with_vocabulary().ranks is None
    assert repr(split) == ("ClickSplit('tiny', given: 6 / 0 / 0 examples, 3 fields, 12 rows)")


@given(logs())
@settings(max_examples=40, deadline=None)
def test_ranks_fall_and_come_back(log: ClickLog):
    before = split_random(log, (0.7, 0.1, 0.2), seed=3)
    if not len(before.train):
        return
    split, ranks = before.by_rank()
    for name, count in split.train.counts().items():
        assert (np.diff(count) <= 0).all()
        assert sorted(ranks[name].tolist()) == list(range(len(count)))
        assert count[ranks[name]].tolist() == before.train.counts()[name].tolist()
    for old, new in zip(before.parts(), split.parts(), strict=True):
        for i, name in enumerate(log.single):
            assert new.ids[:, i].tolist() == ranks[name][old.ids[:, i]].tolist()
    again, twice = split.by_rank()
    assert again.fingerprint() == split.fingerprint()
    assert all((twice[name] == ranks[name]).all() for name in ranks)
    # The out-of-vocabulary row stays what it is, wherever its rank is.
    trimmed = split.with_vocabulary(2)
    expected = before.with_vocabulary(2)
    assert trimmed.fields == expected.fields
    for name, count in trimmed.train.counts().items():
        assert count[0] == expected.train.counts()[name][0]


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda log: split_random(log, (0.5, 0.5), seed=0), "three numbers"),
        (lambda log: split_random(log, (0, 0.5, 0.5), seed=0), "the first above 0"),
        (lambda log: split_random(log, seed=-1), "seed should be a whole number"),
        (
            lambda log: split_temporal(log, timestamps=[1, 2]),
            r"should be numbers \(6,\)",
        ),
        (lambda log: split_temporal(log, timestamps=[np.nan] * 6), "finite, got nan"),
    ],
)
def test_bad_splits(call: object, says: str):
    with pytest.raises(DataError, match=says):
        call(tiny())  # type: ignore[operator]


def test_without_times_no_temporal_split():
    log = ClickLog.from_arrays([Field("x", 2)], labels=[0, 1], ids=[[0], [1]])
    with pytest.raises(DataError, match="has no timestamps; give them"):
        split_temporal(log)


def test_parts_of_other_fields():
    one = tiny()
    other = ClickLog.from_arrays([Field("x", 2)], labels=[0, 1], ids=[[0], [1]])
    with pytest.raises(DataError, match="same fields, got .* in train and .* in validation"):
        ClickSplit(train=one, validation=other, test=one)


def test_a_summary_has_the_tails():
    split = split_given(tiny(), train=slice(0, 6), validation=[], test=[])
    text = split.summary()
    # Of 12 rows 0, 1, 2, 4 (user), 0, 3 (genres), 0, 2 (item) occur at most twice.
    assert "3 fields, 12 rows, 66.7% of them at most twice in train" in text
    assert "train: 6 examples, 50.0% positive" in text
    assert "genres: 4 rows, 2 in the median, 3 at most, multi-hot" in text
