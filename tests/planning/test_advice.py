"""Default widths that follow the budget, and warnings where a setting wastes it."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from bet_torchrec.planning import Budget, BudgetPlanner, EqualSizes, TableSpec
from bet_torchrec.planning.advice import advice, mean_width, widths_for

TABLES = [TableSpec("a", 900, 64), TableSpec("b", 100, 16)]


def test_the_mean_width_by_hand():
    assert mean_width(TABLES, Budget.parameters(8999)) == 8
    assert mean_width(TABLES, Budget.parameters(9000)) == 9
    # b ends at 16: 900 w + 1600
    assert mean_width(TABLES, Budget.parameters(900 * 20 + 1600)) == 20
    assert mean_width(TABLES, Budget.parameters(10**9)) == 64
    assert mean_width(TABLES, Budget.parameters(999)) == 0
    two = Budget.bytes(8192, purpose="inference", dtype=("fp32", "int8"), alignment=1)
    assert mean_width(TABLES, two) == 4  # 8 bytes a row in int8, 7,296 and 896 in blocks


def test_default_widths_follow_the_budget():
    assert widths_for(TABLES, Budget.parameters(8000)) == (4, 8, 16, 32, 64)
    assert widths_for(TABLES, Budget.parameters(7999)) == (0, 1, 2, 4, 8, 16, 32, 64)
    assert widths_for([TableSpec("a", 9, 100)], Budget.parameters(900)) == (4, 8, 16, 32, 64, 100)
    assert widths_for([TableSpec("a", 9, 3)], Budget.parameters(900)) == (0, 1, 2, 3)
    planner = BudgetPlanner(budget=Budget.parameters(2000), sizer=EqualSizes())
    counts = {t.name: np.arange(t.num_embeddings, 0, -1) for t in TABLES}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plan = planner.plan(TABLES, counts)
    assert plan.widths == (2,)
    assert "4 does not divide widths 2, which FBGEMM" in plan.summary()


def test_a_smallest_width_that_wastes_a_small_budget_is_a_warning():
    planner = BudgetPlanner(budget=Budget.parameters(5000), sizer=EqualSizes(), widths=(4, 8, 16))
    counts = {t.name: np.arange(t.num_embeddings, 0, -1) for t in TABLES}
    with pytest.warns(UserWarning, match=r"about 5 entries a row.*allow 0, 1, 2"):
        planner.plan(TABLES, counts)
    assert not advice(TABLES, Budget.parameters(8000), (4, 8), 0)
    assert "allow 0" not in advice(TABLES, Budget.parameters(1000), (0, 4), 0)[0]


def test_id_maps_that_eat_the_budget_are_a_warning():
    tiny = Budget.bytes(9000, purpose="training", dtype="fp32", optimizer="sgd")
    (said,) = advice(TABLES, tiny, (0, 1, 2, 4), 4000)
    assert "id maps take up to 4000 of 9000 bytes" in said
    assert not advice(TABLES, tiny, (0, 1, 2, 4), 900)
