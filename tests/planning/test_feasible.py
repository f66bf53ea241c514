"""Impossible budgets: refused, with the smallest possible one and what could be changed."""

from __future__ import annotations

import pickle
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planning_strategies import WIDTHS, byte_budgets, table_lists

from bet_torchrec.errors import BetError, InfeasibleBudgetError, InvalidInputError
from bet_torchrec.planning.budget import Budget
from bet_torchrec.planning.feasible import (
    allowed_widths,
    require_feasible,
    require_useful,
    smallest_cost,
)
from bet_torchrec.planning.tables import TableSpec

TABLES = [TableSpec("user", 1000, 128), TableSpec("item", 2000, 64)]


def refused(budget, widths=(4, 8)):
    with pytest.raises(InfeasibleBudgetError) as caught:
        require_feasible(TABLES, budget, widths)
    return caught.value


def test_it_names_the_smallest_budget_and_what_would_help():
    error = refused(Budget.parameters(9999))
    assert (error.smallest, error.limit, error.unit) == (12000, 9999, "parameters")
    assert isinstance(error, BetError)
    text = str(error)
    assert "1. raise the budget to 12000 parameters" in text
    assert "2. allow width 1: needs 3000" in text
    assert "3. allow width 0, rows that read as zeros: needs 0" in text
    require_feasible(TABLES, Budget.parameters(12000), (4, 8))


def test_sparsity_is_answered_in_sparsity():
    # 12000 of 256000 kept
    assert "a sparsity of 0.9531 or less" in str(refused(Budget.sparsity(0.96)))
    require_feasible(TABLES, Budget.sparsity(0.9531), (4, 8))


def test_inference_is_told_of_alignment_and_precision():
    text = str(refused(Budget.bytes(100, purpose="inference", dtype="fp32"), (8,)))
    assert "raise the budget to 96000 bytes" in text  # 32 a row: rows of one width need no id map
    assert "allow precision int2: needs 48000" in text  # 16 a row
    assert "alignment" not in text  # it would change nothing


def test_a_plan_that_keeps_nothing_is_refused():
    tables = [TableSpec("a", 1000, 16), TableSpec("b", 300, 16)]
    budget = Budget.bytes(400, purpose="inference", dtype=("fp32", "int8"), alignment=1)
    with pytest.raises(InfeasibleBudgetError) as caught:
        require_useful(0, tables, (True, True), budget, (0, 4))
    # one row of int8 is a block of 128 bytes beside a map of 1,200; all of b would be 2,432
    assert caught.value.smallest == 128 + 4 * 300
    assert "relabel ids by rank (Relabelling)" in str(caught.value)
    assert "kept at 128 bytes" in str(caught.value)
    require_useful(1, tables, (True, True), budget, (0, 4))
    with pytest.raises(InfeasibleBudgetError, match="first row is kept at 128 bytes") as caught:
        require_useful(0, tables, (False, True), budget, (0, 4))
    assert "relabel" not in str(caught.value)


def test_training_is_told_of_dtype_and_optimizer():
    text = str(refused(Budget.bytes(100, purpose="training", dtype="fp32", optimizer="adam")))
    assert "train in fp16: needs 120000" in text  # 3000 x 4 x (2 + 8)
    assert "train with rowwise_adagrad: needs 60000" in text  # 3000 x (16 + 4)


def test_it_crosses_processes():
    again = pickle.loads(pickle.dumps(refused(Budget.parameters(1))))
    assert (again.smallest, again.unit) == (12000, "parameters")
    assert "smallest possible" in str(again)


def test_a_tables_widths_end_at_its_own():
    assert allowed_widths(TableSpec("t", 1, 10), (128, 4, 8)) == (4, 8)
    assert allowed_widths(TableSpec("t", 1, 8), (0, 4, 8)) == (0, 4, 8)
    for widths in ((16,), (0, 16), (-1, 4), ()):
        with pytest.raises(InvalidInputError, match="embedding_dim 10"):
            allowed_widths(TableSpec("t", 1, 10), widths)


@given(table_lists(), st.data())
@settings(max_examples=60, deadline=None)
def test_the_smallest_budget_is_possible_and_less_is_not(tables, data):
    budget, widths = data.draw(byte_budgets(0)), data.draw(WIDTHS)
    smallest = smallest_cost(tables, budget, widths)
    require_feasible(tables, replace(budget, amount=smallest), widths)
    if smallest:
        with pytest.raises(InfeasibleBudgetError, match=f"is {smallest} bytes"):
            require_feasible(tables, replace(budget, amount=smallest - 1), widths)
