"""Tables that are planned as coordinates in axes of their own: what these cost, by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bet_torchrec import Budget, BudgetPlanner, EqualSizes, RowCounts
from bet_torchrec.errors import InfeasibleBudgetError, InvalidInputError, PlanError, PlanFileError
from bet_torchrec.files.tensors import from_bytes
from bet_torchrec.planning.bases import with_bases
from bet_torchrec.planning.budget import MemoryModel
from bet_torchrec.planning.plan import Bucket, SizePlan, TablePlan
from bet_torchrec.planning.sizers import Hashing, Sensitivity, SizingProblem
from bet_torchrec.planning.tables import TableSpec, table_specs

SIZES = {"t": np.array([4, 4, 2, 0]), "u": np.array([3, 3])}


def tables(basis="fixed"):
    return [TableSpec("t", 4, 8, basis), TableSpec("u", 2, 3)]


def cost(budget, basis):
    return SizePlan.from_sizes(tables(basis), SIZES, budget=budget).cost()


def training(optimizer, dtype="fp32", **more):
    return Budget.bytes(10**6, purpose="training", dtype=dtype, optimizer=optimizer, **more)


# rows: t has 10 entries in 3 rows, u 6 in 2; the basis is 4 x 8
@pytest.mark.parametrize(
    ("budget", "rows", "fixed", "trained"),
    [
        (Budget.parameters(1000), 16, 32, 32),
        (training("sgd"), 64, 128, 128),
        (training("adam"), 64 + 128, 128, 128 + 256),
        (training("adam", "fp16"), 32 + 128, 128, 128 + 256),
        (training("adagrad"), 64 + 64, 128, 128 + 128),
        (training("rowwise_adagrad"), 64 + 5 * 4, 128, 128 + 4 * 4),
        (training("partial_rowwise_adam"), 64 + 64 + 20, 128, 128 + 128 + 16),
        (training("sgd", world_size=3), 64, 3 * 128, 3 * 128),
        # dropped rows apart, whole 4 weights a row; a basis is no table of FBGEMM's
        (training("adam", fused_kernels=True), 12 * (4 * 4 + 4), 128, 128 + 256),
        (Budget.bytes(9999, purpose="inference", dtype="int8", alignment=1), 384, 128, 128),
    ],
)
def test_a_basis_costs_its_axes_and_their_state(budget, rows, fixed, trained):
    assert cost(budget, None) == rows
    assert cost(budget, "fixed") == rows + fixed
    assert cost(budget, "trained") == rows + trained


def test_as_many_axes_as_the_widest_row_has_coordinates():
    plan = SizePlan.from_sizes(tables(), SIZES, budget=Budget.parameters(48))
    assert (plan["t"].axes, plan["u"].axes) == (4, 0)
    assert plan["t"].parameters == 10 + 32
    assert plan.parameters() == plan.cost() == plan.limit == 48
    with pytest.raises(PlanError, match=r"at most 47 .* got 48"):
        SizePlan.from_sizes(tables(), SIZES, budget=Budget.parameters(47))
    dropped = SizePlan.from_sizes(
        tables(), {"t": np.zeros(4, int), "u": SIZES["u"]}, budget=Budget.parameters(48)
    )
    assert (dropped["t"].axes, dropped.cost()) == (0, 6)


def test_the_summary_shows_it():
    text = SizePlan.from_sizes(tables("trained"), SIZES, budget=training("adam")).summary()
    line = next(line for line in text.splitlines() if "basis" in line)
    assert line.split() == ["8", "trained", "basis", "4", "axes", "384"]
    assert "basis" not in SizePlan.from_sizes(tables(None), SIZES, budget=training("sgd")).summary()


def test_saved_and_told_apart(tmp_path):
    made = {
        basis: SizePlan.from_sizes(tables(basis), SIZES, budget=training("sgd"))
        for basis in (None, "fixed", "trained")
    }
    assert len(set(made.values())) == 3
    for basis, plan in made.items():
        found = SizePlan.load(plan.save(tmp_path / "a.plan"))
        assert found == plan
        assert [t.basis for t in found.tables] == [basis, None]
        assert found.coarsen((0, 2, 3, 4))["t"].basis == basis
    # Without bases the file is as it was before there were any: older releases read it.
    versions = {b: from_bytes(p.to_bytes()).metadata["version"] for b, p in made.items()}
    assert versions == {None: "1", "fixed": "2", "trained": "2"}
    assert b'"basis"' not in made[None].to_bytes()


def test_an_older_plan_keeps_its_fingerprint():
    table = TablePlan("t", 3, 8, (Bucket(8, 1), Bucket(2, 2)), np.array([2, 0, 1]))
    assert SizePlan((table,), Budget.parameters(12), "es", 0).fingerprint() == "2467f3ecdcedcb28"
    assert repr(TableSpec("t", 3, 8)) == "TableSpec(name='t', num_embeddings=3, embedding_dim=8)"


def test_bad_words():
    with pytest.raises(InvalidInputError, match="'fixed' or 'trained', got 'own'"):
        TableSpec("t", 4, 8, "own")
    with pytest.raises(InvalidInputError, match="got 'principal'"):
        BudgetPlanner(budget=Budget.parameters(9), basis="principal").problem(
            tables(None), {"t": [1] * 4, "u": [1] * 2}
        )
    with pytest.raises(InvalidInputError, match="of the tables t, u, got one of 'v'"):
        with_bases(table_specs(tables(None)), {"v": "fixed"}, Budget.parameters(9))


def test_a_word_is_for_the_tables_where_a_basis_pays():
    specs = (TableSpec("small", 79, 8), TableSpec("large", 80, 8), TableSpec("own", 5, 8, "fixed"))
    found = with_bases(specs, "trained", Budget.parameters(1))
    assert [t.basis for t in found] == [None, "trained", "fixed"]
    served = Budget.bytes(1, purpose="inference", dtype=("fp32", "int8"), alignment=1)
    # 8 bytes of codes and 4 of parameters a row against 4 * 8 * 8 of the basis
    rows = -(-10 * 256 // 12)
    assert with_bases((TableSpec("t", rows, 8),), "fixed", served)[0].basis == "fixed"
    found = with_bases(specs, {"small": "fixed", "own": None}, served)
    assert [t.basis for t in found] == ["fixed", None, None]


def counts_of(specs):
    return {t.name: np.arange(t.num_embeddings)[::-1] + 1 for t in specs}


@pytest.mark.parametrize("basis", ["fixed", "trained"])
def test_a_planner_pays_for_bases(basis):
    specs = [TableSpec("user", 1000, 32), TableSpec("item", 700, 32), TableSpec("tiny", 20, 32)]
    budget = Budget.bytes(60000, purpose="training", dtype="fp32", optimizer="adam")
    plan = BudgetPlanner(budget=budget, sizer=EqualSizes(), basis=basis).plan(
        specs, counts_of(specs)
    )
    assert [t.basis for t in plan.tables] == [basis, basis, None]
    rows = sum(12 * b.width * b.rows for t in plan.tables for b in t.buckets)
    a_weight = 12 if basis == "trained" else 4
    bases = sum(a_weight * t.axes * 32 for t in plan.tables if t.basis)
    assert plan.cost() == rows + bases <= 60000
    assert plan.used > 0.995


def test_the_smallest_budget_counts_bases_and_names_the_way_out():
    specs = [TableSpec("t", 100, 16, "fixed")]
    planner = BudgetPlanner(budget=Budget.parameters(4 * 100 + 63), widths=(4, 8))
    with pytest.raises(InfeasibleBudgetError, match=r"464 parameters") as caught:
        planner.problem(specs, counts_of(specs))
    assert "keep no bases (basis=None): needs 400" in str(caught.value)
    enough = BudgetPlanner(budget=Budget.parameters(464), widths=(4, 8), sizer=EqualSizes())
    assert enough.plan(specs, counts_of(specs)).cost() == 464


def test_forms_of_their_own_take_none():
    specs = [TableSpec("t", 100, 16, "fixed")]
    problem = BudgetPlanner(budget=Budget.parameters(900)).problem(specs, counts_of(specs))
    with pytest.raises(InvalidInputError, match="a basis asked for of t: plan without"):
        Hashing()(problem)


def test_sensitivity_pays_before_it_chooses():
    # Every entry is worth the same, so the price of axes alone decides how wide rows get.
    spec = TableSpec("t", 100, 16, "fixed")
    problem = SizingProblem(
        tables=(spec,),
        counts=(RowCounts.from_rows(np.full(100, 3)),),
        budget=Budget.parameters(100 * 8 + 8 * 16),
        widths=(0, 2, 4, 8, 16),
    )
    found = Sensitivity(losses=lambda _: {"t": torch.ones(100, 16)})(problem)
    assert found.cost() <= problem.limit
    assert found["t"].axes in (8, 16)
    assert found.used > 0.98


def test_the_model_alone():
    model = MemoryModel.for_budget(training("rowwise_adagrad", world_size=2))
    assert model.basis_cost(None, 4, 8) == model.basis_cost("trained", 0, 8) == 0
    assert model.basis_cost("trained", 4, 8) == 2 * (4 * 8 * 4 + 4 * 4)


def test_a_file_of_another_word_is_refused():
    data = SizePlan.from_sizes(tables(), SIZES, budget=training("sgd")).to_bytes()
    with pytest.raises(PlanFileError):
        SizePlan.from_bytes(data.replace(b'\\"fixed\\"', b'\\"fixes\\"'))
