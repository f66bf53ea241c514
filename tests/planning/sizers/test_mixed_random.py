"""MR: sizes of the stated distribution, whatever the counts are."""

from __future__ import annotations

import numpy as np
import pytest

from bet_torchrec.errors import InfeasibleBudgetError
from bet_torchrec.planning.budget import Budget
from bet_torchrec.planning.counts import RowCounts
from bet_torchrec.planning.sizers import MixedRandom, SizingProblem
from bet_torchrec.planning.tables import TableSpec

ROWS = 20000


def problem(budget, seed=0, widths=tuple(range(1, 129))):
    counts = RowCounts.from_rows(np.arange(ROWS, 0, -1))
    return SizingProblem(
        tables=[TableSpec("t", ROWS, 128)], counts=[counts], budget=budget, widths=widths, seed=seed
    )


@pytest.mark.parametrize(
    ("sparsity", "low", "high"),
    [(0.95, 1, 12), (0.75, 1, 63), (0.25, 64, 128)],
)
def test_sizes_are_uniform(sparsity, low, high):
    """2cd - 1 is 11.8, 63 and, above a half, mirrored: 64 to 128."""
    plan = MixedRandom()(problem(Budget.sparsity(sparsity)))
    sizes = plan.sizes("t")
    assert plan.limit - plan.cost() == 0
    assert sizes.min() == low
    assert np.percentile(sizes, 99.9) == pytest.approx(high, abs=1)
    inner = np.bincount(sizes)[low + 1 : high - 1]
    assert inner.std() / inner.mean() < 0.1  # 6 % is what chance leaves of 312 rows a width


def test_sizes_do_not_follow_counts():
    sizes = MixedRandom()(problem(Budget.sparsity(0.9))).sizes("t")
    assert abs(np.corrcoef(sizes, np.arange(ROWS))[0, 1]) < 0.03


def test_another_seed_is_another_plan():
    plans = {MixedRandom()(problem(Budget.sparsity(0.9), seed)) for seed in (0, 1, 0)}
    assert len(plans) == 2


def test_the_id_map_is_paid_for():
    budget = Budget.bytes(ROWS * 21, purpose="inference", dtype="int8")
    plan = MixedRandom()(problem(budget, widths=(12, 28)))
    assert ROWS * 21 - 128 <= plan.cost() <= ROWS * 21  # 16 a row and 4 for its place, or 32
    assert plan["t"].buckets[0].rows <= ROWS / 16
    # rows of one width may lie anywhere
    plan = MixedRandom()(
        problem(Budget.bytes(ROWS * 19, purpose="inference", dtype="int8"), 0, (12,))
    )
    assert plan.cost() == ROWS * 16
    with pytest.raises(InfeasibleBudgetError, match=f"is {ROWS * 16} bytes"):
        MixedRandom()(problem(Budget.bytes(ROWS * 15, purpose="inference", dtype="int8"), 0, (12,)))
