"""The problem: checks, boundaries to plans, and ways to try a plan."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from bet_torchrec.errors import InvalidInputError, MissingEvaluationError, PlanError
from bet_torchrec.planning.budget import Budget
from bet_torchrec.planning.counts import RowCounts
from bet_torchrec.planning.plan import Bucket
from bet_torchrec.planning.sizers import SizingProblem
from bet_torchrec.planning.tables import TableSpec


def make(**changes):
    given = {
        "tables": [TableSpec("a", 4, 16), TableSpec("b", 2, 8)],
        "counts": [RowCounts.from_rows([1, 9, 5, 5]), RowCounts.from_rows([2, 1])],
        "budget": Budget.bytes(2000, purpose="inference", dtype=("int8", "int2"), alignment=1),
        "widths": (0, 4, 8, 16),
    }
    return SizingProblem(**{**given, **changes})


BOUNDARIES = [[4, 3, 1, 1], [2, 2, 2, 0]]


def test_boundaries_become_buckets():
    for given in (BOUNDARIES, np.array(BOUNDARIES), torch.tensor(BOUNDARIES)):
        plan = make(seed=4).plan(given, ("int8", "int2"), "mine", {"k": "v"})
        a, b = plan.tables
        assert a.buckets == (Bucket(16, 1, "int8"), Bucket(4, 2, "int8"), Bucket(0, 1, "int8"))
        assert b.buckets == (Bucket(8, 2, "int2"),)
        assert a.order.tolist() == [1, 2, 3, 0]
        assert b.order is None
        assert (plan.sizer, plan.seed, dict(plan.metadata)) == ("mine", 4, {"k": "v"})


@pytest.mark.parametrize(
    ("boundaries", "says"),
    [
        ([[4, 3, 1, 1]], "2 x 4 integers"),
        ([[3, 3, 1, 1], [2, 2, 2, 0]], "start with all rows"),
        ([[4, 1, 3, 1], [2, 2, 2, 0]], "fall with the width"),
        ([[4, 3, 1, -1], [2, 2, 2, 0]], "0 or more"),
        ([[4.0, 3, 1, 1], [2, 2, 2, 0]], "got float64"),
    ],
)
def test_wrong_boundaries_are_refused(boundaries, says):
    with pytest.raises(InvalidInputError, match=says):
        make().plan(boundaries, ("int8", "int8"), "mine")


def test_a_width_above_a_tables_own_is_refused():
    with pytest.raises(PlanError, match="embedding_dim 8, got 16"):
        make().plan([[4, 3, 1, 1], [2, 2, 2, 1]], ("int8", "int8"), "mine")


def test_limits_and_widths():
    problem = make()
    assert (problem.limit, problem.id_map_cost, problem.row_limit) == (2000, 16, 1984)
    assert problem.table_widths(1) == (0, 4, 8)
    assert problem.precisions == ("int8", "int2")
    assert problem.bits == (8, 2)
    space = problem.space
    assert space.widths.tolist() == [0, 4, 8, 16]
    assert space.rows.tolist() == [4, 2]
    assert space.depth.tolist() == [4, 3]
    assert space.costs.tolist() == [[0, 8, 12, 20], [0, 6, 6, 8]]
    assert (space.limit, space.table_alignment) == (1984, 128)
    assert problem.fit_space(precisions=("int2",), limit=7).costs.tolist() == [[0, 6, 6, 8]]


def test_fingerprint_is_of_what_the_answer_depends_on():
    one = make().fingerprint()
    assert one == make(progress=True, evaluate=len).fingerprint()
    assert one != make(widths=(0, 4, 8)).fingerprint()
    counts = [RowCounts.from_rows([1, 9, 5, 6]), RowCounts.from_rows([2, 1])]
    assert one != make(counts=counts).fingerprint()
    assert one != make(budget=Budget.parameters(99)).fingerprint()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"widths": (8, 4)}, "rise strictly"),
        ({"counts": [RowCounts.from_rows([1])]}, "one a table, got 1 for 2"),
        ({"counts": [RowCounts.from_rows([1])] * 2}, "'a'.*num_embeddings = 4 rows, got 1"),
        ({"widths": (16,)}, "table 'b': widths should"),
    ],
)
def test_wrong_problems_are_refused(changes, says):
    with pytest.raises(InvalidInputError, match=says):
        make(**changes)


def test_fitness_is_what_evaluate_says():
    problem = make(evaluate=lambda plan: torch.tensor(plan.parameters() / 100))
    plan = problem.plan(BOUNDARIES, ("int8", "int8"), "mine")
    assert problem.fitness(plan) == pytest.approx(0.4)


def test_fitness_on_a_workbench_is_a_share_of_full_quality():
    asked = []

    def fine_tune(plan, *, epochs, floor):
        asked.append((epochs, floor))
        return 0.15

    problem = make(workbench=SimpleNamespace(full_quality=lambda: 0.2, fine_tune=fine_tune))
    plan = problem.plan(BOUNDARIES, ("int8", "int8"), "mine")
    assert problem.fitness(plan, epochs=3, floor=0.5) == pytest.approx(0.75)
    assert problem.fitness(plan) == pytest.approx(0.75)
    assert asked == [(3, 0.1), (None, None)]
    problem = make(workbench=SimpleNamespace(full_quality=lambda: 0.0, fine_tune=fine_tune))
    with pytest.raises(InvalidInputError, match="above 0"):
        problem.fitness(plan)


@pytest.mark.parametrize("answer", [float("nan"), float("inf"), None, "good"])
def test_an_answer_that_is_no_number_is_refused(answer):
    problem = make(evaluate=lambda plan: answer)
    with pytest.raises(InvalidInputError, match="evaluate should return a finite number"):
        problem.fitness(problem.plan(BOUNDARIES, ("int8", "int8"), "mine"))


def test_no_way_to_try_a_plan():
    problem = make()
    with pytest.raises(MissingEvaluationError, match=r"evaluate=.*workbench="):
        problem.fitness(problem.plan(BOUNDARIES, ("int8", "int8"), "mine"))
