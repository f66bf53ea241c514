"""BET's loop: anchors, strategies, states of probes, floors, settings."""

from __future__ import annotations

import numpy as np
import pytest
from fake_workbench import FakeWorkbench
from scipy import stats
from searches import COUNTS, TABLES, bet, lines, plan, quality

from bet_torchrec.errors import BetError, DivergedError, InvalidInputError
from bet_torchrec.outcome import Outcome
from bet_torchrec.planning import BET, Budget, BudgetPlanner, EqualSizes, TableSpec
from bet_torchrec.planning.sizers.bet import (
    PAPER_FAMILIES,
    CountPower,
    Dirichlet,
    Flat,
    FullBatch,
    GaussianProcess,
    SingleSamples,
)


@pytest.mark.parametrize(
    "sizer", [BET(iterations=20, finalists=0), BET.paper(iterations=20, finalists=0)]
)
def test_finds_what_is_good(sizer):
    found = plan(sizer)
    assert found.cost() <= found.limit
    assert quality(found) > 0.97


@pytest.mark.parametrize("sizer", [bet(iterations=7), BET.paper(iterations=7, finalists=0)])
def test_the_seed_decides(sizer):
    assert plan(sizer) == plan(sizer)
    assert plan(sizer) != plan(sizer, seed=1)


def test_the_paper_is_the_paper():
    paper = BET.paper()
    assert (paper.iterations, paper.candidates, paper.finalists) == (50, 100, 5)
    assert paper.families == PAPER_FAMILIES
    assert paper.trainer == SingleSamples()
    assert paper.shares == Dirichlet()
    assert paper.strategies == ("predicted",) * 3 + ("random", "nearest")
    assert [f.beta_max for f in paper.families] == [20.0, 20.0, 5.0, 0.5]
    assert (paper.mutants, paper.anchored, paper.tolerance) == (0.0, False, None)
    assert (paper.alike, paper.optimism, paper.explored) == (0.0, 0.0, 1)
    assert paper.starts == ("scratch",)
    assert BET.paper(iterations=3).iterations == 3


def strategies(folder):
    return [line["strategy"] for line in lines(folder)]


def test_anchors_come_first_and_then_strategies_take_turns(tmp_path):
    sizer = bet(iterations=13, strategies=("predicted", "random", "nearest"))
    plan(sizer, run_dir=tmp_path)
    assert strategies(tmp_path) == [
        "anchor", "subset", "small", "subset", "small",
        "nearest", "predicted", "small", "nearest", "predicted", "count", "nearest", "predicted",
    ]  # fmt: skip
    tried = lines(tmp_path)
    for number, table in ((1, 0), (3, 1)):
        of_table = [sum(w * n for w, n in buckets) for buckets in tried[number]["buckets"]]
        assert of_table[table] > 0.8 * sum(of_table)


def test_equal_sizes_are_exactly_those_of_equal_sizes(tmp_path):
    budget = Budget.bytes(20_000, purpose="inference", dtype=("fp16", "int8", "int4"), alignment=1)
    plan(bet(iterations=1), budget=budget, run_dir=tmp_path)
    anchors = lines(tmp_path)
    assert [p["strategy"] for p in anchors] == ["anchor"] * 3  # however few iterations there are
    for anchor, precision in zip(anchors, ("fp16", "int8", "int4"), strict=True):
        equal = plan(EqualSizes(precision=precision), budget=budget)
        assert anchor["precisions"] == [precision] * 2
        assert anchor["buckets"] == [[[b.width, b.rows] for b in t.buckets] for t in equal.tables]


def many(**more):
    """Twelve tables, from 3 rows to 3,000."""
    rows = [3, 5, 18, 40, 80, 200, 300, 500, 900, 1500, 2000, 3000]
    tables = [TableSpec(f"t{i}", n, 16) for i, n in enumerate(rows)]
    rng = np.random.default_rng(0)
    counts = {t.name: np.bincount(rng.zipf(1.3, 4000) % t.num_embeddings,
                                  minlength=t.num_embeddings) for t in tables}  # fmt: skip
    planner = BudgetPlanner(budget=Budget.sparsity(0.9), widths=(0, 1, 2, 4, 8, 16), **more)
    return planner, tables, counts


