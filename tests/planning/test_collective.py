"""collective_plan on two real gloo processes: one start, many scenes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch.distributed as dist
from fake_workbench import FakeWorkbench
from gloo_ranks import on_ranks

from bet_torchrec.errors import InvalidInputError
from bet_torchrec.planning import BET, Budget, BudgetPlanner, EqualSizes, TableSpec
from bet_torchrec.planning.sizers.bet import FullBatch

TABLES = [TableSpec("user", 40, 16), TableSpec("item", 30, 16)]
COUNTS = {"user": np.arange(40) ** 2, "item": np.arange(30)[::-1].copy()}
BUDGET = Budget.parameters(500)
QUICK_BET = BET(iterations=6, candidates=5, trainer=FullBatch(steps=2), finalists=2)


def scenes(pg, folder):
    """name -> what this rank gets: a plan's fingerprint or an error."""
    rank = dist.get_rank(pg)
    bet = BudgetPlanner(budget=BUDGET, sizer=QUICK_BET, seed=1)
    es = BudgetPlanner(budget=BUDGET, sizer=EqualSizes())
    seen = []

    def evaluate(plan):
        seen.append(plan.fingerprint())
        return float(plan.sizes("user")[-1]) * (1 + rank)  # ranks differ, decisions must not

    def breaks_on_rank_1(plan):
        if rank == 1 and len(seen) > 2:
            raise RuntimeError("out of memory")
        return evaluate(plan)

    def breaks_on_rank_0(problem):
        raise ZeroDivisionError("a sizer's bug")

    def go(name, planner, *args, **more):
        seen.clear()
        try:
            plan = planner.collective_plan(*args, progress=False, **more)
            results[name] = (plan.fingerprint(), list(seen))
        except Exception as error:
            results[name] = (type(error).__name__, str(error))

    results = {}
    go("bet", bet, TABLES, COUNTS, evaluate)
    go("group", bet, TABLES, COUNTS, evaluate, dist.new_group([0, 1]))
    go("es", es, TABLES, COUNTS)
    bench = FakeWorkbench(lambda plan: float(plan.sizes("user")[-1]), _final)
    go("workbench", bet, TABLES, COUNTS, workbench=bench)
    results["calls"] = [len(bench.probed), len(bench.trained)]
    go("workbench breaks", bet, TABLES, COUNTS, workbench=_breaking(rank))
    go("diverges", bet, TABLES, COUNTS, lambda plan: float("nan") if rank else 1.0)
    go("train", bet, TABLES, COUNTS, evaluate, train=lambda plan, seed: _final(plan, seed) + rank)
    # an error on one rank is one on all, and the group still works afterwards
    go("evaluate breaks", bet, TABLES, COUNTS, breaks_on_rank_1)
    broken = BudgetPlanner(budget=BUDGET, sizer=breaks_on_rank_0 if rank == 0 else _other)
    go("unlike sizers", broken, TABLES, COUNTS)
    go("sizer breaks", BudgetPlanner(budget=BUDGET, sizer=_bug), TABLES, COUNTS)
    go("one rank's bug", BudgetPlanner(budget=BUDGET, sizer=_one_bug), TABLES, COUNTS, evaluate)
    go("unlike plans", BudgetPlanner(budget=BUDGET, sizer=_unlike), TABLES, COUNTS)
    go("swallows", BudgetPlanner(budget=BUDGET, sizer=_swallows), TABLES, COUNTS, _fails_on_1)
    wrong = {**COUNTS, "item": COUNTS["item"][:-rank] if rank else COUNTS["item"]}
    go("bad counts", es, TABLES, wrong)
    go("local counts", es, TABLES, {**COUNTS, "user": COUNTS["user"] + rank})
    seeds = BudgetPlanner(budget=BUDGET, sizer=EqualSizes(), seed=rank)
    go("seeds", seeds, TABLES, COUNTS)
    # only the first rank keeps files, and resuming needs only those
    mine = folder / f"rank{rank}"
    mine.mkdir(exist_ok=True)
    go("run_dir", bet, TABLES, COUNTS, evaluate, run_dir=mine)
    results["files"] = sorted(p.name for p in mine.iterdir())
    go("resume", bet, TABLES, COUNTS, evaluate, resume=mine if rank == 0 else folder / "nowhere")
    other = BudgetPlanner(budget=BUDGET, sizer=QUICK_BET, seed=2)
    go("other search", other, TABLES, COUNTS, evaluate, resume=mine)
    go("after all", bet, TABLES, COUNTS, evaluate)
    return results


def _final(plan, start):
    return float(plan.sizes("item")[0])


def _breaking(rank):
    """Ranks whose answers differ where they should not, one of which dies."""
    calls = []

    def probe(plan):
        calls.append(plan)
        if rank == 1 and len(calls) > 2:
            raise RuntimeError("out of memory")
        return 1.0

    return FakeWorkbench(probe)


