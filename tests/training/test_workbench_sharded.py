"""The workbench and its search on real gloo ranks, against one process."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from gloo_ranks import on_ranks
from torch import nn
from training_oracles import small_split

from bet_torchrec.planning import BET, Budget, BudgetPlanner, SizePlan
from bet_torchrec.planning.sizers.bet import FullBatch
from bet_torchrec.tasks import BPR, RankingTask
from bet_torchrec.training import ProbeCheck, TrainingWorkbench, TrainSettings
from bet_torchrec.training.trained import Trained

pytestmark = pytest.mark.distributed

SPLIT = small_split()
SETTINGS = TrainSettings(max_epochs=8, validate_every=6, patience=2)
PROBE = dataclasses.replace(SETTINGS, max_epochs=3)
CHECK = ProbeCheck(after=0.34, margin=0.9)
BACKBONES = ("lightgcn", "ngcf", "ncf")
RANKS = [2, pytest.param(3, marks=pytest.mark.slow)]


class Plain(RankingTask):
    """Without dropout, whose masks every rank draws for its own rows."""

    def new_model(self, seed: int) -> nn.Module:
        made = super().new_model(seed)
        if self.backbone == "ngcf":
            made.message_dropout = made.node_dropout = 0
        return made


def bench_of(pg=None, backbone="lightgcn", **more) -> TrainingWorkbench:
    named = {"training": SETTINGS, "fine_tuning": PROBE, "check": CHECK}
    task = Plain(SPLIT, backbone, embedding_dim=8, bpr=BPR(batch_size=250), process_group=pg)
    return TrainingWorkbench(task, **named | more)


def plan_of(bench: TrainingWorkbench, largest: int, precision: str | None = None) -> SizePlan:
    """Sizes from 0 to the largest."""
    if precision is None:
        budget = Budget.parameters(10**6)
    else:
        budget = Budget.bytes(10**6, purpose="inference", dtype=precision)
    sizes = {t.name: np.arange(t.num_embeddings) % (largest + 1) for t in bench.tables}
    return SizePlan.from_sizes(bench.tables, sizes, bench.counts(), budget=budget, sizer="test")


def results(name: str, pg=None) -> dict[str, float | str]:
    """What a sizer may ask of a workbench."""
    bench = bench_of(pg, backbone=name)
    plan, poor = plan_of(bench, 8), plan_of(bench, 1)
    full = bench.full().quality
    given_up = bench.fine_tune(poor, floor=full)
    return {
        "full": full,
        "tables": bench.full().full_tables(),
        "bare": bench.fine_tune(plan, epochs=0).quality,
        "probe": bench.fine_tune(plan, floor=0.1 * full).quality,
        "int4": bench.fine_tune(plan_of(bench, 8, "int4"), epochs=1).quality,
        "stopped": given_up.state,
        "given up": given_up.quality,
        "trained": bench.train(plan, seed=4).quality,
        "continued": bench.train(plan, start="full").quality,
        "dropped": bench.train(plan_of(bench, 0)).quality,
        "test": bench.full().evaluate(part="test").quality(),
    }


def search(folder: Path, pg=None) -> str:
    """The plan's fingerprint; history and models are in the folder."""
    bench = bench_of(pg, run_dir=folder)
    planner = BudgetPlanner(
        budget=Budget.sparsity(0.6),
        widths="any",
        sizer=BET(iterations=6, candidates=5, finalists=2, trainer=FullBatch(steps=2)),
    )
    asked = {"workbench": bench, "run_dir": folder, "progress": False}
    if pg is None:
        return planner.plan(bench.tables, bench.counts(), **asked).fingerprint()
    return planner.collective_plan(bench.tables, bench.counts(), None, pg, **asked).fingerprint()


def on_rank(pg, folder: Path):
    names = BACKBONES if dist.get_world_size(pg) == 3 else BACKBONES[:1]
    return {
        "results": {name: results(name, pg) for name in names},
        "search": search(folder / "search", pg),
    }


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    """Starts that many ranks once: their results, and their folder."""
    started = {}

    def get(ranks: int):
        if ranks not in started:
            folder = tmp_path_factory.mktemp(f"ranks{ranks}")
            scenes = on_rank_of_two if ranks == 2 else on_rank
            started[ranks] = on_ranks(scenes, ranks, folder), folder
        return started[ranks]

    return get


@pytest.mark.parametrize(
    ("ranks", "name"),
    [(2, BACKBONES[0]), *(pytest.param(3, n, marks=pytest.mark.slow) for n in BACKBONES)],
)
def test_every_quality_is_that_of_one_process(sharded, ranks, name):
    alone = results(name)
    exact = {what: alone.pop(what) for what in ("tables", "stopped")}
    assert exact["stopped"] == "pruned"
    found = [dict(rank["results"][name]) for rank in sharded(ranks)[0]]
    for rank in found:
        torch.testing.assert_close(rank.pop("tables"), exact["tables"], rtol=0, atol=1e-4)
        assert rank.pop("stopped") == exact["stopped"]
        assert rank == pytest.approx(alone, abs=1e-6)
    assert all(rank == found[0] for rank in found)


