"""BudgetPlanner: the front door, and what it says to whoever knocks wrongly."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bet_torchrec.errors import InfeasibleBudgetError, InvalidInputError, MissingEvaluationError
from bet_torchrec.planning import BET, Budget, BudgetPlanner, EqualSizes, RowCounts, TableSpec
from bet_torchrec.planning.sizers.bet import FullBatch

TABLES = [TableSpec("user", 4, 16), TableSpec("item", 3, 8)]
COUNTS = {"user": np.array([4, 3, 2, 1]), "item": [1, 2, 3]}
ES = BudgetPlanner(budget=Budget.parameters(44), sizer=EqualSizes(), widths=(4, 8, 16))


def test_plan_by_hand():
    plan = ES.plan(TABLES, COUNTS)  # 7 x 4, then 4 more for counts 4, 3, 3, 2: 44
    assert plan.sizes("user").tolist() == [8, 8, 8, 4]
    assert plan.sizes("item").tolist() == [4, 4, 8]


def test_counts_of_any_kind_give_the_same_plan():
    plan = ES.plan(TABLES, COUNTS)
    tensors = {name: torch.as_tensor(c) for name, c in COUNTS.items()}
    ready = {name: RowCounts.from_rows(c) for name, c in COUNTS.items()}
    assert ES.plan(TABLES, tensors) == plan == ES.plan(TABLES, ready)


def test_torchrec_configs_plan_as_they_are():
    modules = pytest.importorskip("torchrec.modules.embedding_configs")
    configs = [
        modules.EmbeddingBagConfig(
            name=t.name,
            num_embeddings=t.num_embeddings,
            embedding_dim=t.embedding_dim,
            feature_names=[t.name],
        )
        for t in TABLES
    ]
    assert ES.plan(configs, COUNTS) == ES.plan(TABLES, COUNTS)


def test_any_width_is_1_to_the_widest_table():
    planner = BudgetPlanner(budget=Budget.parameters(44), sizer=EqualSizes(), widths="any")
    assert planner.problem(TABLES, COUNTS).widths == tuple(range(1, 17))
    # 7 x 6 and two more: counts 4 and 3, the first table's
    assert planner.plan(TABLES, COUNTS).sizes("user").tolist() == [7, 7, 6, 6]


def test_the_default_sizer_is_bet_and_asks_for_an_evaluation():
    planner = BudgetPlanner(budget=Budget.parameters(44))
    with pytest.raises(MissingEvaluationError, match="BET tries plans out"):
        planner.plan(TABLES, COUNTS)


def test_bet_plans_and_resumes_to_the_same_plan(tmp_path):
    def evaluate(plan):
        return float(plan.sizes("user")[0])

    sizer = BET(iterations=4, candidates=5, trainer=FullBatch(steps=2), finalists=0)
    planner = BudgetPlanner(budget=Budget.parameters(44), sizer=sizer)
    plan = planner.plan(TABLES, COUNTS, evaluate, run_dir=tmp_path, progress=False)
    again = planner.plan(TABLES, COUNTS, evaluate, resume=tmp_path, progress=False)
    assert again == plan == planner.plan(TABLES, COUNTS, evaluate, progress=False)


@pytest.mark.parametrize(
    ("counts", "says"),
    [
        ({"user": [1, 2, 3, 4]}, r"none for \['item'\]"),
        ({**COUNTS, "movie": [1]}, r"unknown \['movie'\]"),
        ({**COUNTS, "item": [1, 2]}, "'item': counts should cover num_embeddings = 3 rows, got 2"),
        ({**COUNTS, "item": [1, 2, -3]}, "'item': counts should be 0 or more, got -3 for row 2"),
        ({**COUNTS, "item": [0.5, 1, 2]}, "'item': counts should be integers"),
        ([[1, 2, 3, 4], [1, 2, 3]], "map a table's name"),
    ],
)
def test_wrong_counts_are_refused(counts, says):
    with pytest.raises(InvalidInputError, match=says):
        ES.plan(TABLES, counts)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"budget": 44}, "Budget.sparsity"),
        ({"widths": ()}, "widths should be"),
        ({"widths": "all"}, "widths should be"),
        ({"widths": (4, -8)}, "widths should be"),
        ({"widths": (4, 8.5)}, "widths should be"),
        ({"widths": 8}, "widths should be"),
        ({"sizer": EqualSizes}, r"EqualSizes\(\)"),
        ({"sizer": "es"}, "sizer should be an object"),
        ({"seed": -1}, "seed should be"),
        ({"seed": 1.5}, "seed should be"),
    ],
)
def test_wrong_settings_are_refused(settings, says):
    with pytest.raises(InvalidInputError, match=says):
        BudgetPlanner(**{"budget": Budget.parameters(1), **settings})


def test_wrong_tables_are_refused():
    with pytest.raises(InvalidInputError, match="distinct names"):
        ES.plan([TABLES[0], TABLES[0]], COUNTS)
    with pytest.raises(InvalidInputError, match="table 'tiny': widths should"):
        ES.plan([TableSpec("tiny", 3, 2)], {"tiny": [1, 1, 1]})


def test_a_wrong_evaluate_or_resume_is_refused(tmp_path):
    with pytest.raises(InvalidInputError, match="evaluate should be a function"):
        ES.plan(TABLES, COUNTS, 0.5)
    with pytest.raises(InvalidInputError, match="train should be a function"):
        ES.plan(TABLES, COUNTS, len, train=0.5)
    with pytest.raises(InvalidInputError, match="beside evaluate"):
        ES.plan(TABLES, COUNTS, train=len)
    with pytest.raises(InvalidInputError, match="no folder"):
        ES.plan(TABLES, COUNTS, resume=tmp_path / "nowhere")
    with pytest.raises(InvalidInputError, match="leave it out"):
        ES.plan(TABLES, COUNTS, resume=tmp_path, run_dir=tmp_path / "other")
    with pytest.raises(InvalidInputError, match="got True"):
        ES.plan(TABLES, COUNTS, resume=True)


def test_an_impossible_budget_names_the_smallest():
    planner = BudgetPlanner(budget=Budget.parameters(27), sizer=EqualSizes(), widths=(4, 8))
    with pytest.raises(InfeasibleBudgetError, match="28 parameters") as caught:
        planner.plan(TABLES, COUNTS)
    assert caught.value.smallest == 28
    smallest = BudgetPlanner(budget=Budget.parameters(28), sizer=EqualSizes(), widths=(4, 8))
    assert smallest.plan(TABLES, COUNTS).used == 1


def test_a_users_own_sizer_is_checked():
    other = ES.plan(TABLES, COUNTS)
    planner = BudgetPlanner(budget=Budget.parameters(50), sizer=lambda problem: other)
    with pytest.raises(InvalidInputError, match="a sizer should plan"):
        planner.plan(TABLES, COUNTS)
    planner = BudgetPlanner(budget=Budget.parameters(50), sizer=lambda problem: None)
    with pytest.raises(InvalidInputError, match="return a SizePlan, got NoneType"):
        planner.plan(TABLES, COUNTS)
    same = BudgetPlanner(budget=other.budget, sizer=lambda problem: other)
    assert same.plan(TABLES, COUNTS) == other


@pytest.mark.parametrize("amount", [2**63 - 1, 2**63, 10**30])
def test_a_budget_beyond_64_bits_gives_full_tables(amount):
    for budget in (
        Budget.parameters(amount),
        Budget.bytes(amount, purpose="inference", dtype=("fp32", "int8")),
    ):
        for sizer in (EqualSizes(), BET(iterations=2, candidates=3, finalists=0)):
            planner = BudgetPlanner(budget=budget, sizer=sizer, widths=(4, 8, 16))
            plan = planner.plan(TABLES, COUNTS, lambda plan: 1.0, progress=False)
            assert [t.widths for t in plan.tables] == [(16,), (8,)]


def test_tables_beyond_64_bits_are_refused():
    tables = [TableSpec("huge", 2**31 - 1, 2**31 - 1)]
    counts = {"huge": RowCounts.from_distinct([1], [2**31 - 1])}
    planner = BudgetPlanner(
        budget=Budget.parameters(10**9), sizer=EqualSizes(), widths=(0, 2**31 - 1)
    )
    with pytest.raises(InvalidInputError, match="beyond what costs are counted in"):
        planner.plan(tables, counts)


def test_raw_ids_and_a_tiny_budget_are_no_plan_that_keeps_nothing():
    """Maps of 4 bytes an id had eaten all of it, without a word."""
    tables = [TableSpec("user", 5000, 16), TableSpec("item", 3000, 16)]
    rng = np.random.default_rng(0)
    counts = {t.name: rng.permutation(t.num_embeddings) for t in tables}
    budget = Budget.bytes(400, purpose="inference", dtype="int8", alignment=1)
    planner = BudgetPlanner(budget=budget, sizer=EqualSizes(), widths=(0, 4, 8, 16))
    with pytest.raises(
        InfeasibleBudgetError, match="keeps nothing.*\n.*\n.*\n.*relabel ids by rank"
    ):
        planner.plan(tables, counts)
    ranked = {name: np.sort(c)[::-1] for name, c in counts.items()}
    assert planner.plan(tables, ranked).parameters() > 0
    larger = BudgetPlanner(
        budget=Budget.bytes(40_000, purpose="inference", dtype="int8", alignment=1),
        sizer=EqualSizes(),
        widths=(0, 4, 8, 16),
    ).plan(tables, counts)
    assert larger.parameters() > 9000