def test_the_first_probes_explore_before_the_predictor_is_asked(tmp_path):
    plan(bet(iterations=11, explored=9, trainer=GaussianProcess()), run_dir=tmp_path)
    own = [s for s in strategies(tmp_path) if s in ("random", "predicted")]
    assert own == ["random", "random", "random", "predicted"]
    plan(bet(iterations=4, explored=9, anchored=False), run_dir=tmp_path / "bare")
    assert strategies(tmp_path / "bare") == ["random"] * 4


def test_probes_that_were_given_up_have_explored_too(tmp_path):
    calls = []

    def probe(p):
        calls.append(p)
        state = "ok" if len(calls) <= 2 else "pruned"
        return Outcome(quality=quality(p), state=state)

    plan(bet(iterations=11, explored=9), workbench=FakeWorkbench(probe), run_dir=tmp_path)
    assert "predicted" in strategies(tmp_path)


def test_large_tables_are_each_left_out_in_turn_and_the_search_keeps_most(tmp_path):
    planner, tables, counts = many(sizer=bet(iterations=50, strategies=("random",), candidates=3))
    planner.plan(
        tables, counts, lambda plan: plan.tables[3].parameters, run_dir=tmp_path, progress=False
    )
    tried = lines(tmp_path)
    left = [p for p in tried if p["strategy"] == "subset"]
    empty = [{t for t, b in enumerate(p["buckets"]) if sum(w for w, _ in b) == 0} for p in left]
    # t7 to t11 have 500 rows or more; without one of the others nothing would be gained
    assert [len(e) for e in empty] == [1] * 5
    assert set().union(*empty) == set(range(7, 12))
    searched = [p["strategy"] not in ("anchor", "subset", "small", "count") for p in tried]
    assert sum(searched[:3]) == 0
    assert sum(searched) >= 35


def test_small_tables_at_full_width(tmp_path):
    planner, tables, counts = many(sizer=bet(iterations=4, trainer=FullBatch(steps=1)))
    planner.plan(tables, counts, lambda plan: 1.0, run_dir=tmp_path, progress=False)
    small = [p for p in lines(tmp_path) if p["strategy"] == "small"][-1]
    assert small["buckets"][:3] == [[[16, 3]], [[16, 5]], [[16, 18]]]
    largest = sum(w * n for w, n in small["buckets"][-1])
    assert largest > 0.2 * 0.1 * 16 * sum(t.num_embeddings for t in tables)


def test_no_plan_is_tried_twice(tmp_path):
    plan(bet(iterations=12), widths=(4, 16, 32), run_dir=tmp_path)
    tried = [repr((p["buckets"], p["precisions"])) for p in lines(tmp_path)]
    assert len(set(tried)) == len(tried)


def test_a_table_that_is_left_out_gets_nothing_of_what_is_left_over(tmp_path):
    """Half of the budget would widen it again, and without it a model may do better."""
    plan(bet(iterations=4), budget=Budget.sparsity(0.1), widths=(0, 8, 32), run_dir=tmp_path)
    left = [p["buckets"] for p in lines(tmp_path) if p["strategy"] == "subset"]
    assert left == [[[[32, 300]], [[0, 500]]], [[[0, 300]], [[32, 500]]]]


def test_where_no_table_may_be_left_out_the_budget_is_spent_on_it(tmp_path):
    plan(bet(iterations=4), budget=Budget.sparsity(0.1), widths=(8, 16, 32), run_dir=tmp_path)
    tried = lines(tmp_path)
    limit = int(0.9 * 32 * 800)
    spent = [sum(w * n for table in p["buckets"] for w, n in table) for p in tried]
    assert {p["strategy"] for p in tried} > {"subset"}
    assert all(limit - 8 < n <= limit for n in spent)


def test_where_everything_fits_ever_more_tables_are_left_out_and_then_the_search_ends(tmp_path):
    """The model is best without items; nothing is probed twice, and not all probes are spent."""
    kinds = {"budget": Budget.sparsity(0.0), "widths": (0, 32)}
    kinds["evaluate"] = lambda p: 1.0 - (p.sizes("item").sum() > 0) - (p.sizes("user").sum() == 0)
    found = plan(bet(iterations=30), run_dir=tmp_path, **kinds)
    tried = [repr(p["buckets"]) for p in lines(tmp_path)]
    assert len(tried) == len(set(tried)) == 3  # both, users alone, items alone
    assert [found.sizes(t).max() for t in ("user", "item")] == [32, 0]
    assert plan(bet(iterations=30), resume=tmp_path, **kinds) == found
    assert len(lines(tmp_path)) == 3