def _bug(problem):
    raise ZeroDivisionError("a sizer's bug")


def _one_bug(problem):
    """A bug outside of anything collective, while the other rank goes on to evaluate."""
    plan = EqualSizes()(problem)
    problem.fitness(plan)
    if dist.get_rank() == 0:
        raise ZeroDivisionError("a bug on the first")
    problem.fitness(plan)
    return plan


def _unlike(problem):
    plan = EqualSizes()(problem)
    return plan if dist.get_rank() else replace(plan, sizer="another")


def _other(problem):
    raise AssertionError("never runs")


def _fails_on_1(plan):
    if dist.get_rank() == 1:
        raise RuntimeError("out of memory")
    return 1.0


def _swallows(problem):
    plan = EqualSizes()(problem)
    for _ in range(2):
        try:
            problem.fitness(plan)
        except Exception:
            continue
    return plan


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return on_ranks(scenes, 2, tmp_path_factory.mktemp("collective"))


pytestmark = pytest.mark.distributed


@pytest.mark.parametrize(
    "scene", ["bet", "group", "es", "workbench", "train", "run_dir", "after all"]
)
def test_every_rank_gets_the_same_plan(results, scene):
    assert results[0][scene] == results[1][scene]
    assert len(results[0][scene][0]) == 16


def test_it_is_the_plan_of_one_process_with_the_mean_evaluation(results):
    planner = BudgetPlanner(budget=BUDGET, sizer=QUICK_BET, seed=1)
    alone = planner.plan(
        TABLES, COUNTS, lambda plan: float(plan.sizes("user")[-1]) * 1.5, progress=False
    )
    assert results[0]["bet"][0] == alone.fingerprint()
    assert results[0]["bet"] == results[0]["group"] == results[0]["after all"]


def test_a_workbench_on_two_ranks_gives_the_plan_of_one(results):
    planner = BudgetPlanner(budget=BUDGET, sizer=QUICK_BET, seed=1)
    bench = FakeWorkbench(lambda plan: float(plan.sizes("user")[-1]), _final)
    alone = planner.plan(TABLES, COUNTS, workbench=bench, progress=False)
    assert results[0]["workbench"][0] == alone.fingerprint()
    assert results[0]["calls"] == results[1]["calls"] == [6, len(bench.trained)]


def test_train_is_averaged(results):
    planner = BudgetPlanner(budget=BUDGET, sizer=QUICK_BET, seed=1)
    alone = planner.plan(
        TABLES,
        COUNTS,
        lambda plan: float(plan.sizes("user")[-1]) * 1.5,
        train=lambda plan, seed: _final(plan, seed) + 0.5,
        progress=False,
    )
    assert results[0]["train"][0] == alone.fingerprint()


def test_every_rank_evaluated_every_plan(results):
    assert len(results[1]["bet"][1]) == 6


def test_files_are_the_first_ranks(results):
    assert results[0]["files"]
    assert results[1]["files"] == []
    assert results[0]["resume"][0] == results[1]["resume"][0] == results[0]["run_dir"][0]
    assert results[1]["resume"][1] == []  # nothing left to evaluate


@pytest.mark.parametrize(
    ("scene", "first", "second", "says"),
    [
        ("evaluate breaks", "CollectiveError", "RuntimeError", "out of memory"),
        ("workbench breaks", "CollectiveError", "RuntimeError", "out of memory"),
        ("diverges", "DivergedError", "DivergedError", "none of the 6 plans"),
        ("swallows", "CollectiveError", "CollectiveError", "should stop there"),
        ("one rank's bug", "ZeroDivisionError", "CollectiveError", "a bug on the first"),
        ("unlike plans", "CollectiveError", "CollectiveError", "agree on the plan"),
        ("sizer breaks", "ZeroDivisionError", "ZeroDivisionError", "a sizer's bug"),
        ("bad counts", "CollectiveError", "InvalidInputError", "30 rows, got 29"),
        ("local counts", "CollectiveError", "CollectiveError", "global counts"),
        ("unlike sizers", "CollectiveError", "CollectiveError", "the sizer"),
        ("seeds", "CollectiveError", "CollectiveError", "agree on"),
        ("other search", "HistoryError", "CollectiveError", "seed: 1 there, 2 now"),
    ],
)
def test_an_error_on_one_rank_is_one_on_all(results, scene, first, second, says):
    assert (results[0][scene][0], results[1][scene][0]) == (first, second)
    assert says in results[0][scene][1]
    assert says in results[1][scene][1]


def test_without_a_process_group_it_says_so():
    with pytest.raises(InvalidInputError, match="init_process_group"):
        BudgetPlanner(budget=BUDGET, sizer=EqualSizes()).collective_plan(TABLES, COUNTS)
