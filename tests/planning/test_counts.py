"""Counts in rank order against plain sorting."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bet_torchrec.errors import InvalidInputError
from bet_torchrec.planning.counts import RowCounts


def test_by_hand():
    counts = RowCounts.from_rows([2, 7, 2, 0])
    assert counts.values.tolist() == [7, 2, 0]
    assert counts.multiplicity.tolist() == [1, 2, 1]
    assert counts.order.tolist() == [1, 0, 2, 3]
    assert (counts.rows, counts.total) == (4, 11)
    assert counts.at_ranks([0, 1, 2, 3]).tolist() == [7, 2, 2, 0]


@given(st.lists(st.integers(0, 6), min_size=1, max_size=40))
def test_order_is_by_count_then_by_id(by_id):
    counts = RowCounts.from_rows(np.array(by_id))
    expected = sorted(range(len(by_id)), key=lambda i: (-by_id[i], i))
    order = list(range(len(by_id))) if counts.order is None else counts.order.tolist()
    assert order == expected
    assert (counts.order is None) == (expected == list(range(len(by_id))))
    assert counts.at_ranks(np.arange(len(by_id))).tolist() == [by_id[i] for i in expected]


def test_distinct_counts_need_no_memory_a_row():
    counts = RowCounts.from_distinct([0, 9, 5], [10**9, 1, 3])
    assert counts.rows == 10**9 + 4
    assert counts.values.tolist() == [9, 5, 0]
    assert counts.order is None
    assert counts.at_ranks([0, 3, 4]).tolist() == [9, 5, 0]


def test_all_kinds_of_integers():
    expected = RowCounts.from_rows([3, 1]).fingerprint()
    for given_ in (np.array([3, 1], np.uint16), torch.tensor([3, 1]), (3, 1)):
        assert RowCounts.from_rows(given_).fingerprint() == expected


def test_fingerprint_tells_counts_and_orders_apart():
    one = RowCounts.from_rows([1, 2, 3])
    assert one.fingerprint() == RowCounts.from_rows([1, 2, 3]).fingerprint()
    others = [[3, 2, 1], [1, 3, 2], [1, 2, 4], [1, 2]]
    assert one.fingerprint() not in {RowCounts.from_rows(o).fingerprint() for o in others}


@pytest.mark.parametrize(
    ("given_", "says"),
    [
        ([], "at least one row"),
        ([1, -2], "got -2 for row 1"),
        ([1.0, 2.0], "should be integers, got float64"),
        ([[1, 2]], r"one-dimensional.*\(1, 2\)"),
        ([float("nan")], "should be integers"),
        (np.array([2**63], dtype=np.uint64), "fit int64"),
    ],
)
def test_wrong_counts_are_refused(given_, says):
    with pytest.raises(InvalidInputError, match=says):
        RowCounts.from_rows(given_)


@pytest.mark.parametrize(
    ("values", "rows", "says"),
    [([1, 1], [1, 1], "fall strictly"), ([2], [0], "at least 1"), ([2, 1], [1], "one length")],
)
def test_wrong_distinct_counts_are_refused(values, rows, says):
    with pytest.raises(InvalidInputError, match=says):
        RowCounts.from_distinct(values, rows)


@pytest.mark.parametrize("order", [[0, 0], [0, 2], [0]])
def test_an_order_is_a_permutation(order):
    with pytest.raises(InvalidInputError, match="order should"):
        RowCounts(np.array([2, 1]), np.array([1, 1]), np.array(order))


def test_counts_cannot_be_changed():
    counts = RowCounts.from_rows([1, 2])
    with pytest.raises(ValueError, match="read-only"):
        counts.values[0] = 5


@pytest.mark.parametrize(
    "counts",
    [None, 3, "12", [[1], [1, 2]], [1, None], {"a": 1}, [1.0, 2.0], [True, False],
     torch.tensor([1, 2], dtype=torch.bfloat16), torch.tensor([1, 2], device="meta")],
)  # fmt: skip
def test_counts_of_odd_types_are_refused(counts):
    with pytest.raises(InvalidInputError, match="counts should"):
        RowCounts.from_rows(counts)


def test_an_order_that_no_int32_holds_is_refused():
    for order in ([0, 2**32 + 1], [0.0, 1.0], [0, 1, 1]):
        with pytest.raises(InvalidInputError, match="order should"):
            RowCounts([5, 3], [1, 1], np.array(order))
