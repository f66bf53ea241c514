"""BET's loop with a fake workbench: strategies, history, resume, selective retraining."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from bet_torchrec.errors import BetError
from bet_torchrec.planning import BET, Budget, BudgetPlanner, TableSpec
from bet_torchrec.planning.sizers.bet import (
    PAPER_FAMILIES,
    FullBatch,
    History,
    HistoryError,
    SingleSamples,
)

TABLES = (
    TableSpec(name="user", num_embeddings=300, embedding_dim=32),
    TableSpec(name="item", num_embeddings=500, embedding_dim=32),
)
COUNTS = {"user": np.arange(300, 0, -1) // 3, "item": np.arange(500, 0, -1) // 5}


def bet(**settings):
    """The default with a predictor that is trained briefly."""
    return BET(**{"trainer": FullBatch(steps=15), **settings})


def quality(plan):
    """Best where users hold 70 % of the weights; smooth, deterministic, cheap."""
    share = plan.sizes("user").sum() / plan.parameters()
    return 1.0 - abs(share - 0.7)


class Bench:
    """Probes say one thing, training from scratch another."""

    def __init__(self):
        self.probed, self.trained = [], []

    def full_tables(self):
        return {}

    def full_quality(self):
        return 2.0

    def fine_tune(self, plan, *, epochs=None, floor=None):
        self.probed.append((plan, epochs, floor))
        return 2 * quality(plan)

    def train(self, plan, *, seed=None):
        self.trained.append(plan)
        return -quality(plan)


def plan(sizer, *, seed=0, budget=None, **kwargs):
    planner = BudgetPlanner(
        budget=budget or Budget.sparsity(0.8), widths="any", sizer=sizer, seed=seed
    )
    if not kwargs.keys() & {"workbench", "evaluate"}:
        kwargs["evaluate"] = quality
    return planner.plan(TABLES, COUNTS, progress=False, **kwargs)


def probes(folder):
    lines = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == "probe"]


@pytest.mark.parametrize("sizer", [bet(iterations=20), BET.paper(iterations=20)])
def test_finds_what_is_good(sizer):
    found = plan(sizer)
    assert found.cost() <= found.limit
    assert quality(found) > 0.97
    assert found == plan(sizer)
    assert found != plan(sizer, seed=1)


def test_the_paper_is_the_paper():
    paper = BET.paper()
    assert (paper.iterations, paper.candidates, paper.finalists) == (50, 100, 5)
    assert paper.families == PAPER_FAMILIES
    assert paper.trainer == SingleSamples()
    assert [f.beta_max for f in paper.families] == [20.0, 20.0, 5.0, 0.5]
    assert (paper.mutants, paper.anchored) == (0.0, False)


def test_strategies_take_turns_and_equal_sizes_come_first(tmp_path):
    plan(bet(iterations=11), run_dir=tmp_path)
    lines = probes(tmp_path)
    assert [p["strategy"] for p in lines] == [
        "anchor", "subset", "subset", "random", "nearest",
        "predicted", "predicted", "predicted", "random", "nearest", "predicted",
    ]  # fmt: skip
    for t in range(2):
        of_table = [sum(w * n for w, n in table) for table in lines[1 + t]["buckets"]]
        assert of_table[t] > 0.8 * sum(of_table)
    (user, item) = lines[0]["buckets"]
    assert {w for w, _ in user} | {w for w, _ in item} <= {6, 7}  # 0.2 * 32 = 6.4


def test_four_tables_are_tried_in_every_subset(tmp_path):
    tables = [TableSpec(name, 30, 32) for name in "abcd"]
    counts = {name: np.arange(30) for name in "abcd"}
    BudgetPlanner(
        budget=Budget.sparsity(0.8), widths=range(33), sizer=bet(iterations=16), seed=0
    ).plan(tables, counts, lambda plan: 1.0, run_dir=tmp_path, progress=False)
    lines = probes(tmp_path)
    assert [p["strategy"] for p in lines][:15] == ["anchor"] + ["subset"] * 14
    kept = []
    for line in lines[1:15]:
        of_table = [sum(w * n for w, n in table) for table in line["buckets"]]
        kept.append(frozenset(i for i, n in enumerate(of_table) if n > 0.1 * sum(of_table)))
    assert len(set(kept)) == 14
    assert all(0 < len(subset) < 4 for subset in kept)


def test_each_precision_has_an_anchor(tmp_path):
    budget = Budget.bytes(20_000, purpose="inference", dtype=("fp16", "int8", "int4"), alignment=1)
    found = plan(bet(iterations=6), budget=budget, run_dir=tmp_path)
    anchors = [p["precisions"] for p in probes(tmp_path) if p["strategy"] == "anchor"]
    assert anchors == [["fp16"] * 2, ["int8"] * 2, ["int4"] * 2]
    assert found.cost() <= 20_000


def test_precisions_that_cannot_fit_are_left_out(tmp_path):
    # 800 rows of width 1 are 3,200 bytes in fp32, 1,600 in fp16
    budget = Budget.bytes(3_000, purpose="inference", dtype=("fp32", "fp16"), alignment=1)
    found = plan(bet(iterations=6), budget=budget, run_dir=tmp_path)
    assert {p for line in probes(tmp_path) for p in line["precisions"]} == {"fp16"}
    assert found.cost() <= 3_000


@pytest.mark.parametrize("sizer", [bet(iterations=12), BET.paper(iterations=12)])
@pytest.mark.parametrize("stop", [1, 7])
def test_an_interrupted_search_continues_to_the_identical_plan(tmp_path, sizer, stop):
    undisturbed = plan(sizer, run_dir=tmp_path / "a")
    calls = []

    def interrupted(p):
        calls.append(p)
        if len(calls) > stop:
            raise KeyboardInterrupt
        return quality(p)

    with pytest.raises(KeyboardInterrupt):
        plan(sizer, run_dir=tmp_path / "b", evaluate=interrupted)
    assert len(probes(tmp_path / "b")) == stop
    assert plan(sizer, resume=tmp_path / "b") == undisturbed
    a, b = probes(tmp_path / "a"), probes(tmp_path / "b")
    assert [{**p, "seconds": 0} for p in a] == [{**p, "seconds": 0} for p in b]


def test_kill_minus_nine(tmp_path):
    script = textwrap.dedent(
        """
        import os, signal, sys
        sys.path.insert(0, sys.argv[2])
        from test_search import plan, quality, bet
        calls = []
        def dying(p):
            calls.append(p)
            if len(calls) == 6:
                os.kill(os.getpid(), signal.SIGKILL)
            return quality(p)
        plan(bet(iterations=10), run_dir=sys.argv[1], evaluate=dying)
        """
    )
    here = os.path.dirname(__file__)
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path / "run"), here], check=False)
    assert done.returncode == -signal.SIGKILL
    assert len(probes(tmp_path / "run")) == 5
    resumed = plan(bet(iterations=10), resume=tmp_path / "run")
    assert resumed == plan(bet(iterations=10))


def test_a_line_cut_short_is_forgotten(tmp_path):
    plan(bet(iterations=4), run_dir=tmp_path)
    path = tmp_path / "history.jsonl"
    path.write_bytes(path.read_bytes()[:-40])
    assert plan(bet(iterations=4), resume=tmp_path) == plan(bet(iterations=4))
    assert [p["iteration"] for p in probes(tmp_path)] == [0, 1, 2, 3]


def test_a_search_can_be_made_longer(tmp_path):
    plan(bet(iterations=4), run_dir=tmp_path)
    longer = plan(bet(iterations=8), resume=tmp_path)
    assert longer == plan(bet(iterations=8))


def test_another_searchs_history_is_refused(tmp_path):
    plan(bet(iterations=3), run_dir=tmp_path)
    with pytest.raises(HistoryError, match="seed: 0 there, 1 now"):
        plan(bet(iterations=3), resume=tmp_path, seed=1)
    with pytest.raises(HistoryError, match="settings"):
        plan(bet(iterations=3, candidates=7), resume=tmp_path)
    with pytest.raises(BetError, match="already holds a search"):
        plan(bet(iterations=3), run_dir=tmp_path)


@pytest.mark.parametrize("content", [b"\x00\x01garbage\n", b"[1, 2]\n", b"{}\n", b'{"kind": 3}\n'])
def test_a_foreign_file_is_refused(tmp_path, content):
    (tmp_path / "history.jsonl").write_bytes(content)
    with pytest.raises(HistoryError):
        History.open(tmp_path / "history.jsonl", {"seed": 0}, resume=True)


def test_finalists_are_retrained_and_validation_decides(tmp_path):
    bench = Bench()
    found = plan(bet(iterations=10, finalists=3), workbench=bench, run_dir=tmp_path)
    fitness = {p["iteration"]: p["fitness"] for p in probes(tmp_path)}
    top = sorted(fitness, key=lambda t: -fitness[t])[:3]
    trained = [int(p.metadata["iteration"]) for p in bench.trained]
    assert trained[:3] == top
    assert 0 in trained  # equal sizes are always among them
    worst_probe = min(trained, key=lambda t: fitness[t])  # this bench trains the other way round
    assert int(found.metadata["iteration"]) == worst_probe
    again = Bench()
    assert plan(bet(iterations=10, finalists=3), workbench=again, resume=tmp_path) == found
    assert not again.probed
    assert not again.trained


def test_hopeless_probes_get_a_floor():
    bench = Bench()
    sizer = bet(iterations=8, finalists=2, stop_hopeless=True, probe_epochs=3)
    plan(sizer, workbench=bench)
    assert {epochs for _, epochs, _ in bench.probed} == {3}
    seen, floors = [], [floor for _, _, floor in bench.probed]
    assert floors[:2] == [None, None]
    for (tried, _, floor), t in zip(bench.probed, range(8), strict=True):
        if t >= 2:  # the second best so far, as a quality
            assert floor == pytest.approx(sorted(seen)[-2])
        seen.append(2 * quality(tried))


def test_a_quality_that_is_no_number_stops_the_search():
    with pytest.raises(BetError, match="finite"):
        plan(bet(iterations=3), evaluate=lambda p: float("nan"))


def test_it_needs_a_way_to_try(tmp_path):
    planner = BudgetPlanner(budget=Budget.sparsity(0.8), sizer=bet(iterations=3))
    with pytest.raises(BetError, match="evaluat"):
        planner.plan(TABLES, COUNTS, progress=False)


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"iterations": 0}, "iterations"),
        ({"mutants": 1.5}, "mutants"),
        ({"families": ()}, "family"),
        ({"families": PAPER_FAMILIES}, "Flat"),
    ],
)
def test_wrong_settings_say_so(wrong, match):
    with pytest.raises(ValueError, match=match):
        bet(**wrong)