@pytest.mark.parametrize("ranks", RANKS)
def test_the_search_finds_the_plan_of_one_process(sharded, ranks, tmp_path):
    alone = search(tmp_path)
    found, folder = sharded(ranks)
    assert [rank["search"] for rank in found] == [alone] * ranks
    mine, theirs = history(tmp_path), history(folder / "search")
    assert len(mine) == len(theirs) == 1 + 6 + 2 * 3  # finalists and equal sizes start twice
    for one, other in zip(mine, theirs, strict=True):
        for measured in ("fitness", "quality"):
            if measured in one:
                assert other.pop(measured) == pytest.approx(one.pop(measured), abs=1e-6)
        # predicted: of fitness that rounding may touch, as a line's checksum is
        for neither in ("seconds", "predicted", "crc32"):
            one.pop(neither, None), other.pop(neither, None)
        assert one == other
    assert models(tmp_path) == models(folder / "search")
    # One process reads what the ranks have kept.
    written = times(folder / "search")
    bench = bench_of(run_dir=folder / "search")
    assert bench.full().quality == pytest.approx(bench_of(run_dir=tmp_path).full().quality)
    assert times(folder / "search") == written


def history(folder: Path) -> list[dict]:
    (path,) = (p for p in folder.glob("*.jsonl"))
    return [json.loads(line) for line in path.read_text().splitlines()]


def models(folder: Path) -> list[str]:
    return sorted(p.name for p in (folder / "models").iterdir() if p.is_file())


def times(folder: Path) -> dict[str, int]:
    return {p.name: p.stat().st_mtime_ns for p in folder.rglob("*.safetensors")}


# Two ranks: what is kept, and errors.


class Interrupted(Exception):
    pass


def on_rank_of_two(pg, folder: Path):
    found = on_rank(pg, folder)
    found["kept"] = kept(pg, folder / "kept")
    found["errors"] = {how: error_of(pg, folder, how) for how in ("settings", "folder", "broken")}
    found["after all"] = bench_of(pg, run_dir=folder / "kept").full().quality
    return found


def kept(pg, folder: Path):
    """Qualities of a run that was interrupted and continued, and that was then read back."""
    saves, save, quality = [], Trained.save, RankingTask.validate

    def counted_save(self, path, **more):
        saves.append(path.name)
        return save(self, path, **more)

    def third_time_unlucky(self, *args, **more):
        asked.append(1)
        if len(asked) == 3:
            raise Interrupted
        return quality(self, *args, **more)

    Trained.save, asked = counted_save, []
    RankingTask.validate = third_time_unlucky
    try:
        bench_of(pg, run_dir=folder).full()
    except Interrupted:
        asked.append("interrupted")
    unfinished = models(folder)
    results = [bench_of(pg, run_dir=folder).full().outcome for _ in range(2)]
    Trained.save, RankingTask.validate = save, quality
    return {
        "validations": asked,
        "unfinished": unfinished,
        "finished": models(folder),
        "saves": len(saves),
        "results": [dataclasses.replace(result, seconds=0.0) for result in results],
    }


def test_an_interrupted_training_continues_and_is_read_by_all(sharded):
    found, _ = sharded(2)
    undisturbed = found[0]["results"]["lightgcn"]["full"]
    for rank, told in enumerate(r["kept"] for r in found):
        first, second = told["results"]
        assert first == second
        assert first.quality == undisturbed
        assert told["validations"][3] == "interrupted"
        # Two validations were done before, and none was for the reading.
        assert len(told["validations"]) == 4 + len(first.history) - 2
        assert told["saves"] == (1 if rank == 0 else 0)
        assert [Path(name).suffixes for name in told["unfinished"]] == [
            [".jsonl"],
            [".ranks", ".checkpoint"],
        ]
        assert [Path(name).suffix for name in told["finished"]] == [".jsonl", ".safetensors"]


def error_of(pg, folder: Path, how: str) -> tuple[str, str]:
    rank, more = dist.get_rank(pg), {"run_dir": folder / "kept"}
    if how == "settings" and rank:
        more["seed"] = 1
    if how == "folder" and rank:
        more["run_dir"] = folder / "elsewhere"
    if how == "broken":
        more["run_dir"] = folder / "broken"
        if rank == 0:
            (source,) = (folder / "kept").rglob("*.safetensors")
            target = folder / "broken" / "models" / source.name
            target.parent.mkdir(parents=True)
            target.write_bytes(b"no weights")
    try:
        bench_of(pg, **more).full()
    except Exception as error:
        return type(error).__name__, str(error)
    return "", ""


@pytest.mark.parametrize(
    ("how", "first", "second", "says"),
    [
        ("settings", "CollectiveError", "CollectiveError", "agree on the model to train"),
        ("folder", "CollectiveError", "FileNotFoundError", "expected a checkpoint"),
        ("broken", "CheckpointError", "CheckpointError", "no checkpoint"),
    ],
)
def test_an_error_on_one_rank_is_one_on_all(sharded, how, first, second, says):
    found = sharded(2)[0]
    assert [rank["errors"][how][0] for rank in found] == [first, second]
    assert all(says in rank["errors"][how][1] for rank in found)
    # The group still works afterwards.
    assert all(rank["after all"] == found[0]["results"]["lightgcn"]["full"] for rank in found)
