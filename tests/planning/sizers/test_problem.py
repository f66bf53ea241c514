"""The problem: checks, boundaries to plans, and ways to try a plan."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fake_workbench import FakeWorkbench

from bet_torchrec.errors import InvalidInputError, MissingEvaluationError, PlanError
from bet_torchrec.outcome import Outcome
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
    # No more than all rows could ever take: 6 x 20, the id maps, 2 tables' alignment at 4 widths.
    assert (space.limit, space.table_alignment) == (6 * 20 + 16 + 2 * 4 * 128, 128)
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


def tried(problem, **how):
    return problem.fitness(problem.plan(BOUNDARIES, ("int8", "int8"), "mine"), **how)


def test_fitness_is_what_evaluate_says():
    outcome = tried(make(evaluate=lambda plan: torch.tensor(plan.parameters() / 100)))
    assert outcome.ok
    assert outcome.quality == pytest.approx(0.4)


def test_fitness_on_a_workbench_is_a_share_of_full_quality():
    answer = Outcome(quality=0.15, steps=7, history=((3, 0.1),))
    bench = FakeWorkbench(lambda plan: answer, full=0.2)
    outcome = tried(make(workbench=bench), epochs=3, floor=0.5)
    assert (outcome.state, outcome.steps) == ("ok", 7)
    assert outcome.quality == pytest.approx(0.75)
    assert outcome.history == ((3, pytest.approx(0.5)),)
    tried(make(workbench=bench))
    assert [(epochs, floor) for _, epochs, floor in bench.probed] == [(3, 0.1), (None, None)]


@pytest.mark.parametrize("full", [0.0, float("nan"), Outcome.diverged()])
def test_a_full_model_that_learnt_nothing_is_an_error(full):
    with pytest.raises(InvalidInputError, match="above 0"):
        tried(make(workbench=FakeWorkbench(lambda plan: 0.1, full=full)))


def test_a_pruned_probe_says_so():
    given_up = Outcome(quality=0.3, state="pruned")
    outcome = tried(make(workbench=FakeWorkbench(lambda plan: given_up, full=0.5)))
    assert (outcome.state, outcome.quality) == ("pruned", pytest.approx(0.6))


@pytest.mark.parametrize("answer", [float("nan"), float("inf"), -float("inf")])
def test_a_quality_that_is_not_finite_has_diverged(answer, caplog):
    bench = FakeWorkbench(lambda plan: answer)
    for problem in (make(evaluate=lambda plan: answer), make(workbench=bench)):
        caplog.clear()
        assert tried(problem).state == "diverged"
        assert "diverged" in caplog.text


@pytest.mark.parametrize("answer", [None, "good", [1.0, 2.0]])
def test_an_answer_that_is_no_number_is_refused(answer):
    with pytest.raises(InvalidInputError, match="evaluate should return a number"):
        tried(make(evaluate=lambda plan: answer))
    bench = SimpleNamespace(full=FakeWorkbench(None).full, fine_tune=lambda *a, **k: answer)
    with pytest.raises(InvalidInputError, match="should answer an Outcome"):
        tried(make(workbench=bench))


def test_ways_to_train():
    def train(plan, seed):
        return seed / 4

    plan = make().plan(BOUNDARIES, ("int8", "int8"), "mine")
    assert make(evaluate=len).starts == ()
    own = make(evaluate=len, train=train)
    assert own.starts == ("scratch",)
    assert own.trained(plan, seed=3, start="scratch").quality == 0.75
    bench = FakeWorkbench(
        lambda plan: 0.1, lambda plan, start: {"scratch": 1.0, "full": 2.0}[start]
    )
    both = make(workbench=bench)
    assert both.starts == ("scratch", "full")
    assert both.trained(plan, seed=3, start="full").quality == 2.0
    assert bench.trained == [(plan, 3, "full")]


def test_no_way_to_try_a_plan():
    problem = make()
    with pytest.raises(MissingEvaluationError, match=r"evaluate=.*workbench="):
        problem.fitness(problem.plan(BOUNDARIES, ("int8", "int8"), "mine"))
