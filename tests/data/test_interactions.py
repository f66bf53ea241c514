"""Interactions: what is checked, dropped, counted, relabelled, saved."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from data_oracles import original_pairs, pair_lists, pairs_of, tiny
from hypothesis import given
from hypothesis import strategies as st

from bet_torchrec.data import DataError, Interactions
from bet_torchrec.errors import BetError


def test_counts_include_empty_rows():
    counts = tiny().counts()
    assert counts["user"].tolist() == [2, 3, 2]
    assert counts["item"].tolist() == [2, 3, 2, 0]
    assert counts["user"].dtype == np.int64


def test_csr_is_one_where_a_pair_occurs_even_twice():
    twice = Interactions(users=[0, 0, 1], items=[1, 1, 0], num_users=2, num_items=3)
    matrix = twice.csr()
    assert matrix.toarray().tolist() == [[0, 1, 0], [1, 0, 0]]
    assert matrix.dtype == np.float32


def test_fingerprint_is_of_pairs_and_order_and_does_not_change_with_versions():
    data = tiny()
    # Written down so that stored results stay comparable: ids as little-endian int32.
    assert data.fingerprint() == "24fe668108e1468b"
    assert data.fingerprint() == tiny().subset(np.arange(7)).fingerprint()
    assert data.subset(np.arange(7)[::-1]).fingerprint() != data.fingerprint()


def test_arrays_are_read_only_and_the_callers_stay_writable():
    own = np.array([0, 1], dtype=np.int32)
    data = Interactions(users=own, items=own, num_users=2, num_items=2)
    with pytest.raises(ValueError, match="read-only"):
        data.users[0] = 1
    own[0] = 1


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"users": [0, -1]}, "users should be from 0 to 1, got -1"),
        ({"users": [0, 2]}, "users should be from 0 to 1, got 0 to 2"),
        ({"items": [0]}, "items should have shape"),
        ({"users": [0.0, 1.0]}, "one dimension of integers"),
        ({"users": [[0], [1]]}, "one dimension of integers"),
        ({"num_users": 0}, "num_users should be from 1"),
        ({"timestamps": [1]}, "timestamps should have shape"),
        ({"user_labels": ["a", "b", "c"]}, "user_labels should have shape"),
    ],
)
def test_what_it_refuses(changed: dict[str, object], says: str):
    fields = {"users": [0, 1], "items": [0, 1], "num_users": 2, "num_items": 2, **changed}
    with pytest.raises(DataError, match=says) as refused:
        Interactions(**fields)  # type: ignore[arg-type]
    assert isinstance(refused.value, BetError)
    assert isinstance(refused.value, ValueError)


def test_from_pairs_makes_string_ids_dense_in_sorted_order():
    data = Interactions.from_pairs(["eve", "bob", "eve"], [30, 7, 7])
    assert data.user_labels.tolist() == ["bob", "eve"]
    assert data.item_labels.tolist() == [7, 30]
    assert pairs_of(data) == [(0, 0), (1, 0), (1, 1)]


def test_dense_ids_keep_no_labels():
    data = Interactions.from_pairs([1, 0], [0, 0])
    assert data.user_labels is None
    assert data.item_labels is None


def test_rows_that_never_occur_go_unless_ids_are_kept():
    assert Interactions.from_pairs([0, 5], [0, 1]).num_users == 2
    kept = Interactions.from_pairs([0, 5], [0, 1], densify=False)
    assert kept.num_users == 6
    assert kept.counts()["user"].tolist() == [1, 0, 0, 0, 0, 1]


def test_duplicates_are_dropped_the_earliest_kept_and_said(caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING, logger="bet_torchrec"):
        data = Interactions.from_pairs([1, 0, 1, 1], [1, 0, 1, 1], timestamps=[9, 4, 2, 3])
    assert pairs_of(data) == [(0, 0), (1, 1)]
    assert data.timestamps.tolist() == [4, 2]
    assert data.notes == ("2 repeated pairs dropped, the earliest of each kept",)
    assert "2 repeated pairs dropped" in caplog.text


def test_a_pair_in_train_and_test_stays_in_train():
    data = Interactions.from_pairs([0, 0], [0, 0], test_mark=[True, False])
    assert data.test_mark.tolist() == [False]


@pytest.mark.parametrize(
    ("users", "says"),
    [
        ([0, -3], r"user ids should be 0 or more, got -3 at interaction 1"),
        ([0.0, np.nan], "whole numbers or strings, got nan at interaction 1"),
        ([0.5, 1.0], "whole numbers or strings, got 0.5"),
        (["a", ""], "empty"),
        ([], "at least one interaction"),
        ([1 + 2j, 1], "integers or strings"),
    ],
)
def test_ids_that_are_none(users: list[object], says: str):
    with pytest.raises(DataError, match=says):
        Interactions.from_pairs(users, [0] * len(users))


@pytest.mark.parametrize("time", [np.nan, np.inf, 1e300])
def test_times_are_finite(time: float):
    with pytest.raises(DataError, match="timestamps should be finite"):
        Interactions.from_pairs([0], [0], timestamps=[time])


@given(pair_lists())
def test_by_rank_sorts_counts_and_keeps_who_is_who(data: Interactions):
    ranked = data.by_rank()
    for side in ("user", "item"):
        counts, old = ranked.counts()[side], data.counts()[side]
        assert (np.diff(counts) <= 0).all()
        labels = getattr(ranked, f"{side}_labels")
        assert (old[labels] == counts).all()
        # ties by old id
        assert labels.tolist() == sorted(range(len(old)), key=lambda row: (-old[row], row))
    assert original_pairs(ranked) == set(pairs_of(data))
    assert (ranked.timestamps == data.timestamps).all()


def test_by_rank_permutes_labels_and_takes_other_counts():
    data = Interactions.from_pairs(["a", "b", "b"], ["x", "x", "y"])
    assert data.by_rank().user_labels.tolist() == ["b", "a"]
    same = data.by_rank({"user": [5, 1], "item": [1, 5]})
    assert same.user_labels.tolist() == ["a", "b"]
    assert same.item_labels.tolist() == ["y", "x"]
    with pytest.raises(DataError, match="shape"):
        data.by_rank({"user": [1], "item": [1, 2]})
    with pytest.raises(DataError, match="should have 'item'"):
        data.by_rank({"user": [1, 2]})


@given(st.lists(st.tuples(st.integers(0, 30), st.text("abc", min_size=1)), min_size=1))
def test_from_pairs_loses_and_invents_nothing(pairs: list[tuple[int, str]]):
    users, items = zip(*pairs, strict=True)
    data = Interactions.from_pairs(users, items)
    assert original_pairs(data) == set(pairs)
    assert len(data) == len(set(pairs))
    assert min(map(min, data.counts().values())) >= 1
    again = Interactions.from_pairs(users[::-1], items[::-1])
    assert again.fingerprint() == data.fingerprint()


def test_summary_says_what_it_is():
    data = Interactions.from_pairs([0, 0, 3], [1, 1, 2], name="mine")
    said = data.summary()
    assert "mine: 2 users, 2 items, 2 interactions (50.000%)" in said
    assert "1 repeated pairs dropped" in said
    assert repr(data) == "Interactions('mine': 2 users, 2 items, 2 interactions)"
