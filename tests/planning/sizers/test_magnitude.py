"""Magnitude pruning: which entries survive, their account, and the tables that come of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fitting_workbench import FittingWorkbench
from hypothesis import given
from hypothesis import strategies as st

from bet_torchrec.errors import InfeasibleBudgetError, InvalidInputError
from bet_torchrec.planning import Budget, RowCounts, SizePlan, TableSpec
from bet_torchrec.planning.sizers import SizingProblem
from bet_torchrec.planning.sizers.magnitude import Magnitude
from bet_torchrec.planning.sizers.survivors import largest, sizes_plan

TABLES = (TableSpec("user", 3, 2), TableSpec("item", 2, 2))
TARGETS = {
    "user": torch.tensor([[5.0, -4.0], [0.1, 0.2], [-3.0, 1.0]]),
    "item": torch.tensor([[0.5, 0.0], [2.0, -6.0]]),
}


def problem(budget, *, tables=TABLES, targets=TARGETS, counts=None, widths=(0, 1, 2)):
    counts = counts or [RowCounts.from_rows(range(table.num_embeddings, 0, -1)) for table in tables]
    return SizingProblem(
        tables=tables,
        counts=counts,
        budget=budget,
        widths=widths,
        workbench=None if targets is None else FittingWorkbench(targets),
    )


def test_the_largest_entries_survive_over_all_tables():
    sizes = {name: table.abs().numpy() for name, table in TARGETS.items()}
    masks = largest(sizes, 4)
    assert masks["user"].tolist() == [[True, True], [False, False], [True, False]]
    assert masks["item"].tolist() == [[False, False], [False, True]]
    # one a row first: 5, 0.2, 3, 0.5 and 6, then the largest of the others, 4
    masks = largest(sizes, 6, least=1)
    assert masks["user"].tolist() == [[True, True], [False, True], [True, False]]
    assert masks["item"].tolist() == [[True, False], [False, True]]
    assert largest(sizes, 3, least=1)["user"].sum() == 2  # no room for one a row: none is promised


@given(st.integers(0, 40), st.integers(0, 3), st.integers(0, 99))
def test_exactly_as_many_entries_survive_as_asked_for(entries, least, seed):
    rng = np.random.default_rng(seed)
    tables = {"a": rng.integers(0, 3, (4, 5)), "b": rng.integers(0, 3, (3, 4))}
    masks = largest(tables, entries, least=least)
    assert sum(mask.sum() for mask in masks.values()) == min(entries, 32)
    room = min(least, entries // 7)
    assert min(mask.sum(axis=1).min() for mask in masks.values()) >= room


def test_the_mask_keeps_the_trained_entries_as_they_are():
    found = Magnitude(form="mask")(problem(Budget.parameters(6)))
    embedding = found.build(3)
    assert embedding.table("user").tolist() == [[5, -4], [0, torch.tensor(0.2).item()], [-3, 0]]
    assert embedding.lookup("item", torch.tensor([1, 0])).tolist() == [[0, -6], [0.5, 0]]
    assert not list(embedding.parameters())  # nothing is trained again
    assert found.starts == ("full",)
    assert found.parameters() == found.cost() == 6
    # 6 weights and columns, 3 + 1 and 2 + 1 row starts, 4 bytes each
    assert found.bytes() == 6 * 8 + 7 * 4


def test_a_budget_in_bytes_pays_for_places():
    budget = Budget.bytes(800, purpose="inference", dtype="fp32", alignment=1)
    found = Magnitude(form="mask")(problem(budget))
    assert found.parameters() == 10  # all there are
    # two tables padded to 128 bytes, 10 columns, 7 row starts
    assert found.cost() == 2 * 128 + 10 * 4 + 7 * 4
    with pytest.raises(InfeasibleBudgetError, match="needs at least"):
        Magnitude(form="mask")(problem(Budget.bytes(20, purpose="inference", dtype="fp32")))
    with pytest.raises(InvalidInputError, match="fp32 or fp16, got int8"):
        Magnitude(form="mask")(problem(Budget.bytes(800, purpose="inference", dtype="int8")))


def test_survivors_become_sizes_that_need_not_follow_counts():
    plan = Magnitude()(problem(Budget.parameters(6)))
    assert isinstance(plan, SizePlan)
    assert plan.sizes("user").tolist() == [2, 1, 1]
    assert plan.sizes("item").tolist() == [1, 1]
    assert plan.cost() == 6
    plan = Magnitude(least=0)(problem(Budget.parameters(4)))
    assert plan.sizes("user").tolist() == [2, 0, 1]
    assert plan.sizes("item").tolist() == [0, 1]
    assert plan["user"].order.tolist() == [0, 2, 1]


def test_an_id_map_is_paid_where_sizes_do_not_follow_ids():
    counts = [RowCounts.from_rows([1, 5, 3])]
    tables = (TableSpec("t", 3, 4),)
    budget = Budget.bytes(200, purpose="training", dtype="fp32", optimizer="sgd")
    asked = problem(budget, tables=tables, counts=counts, targets=None, widths=(1, 2, 4))
    full = sizes_plan(asked, {"t": np.array([4, 4, 4])}, "x")
    assert full.cost() == 48
    tight = Budget.bytes(40, purpose="training", dtype="fp32", optimizer="sgd")
    asked = problem(tight, tables=tables, counts=counts, targets=None, widths=(1, 2, 4))
    mapped = sizes_plan(asked, {"t": np.array([2, 4, 1])}, "x")
    assert mapped.sizes("t").tolist() == [2, 4, 1]  # a map of 12 bytes leaves 28: 7 entries
    assert mapped.cost() == 40
    ranked = sizes_plan(asked, {"t": np.array([4, 2, 1])}, "x")
    assert ranked.sizes("t").tolist() == [4, 4, 2]  # the ids' own order needs none: 10 entries


def test_wrong_settings_are_refused():
    with pytest.raises(InvalidInputError, match="least should be an int"):
        Magnitude(least=-1)
    with pytest.raises(InvalidInputError, match="'sizes' or 'mask', got 'prefix'"):
        Magnitude(form="prefix")