def test_precisions_that_cannot_fit_are_left_out(tmp_path):
    # 800 rows of width 1 are 3,200 bytes in fp32, 1,600 in fp16
    budget = Budget.bytes(3_000, purpose="inference", dtype=("fp32", "fp16"), alignment=1)
    found = plan(bet(iterations=6), budget=budget, run_dir=tmp_path)
    assert {p for line in lines(tmp_path) for p in line["precisions"]} == {"fp16"}
    assert found.cost() <= 3_000


def sometimes(answers, ok=quality):
    """An evaluation that gives these instead of the quality, by number of call."""
    calls = []

    def evaluate(p):
        calls.append(p)
        answer = answers.get(len(calls) - 1)
        return ok(p) if answer is None else answer

    return evaluate, calls


def test_a_search_survives_probes_that_diverge(tmp_path):
    bad = {2: float("nan"), 5: float("inf"), 7: -float("inf")}
    evaluate, calls = sometimes(bad)
    found = plan(bet(iterations=12), evaluate=evaluate, run_dir=tmp_path)
    tried = lines(tmp_path)
    assert [t for t, p in enumerate(tried) if p["state"] == "diverged"] == sorted(bad)
    assert [p["fitness"] for p in tried if p["state"] == "diverged"] == [None] * 3
    assert len(calls) == 12
    fitness = {p["iteration"]: p["fitness"] for p in tried if p["state"] == "ok"}
    assert int(found.metadata["iteration"]) == max(fitness, key=fitness.get)
    evaluate, again = sometimes({})
    assert plan(bet(iterations=12), evaluate=evaluate, resume=tmp_path) == found
    assert not again


def test_a_pruned_probe_teaches_nothing(tmp_path):
    """One that claims the best of qualities is no best, no parent, no finalist."""
    given_up = Outcome(quality=9.0, state="pruned")
    evaluate, _ = sometimes({3: given_up, 6: given_up})
    bench = FakeWorkbench(evaluate)
    sizer = bet(iterations=10, finalists=2, strategies=("local",))
    found = plan(sizer, workbench=bench, run_dir=tmp_path)
    assert [p["iteration"] for p in lines(tmp_path) if p["state"] == "pruned"] == [3, 6]
    trained = {int(p.metadata["iteration"]) for p, _, _ in bench.trained}
    assert len(trained) == 3  # two, and equal sizes
    assert not trained & {3, 6}
    assert found.metadata["iteration"] not in ("3", "6")


def test_where_everything_diverges_it_says_so(tmp_path):
    evaluate, calls = sometimes(dict.fromkeys(range(99), float("nan")))
    with pytest.raises(DivergedError, match="none of the 6 plans"):
        plan(bet(iterations=6), evaluate=evaluate, run_dir=tmp_path)
    with pytest.raises(DivergedError):
        plan(bet(iterations=6), evaluate=evaluate, resume=tmp_path)
    assert len(calls) == 6


@pytest.mark.parametrize("finalists", [0, 1, 2])
def test_hopeless_probes_get_a_floor(finalists):
    bench = FakeWorkbench(lambda p: 2 * quality(p), full=2.0)
    sizer = bet(iterations=8, finalists=finalists, stop_hopeless=True, probe_epochs=3)
    plan(sizer, workbench=bench)
    assert {epochs for _, epochs, _ in bench.probed} == {3}
    places, seen = max(finalists, 1), []
    for tried, _, floor in bench.probed:
        if len(seen) < places:
            assert floor is None
        else:  # the last who would be a finalist, as a quality
            assert floor == pytest.approx(sorted(seen)[-places])
        seen.append(2 * quality(tried))


