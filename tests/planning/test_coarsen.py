"""Coarsening: by hand, against brute force, and its laws."""

from __future__ import annotations

from itertools import pairwise, product

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from planning_strategies import WIDTHS, plans

from bet_torchrec.errors import InfeasibleBudgetError, InvalidInputError
from bet_torchrec.planning.budget import Budget
from bet_torchrec.planning.plan import Bucket, SizePlan, TablePlan


def one_table(*buckets, amount=None):
    rows = sum(n for _, n in buckets)
    table = TablePlan("t", rows, 128, tuple(Bucket(w, n) for w, n in buckets))
    amount = sum(w * n for w, n in buckets) if amount is None else amount
    return SizePlan((table,), Budget.parameters(amount), "by hand", 0)


def buckets(plan):
    return [(b.width, b.rows) for b in plan.tables[0].buckets]


def test_by_hand():
    # down: 8 x 10 + 4 x 20 = 160 of 240; 80 left: 20 steps of 4 from 4 to 8, the wide ones first
    plan = one_table((10, 10), (7, 20))
    assert buckets(plan.coarsen((4, 8))) == [(8, 30)]
    plan = one_table((9, 10), (5, 20))  # 190: 80 + 80, then 30 // 4 rows
    assert buckets(plan.coarsen((4, 8))) == [(8, 17), (4, 13)]


def test_rows_of_an_allowed_size_stay():
    plan = one_table((64, 3), (16, 5), (4, 9), amount=10**6)
    assert buckets(plan.coarsen((4, 16, 64))) == buckets(plan)
    assert buckets(plan.coarsen((1, 4, 16, 64, 128))) == buckets(plan)
    assert plan.coarsen((4, 16, 64)).metadata["coarsened"] == "4,16,64"


def test_rows_under_the_smallest_width_are_paid_by_the_lowest_others():
    plan = one_table((8, 4), (1, 8))  # 40 = 8 x 4 + 2 x ...: 16 more than 24 are over
    coarse = plan.coarsen((2, 8))
    assert buckets(coarse) == [(8, 2), (2, 10)]


def test_what_a_cap_saves_goes_to_the_highest_ranks():
    assert buckets(one_table((128, 1), (2, 10)).coarsen((2, 8))) == [(8, 11)]
    assert buckets(one_table((32, 1), (2, 10)).coarsen((2, 8))) == [(8, 5), (2, 6)]


@given(
    st.lists(st.integers(0, 12), min_size=1, max_size=6),
    st.sets(st.integers(1, 12), min_size=1, max_size=3),
)
@settings(max_examples=80, deadline=None)
def test_loss_is_least_up_to_one_row(sizes, widths):
    """Against every assignment of the widths next to a row's size, within the budget."""
    sizes = sorted(sizes, reverse=True)
    assume(max(sizes) <= max(widths))
    budget = sum(sizes)
    table = TablePlan.from_sizes(
        TablePlan("t", len(sizes), 12, (Bucket(12, len(sizes)),)),
        np.array(sizes),
        _counts(len(sizes)),
    )
    plan = SizePlan((table,), Budget.parameters(budget), "x")
    allowed = sorted({0, *widths})
    coarse = plan.coarsen(allowed).sizes("t").tolist()
    choices = [
        {max(w for w in allowed if w <= s), min(w for w in allowed if w >= s)} for s in sizes
    ]
    best = min(
        sum(abs(a - b) for a, b in zip(c, sizes, strict=True))
        for c in product(*choices)
        if sum(c) <= budget
    )
    # going up past the middle only spends what is left, so it does not count here
    kept = [
        w if w <= s or w - s <= s - min(c) else min(c)
        for w, s, c in zip(coarse, sizes, choices, strict=True)
    ]
    loss = sum(abs(a - b) for a, b in zip(kept, sizes, strict=True))
    widest_step = max(b - a for a, b in pairwise(allowed))
    assert loss <= best + widest_step
    assert all(w in choice for w, choice in zip(coarse, choices, strict=True))


def _counts(rows):
    from bet_torchrec.planning.counts import RowCounts

    return RowCounts.from_distinct([1], [rows])


@given(plans(), WIDTHS)
@settings(max_examples=60, deadline=None)
def test_laws(plan, widths):
    try:
        coarse = plan.coarsen(widths)
    except InfeasibleBudgetError:
        assume(False)  # test_feasible has the laws of what cannot be
    assert coarse.cost() <= plan.limit  # SizePlan checks, but it is the point
    assert set(coarse.widths) <= set(widths)
    assert coarse.budget == plan.budget
    assert [t.rows for t in coarse.tables] == [t.rows for t in plan.tables]
    again = coarse.coarsen(widths)
    assert again == coarse
    for old, new in zip(plan.tables, coarse.tables, strict=True):
        if len(new.buckets) == 1:
            assert new.order is None  # rows of one width need no id map
        else:
            assert np.array_equal(old.order, new.order) or old.order is new.order is None
        if set(old.widths) <= set(widths):
            assert new.buckets == old.buckets or set(plan.widths) - set(widths)


@given(plans())
@settings(max_examples=50, deadline=None)
def test_a_plans_own_widths_change_nothing(plan):
    assert plan.coarsen((*plan.widths, 1)).tables[0].buckets == plan.tables[0].buckets


def test_impossible_and_useless_widths_are_refused():
    plan = one_table((2, 10))
    with pytest.raises(InfeasibleBudgetError, match=r"smallest possible.*40 parameters"):
        plan.coarsen((4, 8))
    with pytest.raises(InvalidInputError, match="at least one from 1"):
        plan.coarsen((0,))
    with pytest.raises(InvalidInputError, match="at least one from 1"):
        plan.coarsen((256,))


def inference_table(amount, *buckets, rows=34):
    budget = Budget.bytes(amount, purpose="inference", dtype=("fp32", "fp16"), alignment=1)
    return SizePlan((TablePlan("t", rows, 2, buckets),), budget, "by hand")


def test_a_table_of_several_precisions_takes_the_cheaper_where_it_must():
    # all rows 1 wide are 136 -> 256 bytes in fp32, the nearest; 68 -> 128 in fp16
    old = (Bucket(2, 1, "fp16"), Bucket(1, 1, "fp32"), Bucket(0, 32, "fp32"))
    coarse = inference_table(256 - 1, *old[:1], Bucket(0, 33, "fp32")).coarsen((1, 2))
    assert coarse["t"].buckets == (Bucket(1, 34, "fp16"),)
    coarse = inference_table(392, *old).coarsen((1, 2))  # 4 -> 128, 33 x 4 -> 256
    assert coarse["t"].buckets == (Bucket(2, 1, "fp16"), Bucket(1, 33, "fp32"))
    assert coarse.cost() == 384
