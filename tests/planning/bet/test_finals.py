"""Selective retraining: who is trained how often, from where, and who wins."""

from __future__ import annotations

import warnings

import pytest
import torch
from fake_workbench import FakeWorkbench
from searches import COUNTS, TABLES, bet, lines, plan, quality

from bet_torchrec.errors import DivergedError
from bet_torchrec.outcome import Outcome
from bet_torchrec.planning import Budget, BudgetPlanner
from bet_torchrec.planning.sizers.bet.finals import fittest_apart
from bet_torchrec.planning.sizers.bet.history import History, Probe
from bet_torchrec.planning.sizers.bet.search import Search

THREE = Budget.bytes(20_000, purpose="inference", dtype=("fp16", "int8", "int4"), alignment=1)


def other_way_round(plan, start):
    """Training says the opposite of what probes say; warm ones are better by a little."""
    return -quality(plan) + (0.001 if start == "full" else 0.0)


def test_finalists_are_retrained_and_validation_decides(tmp_path):
    bench = FakeWorkbench(quality, other_way_round)
    sizer = bet(iterations=10, finalists=3)
    found = plan(sizer, workbench=bench, run_dir=tmp_path, seed=4)
    fitness = {p["iteration"]: p["fitness"] for p in lines(tmp_path)}
    trained = [int(p.metadata["iteration"]) for p, _, _ in bench.trained]
    top = [fitness[t] for t in trained[:6:2]]
    assert top == sorted(top, reverse=True)
    assert top[0] == max(fitness.values())
    assert 0 in trained  # equal sizes are always among them
    assert {(seed, start) for _, seed, start in bench.trained} == {(4, "scratch"), (4, "full")}
    worst_probe = min(trained, key=lambda t: fitness[t])
    assert int(found.metadata["iteration"]) == worst_probe
    assert found.metadata["start"] == "full"
    assert float(found.metadata["validation_quality"]) == pytest.approx(0.001 - quality(found))
    again = FakeWorkbench(quality, other_way_round)
    assert plan(sizer, workbench=again, resume=tmp_path, seed=4) == found
    assert not again.probed
    assert not again.trained


def test_equal_sizes_in_every_precision_are_retrained():
    """So the result is no worse than any of them on validation, whatever the probes say."""

    def final(p, start):
        return float(p.metadata["iteration"] == "1")

    bench = FakeWorkbench(quality, final)
    found = plan(bet(iterations=8, finalists=1), workbench=bench, budget=THREE)
    assert {"0", "1", "2"} <= {p.metadata["iteration"] for p, _, _ in bench.trained}
    assert found.metadata["iteration"] == "1"


def test_the_start_that_wins_is_in_the_metadata():
    bench = FakeWorkbench(quality, lambda p, start: float(start == "scratch"))
    found = plan(bet(iterations=2, finalists=1), workbench=bench)
    assert found.metadata["start"] == "scratch"
    plan(
        bet(iterations=2, finalists=1, starts=("full",)),
        workbench=(other := FakeWorkbench(quality)),
    )
    assert {start for _, _, start in other.trained} == {"full"}


def test_several_seeds_are_averaged(tmp_path):
    noise = {7: 0.0, 8: 1.0, 9: -1.0}

    def train(p, seed):
        return quality(p) + noise[seed]

    sizer = bet(iterations=6, finalists=2, final_seeds=3)
    found = plan(sizer, evaluate=quality, train=train, seed=7, run_dir=tmp_path)
    assert float(found.metadata["validation_quality"]) == pytest.approx(quality(found), abs=1e-5)
    assert {(r["seed"], r["start"]) for r in lines(tmp_path, "retrained")} == {
        (7, "scratch"), (8, "scratch"), (9, "scratch")
    }  # fmt: skip


def test_a_finalist_that_diverges_loses(tmp_path):
    def final(p, start):
        return Outcome.diverged() if p.metadata["iteration"] != "0" else 0.1

    bench = FakeWorkbench(quality, final)
    found = plan(bet(iterations=6, finalists=2), workbench=bench, run_dir=tmp_path)
    assert found.metadata["iteration"] == "0"
    assert {r["state"] for r in lines(tmp_path, "retrained")} == {"ok", "diverged"}
    bench = FakeWorkbench(quality, lambda p, start: float("nan"))
    with pytest.raises(DivergedError, match="retrainings of the 2 finalists"):
        plan(bet(iterations=6, finalists=1), workbench=bench)


def test_finalists_without_a_way_to_train_them_are_a_warning():
    with pytest.warns(UserWarning, match="retrained nothing.*train=") as caught:
        plan(bet(iterations=3, finalists=2))
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plan(bet(iterations=3, finalists=0))
        plan(bet(iterations=3, finalists=1), evaluate=quality, train=lambda p, seed: quality(p))


def test_finalists_are_no_near_copies_of_one_another():
    history = History(header={})
    for t, fitness in enumerate([0.5, 0.9, 0.89, 0.8, 0.7]):
        history.add(
            Probe(
                iteration=t,
                strategy="random",
                state="ok",
                fitness=fitness,
                predicted=None,
                seconds=0.0,
                families=[],
                beta=[],
                shares=[],
                precisions=[],
                buckets=[],
            )
        )
    codes = torch.tensor([[0.0], [5.0], [5.1], [3.0], [8.0]])
    found = [probe.iteration for probe in fittest_apart(history, codes, 5)]
    assert found == [1, 3, 4, 0, 2]  # 2 is fitter than 3, but nearly the same as 1
    assert [probe.iteration for probe in fittest_apart(history, codes[:, :0], 2)] == [1, 2]


def test_no_probe_that_came_to_a_quality_leaves_no_finalists():
    """A comparison asks a search for its fittest after the fact, whatever came of it."""
    bench = FakeWorkbench(lambda p: Outcome.diverged())
    sizer = bet(iterations=4, finalists=0)
    planner = BudgetPlanner(budget=Budget.sparsity(0.8), sizer=sizer)
    search = Search(sizer, planner.problem(TABLES, COUNTS, workbench=bench, progress=False))
    with pytest.raises(DivergedError):
        search.run()
    assert search.fittest(3) == []