def test_full_tables_in_fewer_bits_end_the_search(tmp_path, caplog):
    budget = Budget.bytes(40_000, purpose="inference", dtype=("fp32", "fp16", "int8"), alignment=1)
    bench = FakeWorkbench(lambda p: 0.9998 if p.precisions["user"] == ("int8",) else 0.9)
    found = plan(bet(iterations=30), budget=budget, workbench=bench, run_dir=tmp_path)
    # 800 rows of 32 weights are 102,400 bytes in fp32, 51,200 in fp16
    assert [t.buckets[0].width for t in found.tables] == [32, 32]
    assert len(lines(tmp_path)) == 3
    assert "int8 fit the budget with 0.99980 of the full quality" in found.metadata["stopped"]
    assert found.metadata["start"] == "full"
    assert plan(bet(iterations=30), budget=budget, workbench=bench, resume=tmp_path) == found
    assert len(bench.probed) == 3
    for settings in ({"tolerance": None}, {"tolerance": 1e-4}):
        bench = FakeWorkbench(bench.probe)
        plan(bet(iterations=6, **settings), budget=budget, workbench=bench)
        assert len(bench.probed) == 6


def test_predictions_are_in_units_of_fitness_and_their_worth_is_told(tmp_path, caplog):
    sizer = bet(iterations=16, trainer=GaussianProcess(), strategies=("predicted",))
    with caplog.at_level("INFO"):
        found = plan(sizer, run_dir=tmp_path)
    asked = [p for p in lines(tmp_path) if p["predicted"] is not None]
    assert len(asked) >= 8
    assert all(0.4 < p["predicted"] < 1.2 for p in asked)
    rho = stats.spearmanr([p["predicted"] for p in asked], [p["fitness"] for p in asked]).statistic
    assert float(found.metadata["prediction_correlation"]) == pytest.approx(rho, abs=0.01)
    assert f"measured fitness: {rho:.2f}" in caplog.text


def test_it_needs_a_way_to_try():
    planner = BudgetPlanner(budget=Budget.sparsity(0.8), sizer=bet(iterations=3))
    with pytest.raises(BetError, match="evaluat"):
        planner.plan(TABLES, COUNTS, progress=False)


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"iterations": 0}, "iterations should be an int, 1 or more"),
        ({"iterations": 2.5}, "iterations"),
        ({"candidates": None}, "candidates"),
        ({"finalists": ""}, "finalists should be an int, 0 or more, got ''"),
        ({"final_seeds": True}, "final_seeds"),
        ({"probe_epochs": -1}, "probe_epochs"),
        ({"mutants": 2}, "mutants should be a share"),
        ({"mutants": "half"}, "mutants"),
        ({"tolerance": -0.1}, "tolerance"),
        ({"draws": "sobol"}, "draws"),
        ({"anchored": 1}, "anchored"),
        ({"alike": 1.5}, "alike"),
        ({"optimism": -1}, "optimism"),
        ({"optimism": "much"}, "optimism"),
        ({"explored": -1}, "explored"),
        ({"strategies": ()}, "strategies"),
        ({"strategies": "local"}, "strategies"),
        ({"strategies": ("luck",)}, "strategies"),
        ({"starts": ("warm",)}, "starts"),
        ({"trainer": FullBatch}, "trainer"),
        ({"shares": 0.5}, "shares"),
        ({"families": ()}, "families"),
        ({"families": (1,)}, "families"),
        ({"families": PAPER_FAMILIES}, "Flat"),
        ({"families": (CountPower(), Flat(), Flat())}, "twice"),
    ],
)
def test_wrong_settings_say_so(wrong, match):
    with pytest.raises(InvalidInputError, match=match):
        bet(**wrong)


def test_large_tables_go_first_whose_zeros_cost_the_full_model_least(tmp_path):
    planner, tables, counts = many(sizer=bet(iterations=60, strategies=("random",), candidates=3))
    worth = {"t7": 0.4, "t8": 0.1, "t9": 0.3, "t10": 0.2, "t11": 0.5}

    def probe(p):
        return 1.0 - sum(loss for name, loss in worth.items() if not p.sizes(name).any())

    bench = FakeWorkbench(probe)
    planner.plan(tables, counts, workbench=bench, run_dir=tmp_path, progress=False)
    left = [p for p in lines(tmp_path) if p["strategy"] == "subset"]
    out = [{f"t{t}" for t, b in enumerate(p["buckets"]) if sum(w for w, _ in b) == 0} for p in left]
    assert out == [{"t8"}, {"t8", "t10"}, {"t8", "t10", "t9"}, {"t8", "t10", "t9", "t7"}]
    assert [epochs for _, epochs, _ in bench.probed[:5]] == [0] * 5
