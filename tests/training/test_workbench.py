"""The workbench on a tiny data set: warm starts, reuse, probes, quantised evaluation."""

from __future__ import annotations

import copy
import dataclasses
import gc
import math
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from training_oracles import small_split

from bet_torchrec.errors import InvalidInputError
from bet_torchrec.planning import BET, Budget, BudgetPlanner, SizePlan
from bet_torchrec.tasks import BPR, RankingTask
from bet_torchrec.training import (
    CheckpointError,
    DivergedError,
    ProbeCheck,
    TrainingWorkbench,
    TrainSettings,
    rounding_epochs,
)

SPLIT = small_split()
SETTINGS = TrainSettings(max_epochs=10, validate_every=50, patience=2)
PROBE = dataclasses.replace(SETTINGS, max_epochs=3)


def workbench(backbone="lightgcn", l2=1e-4, split=SPLIT, **more) -> TrainingWorkbench:
    task = RankingTask(split, backbone, embedding_dim=16, bpr=BPR(batch_size=50, l2=l2))
    named = {"training": SETTINGS, "fine_tuning": PROBE, **more}
    return TrainingWorkbench(task, **named)


@pytest.fixture(scope="module")
def bench() -> TrainingWorkbench:
    made = workbench()
    made.full()
    return made


def plan_of(
    bench: TrainingWorkbench, sizes: int | dict[str, np.ndarray], precision: str | None = None
) -> SizePlan:
    tables, counts = bench.tables, bench.counts()
    budget = (
        Budget.parameters(10**6)
        if precision is None
        else Budget.bytes(10**6, purpose="inference", dtype=precision)
    )
    by_table = {
        t.name: np.full(t.num_embeddings, sizes) if isinstance(sizes, int) else sizes[t.name]
        for t in tables
    }
    return SizePlan.from_sizes(tables, by_table, counts, budget=budget, sizer="test")


def by_count(bench: TrainingWorkbench) -> dict[str, np.ndarray]:
    """8 for the more frequent half, 2 for the rest."""
    sizes = {}
    for name, counts in bench.task.split.train.counts().items():
        sizes[name] = np.full(len(counts), 2)
        sizes[name][np.argsort(-counts, kind="stable")[: len(counts) // 2]] = 8
    return sizes


@pytest.mark.parametrize("name", ["lightgcn", "ngcf", "ncf"])
def test_a_full_plan_starts_where_pretraining_ended(name):
    for warm_start in ("rotated", "prefix"):
        bench = workbench(backbone=name, warm_start=warm_start)
        assert bench.fine_tune(plan_of(bench, 16), epochs=0).quality == pytest.approx(
            bench.full().quality, abs=0.01
        )


def test_rotation_loses_less(bench):
    plain = workbench(warm_start="prefix")
    plain.__dict__["_full"] = bench.full()
    plan = plan_of(bench, 4)
    cut = [b.fine_tune(plan, epochs=0).quality for b in (bench, plain)]
    assert cut[0] > cut[1]


def test_prefix_starts_are_the_first_entries(bench):
    plain = workbench(warm_start="prefix")
    plain.__dict__["_full"] = bench.full()
    sizes = by_count(bench)
    model = plain.fine_tuned(plan_of(bench, sizes), epochs=0)
    for name, table in bench.full().full_tables().items():
        used = torch.arange(16) < torch.from_numpy(sizes[name])[:, None]
        assert torch.equal(model.embedding.full_tables(16)[name], table * used)


def test_probes_repeat_and_leave_the_full_model_alone(bench):
    plan = plan_of(bench, by_count(bench))
    before = bench.full().full_tables()
    first = bench.fine_tune(plan).quality
    assert bench.fine_tune(plan).quality == first
    after = bench.full().full_tables()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert first > bench.fine_tune(plan_of(bench, 1)).quality


def test_a_probe_takes_its_share_of_the_full_models_epochs(bench):
    full = bench.full().outcome.epochs
    assert bench.probe_epochs() == PROBE.max_epochs
    longer = workbench(probe_share=0.8)
    assert longer.probe_epochs() == math.ceil(0.8 * full) > PROBE.max_epochs
    plan = plan_of(longer, 4)
    assert longer.fine_tuned(plan).outcome.epochs == longer.probe_epochs()
    with pytest.raises(InvalidInputError, match="probe_share should be from 0 to 1, got 2"):
        workbench(probe_share=2)


def test_a_probe_foresees_half_of_what_its_second_half_gained(bench):
    plan = plan_of(bench, 4)
    foreseeing = workbench(foresight=0.5)
    (half_step, half), (end_step, end) = foreseeing.fine_tuned(plan).outcome.history
    assert half_step == math.ceil(end_step / 2)
    expected = max(half, end) + 0.5 * max(end - half, 0.0)
    assert foreseeing.fine_tune(plan).quality == pytest.approx(expected)
    assert foreseeing.fine_tune(plan, epochs=0).quality == bench.fine_tune(plan, epochs=0).quality
    assert foreseeing.identity() != bench.identity()


def test_a_hopeless_probe_stops(bench):
    checked = workbench(check=ProbeCheck(after=0.34, margin=0.9))
    checked.__dict__["_full"] = bench.full()
    poor, good = plan_of(bench, 1), plan_of(bench, 16)
    floor = bench.full().quality
    assert checked.fine_tune(poor, floor=floor).state == "pruned"
    assert checked.fine_tune(poor).state == "ok"
    found = checked.fine_tune(good, floor=0.5 * floor)
    assert (found.state, found.quality) == ("ok", bench.fine_tune(good).quality)


def test_results_are_kept_and_reused(tmp_path: Path):
    first = workbench(run_dir=tmp_path)
    plan = plan_of(first, by_count(first))
    expected = qualities(first, plan)
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    assert len(times) == 4
    second = workbench(run_dir=tmp_path)
    assert qualities(second, plan) == expected
    assert times == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    metrics = [b.train_model(plan).evaluate(part="test") for b in (first, second)]
    assert np.array_equal(metrics[0].recall[20], metrics[1].recall[20])
    assert not list(tmp_path.rglob("*.checkpoint"))
    # Other settings are another model.
    workbench(run_dir=tmp_path, l2=1e-2).full()
    assert len(list(tmp_path.rglob("*.safetensors"))) == 5


def qualities(bench: TrainingWorkbench, plan: SizePlan) -> tuple[float, ...]:
    trained = [bench.train(plan), bench.train(plan, seed=1), bench.train(plan, start="full")]
    return bench.full().quality, *(outcome.quality for outcome in trained)


def test_a_start_from_the_full_rows_is_no_start_from_scratch(bench):
    plan = plan_of(bench, 8)
    bare = bench.fine_tune(plan, epochs=0).quality
    warm, scratch = (bench.train(plan, start=start) for start in ("full", "scratch"))
    assert warm.history[0] != scratch.history[0]
    assert warm.quality > bare
    with pytest.raises(InvalidInputError, match="start"):
        bench.train(plan, start="warm")


def test_a_full_model_that_diverges_is_an_error():
    with pytest.raises(DivergedError, match="lower lr"):
        workbench(training=dataclasses.replace(SETTINGS, lr=1e30, lr_min=1e30)).full()


def test_full_tables_are_freed_with_their_workbench():
    """Not when the collector comes by: they may be most of the memory."""
    bench = workbench()
    tables = weakref.ref(bench.full().embedding)
    gc.disable()
    try:
        del bench
        assert tables() is None
    finally:
        gc.enable()


def test_permuting_the_test_items_changes_nothing(tmp_path: Path):
    """What is chosen and trained may not depend on the test set."""
    rng = np.random.default_rng(0)
    order = rng.permutation(SPLIT.test.num_items).astype(np.int32)
    other_test = dataclasses.replace(SPLIT.test, items=order[SPLIT.test.items])
    found = []
    for split in (SPLIT, dataclasses.replace(SPLIT, test=other_test)):
        bench = workbench(split=split)
        sizer = BET(iterations=4, candidates=6, finalists=1)
        planner = BudgetPlanner(budget=Budget.sparsity(0.8), widths="any", sizer=sizer)
        plan = planner.plan(bench.tables, bench.counts(), workbench=bench, progress=False)
        tables = bench.train_model(plan).full_tables()
        found.append((plan, tables, bench.train_model(plan).evaluate().mean()))
    (one, rows, tested), (other, other_rows, other_tested) = found
    assert one == other
    assert all(torch.equal(rows[name], other_rows[name]) for name in rows)
    assert tested != other_tested


def test_a_broken_file_is_named(tmp_path: Path):
    workbench(run_dir=tmp_path).full()
    (path,) = tmp_path.rglob("*.safetensors")
    path.write_bytes(b"no weights")
    with pytest.raises(CheckpointError, match=path.name):
        workbench(run_dir=tmp_path).full()


def test_training_a_plan_uses_its_sizes_only(bench):
    sizes = by_count(bench)
    model = bench.train_model(plan_of(bench, sizes))
    assert model.embedding.num_weights() == sum(int(s.sum()) for s in sizes.values())
    assert model.quality == pytest.approx(model.evaluate(part="validation").quality())


def test_quantised_plans_are_evaluated_as_stored(bench):
    scores = {}
    for precision in ("fp32", "int8", "int2"):
        plan = plan_of(bench, 8, precision)
        scores[precision] = bench.fine_tune(plan, epochs=0).quality
        model = bench.fine_tuned(plan, epochs=0)
        assert (model.precisions is None) == (precision == "fp32")
        assert model.evaluate(part="validation").quality() == scores[precision]
    assert scores["int8"] == pytest.approx(scores["fp32"], rel=0.05)
    assert scores["int2"] != scores["fp32"]


def test_rounding_epochs_are_off_unless_asked_for_and_never_worse(tmp_path: Path):
    plain = workbench(run_dir=tmp_path)
    plan = plan_of(plain, 8, "int2")
    before = plain.train_model(plan)
    assert plain.rounding is None
    assert "rounding" not in plain.identity()
    settings = rounding_epochs(SETTINGS, plain.task.steps_per_epoch)
    rounding = workbench(run_dir=tmp_path, rounding=settings)
    assert rounding.identity()["rounding"]["lr_decay"] == 0.5
    after = rounding.train_model(plan)
    assert after.quality > before.quality
    # What is kept is what is served: the rows as int2 leaves them.
    assert after.quality == pytest.approx(after.evaluate(part="validation").quality())
    again = workbench(run_dir=tmp_path, rounding=settings).train_model(plan)
    assert all(
        torch.equal(again.full_tables()[name], table) for name, table in after.full_tables().items()
    )
    # Where it does not help, nothing changes.
    hopeless = dataclasses.replace(settings, lr=1e3, max_epochs=1)
    kept = {name: table.clone() for name, table in before.full_tables().items()}
    assert plain.rounded(before, hopeless) is before
    assert all(torch.equal(before.full_tables()[name], table) for name, table in kept.items())


def test_precisions_follow_ids(bench):
    from bet_torchrec.planning import Bucket, TablePlan
    from bet_torchrec.training.trained import precisions_of

    order = np.array([2, 0, 1], dtype=np.int32)
    table = TablePlan("user", 3, 8, (Bucket(8, 1, "int4"), Bucket(2, 2, "int8")), order=order)
    budget = Budget.bytes(10**4, purpose="inference", dtype=("int8", "int4"))
    plan = SizePlan((table,), budget, "test")
    assert precisions_of(plan)["user"].tolist() == ["int8", "int8", "int4"]


def test_all_rows_dropped(bench):
    sizes = {t.name: np.zeros(t.num_embeddings, int) for t in bench.tables}
    plan = plan_of(bench, sizes)
    assert np.isfinite(bench.fine_tune(plan).quality)
    assert np.isfinite(bench.train(plan).quality)


def test_errors():
    with pytest.raises(InvalidInputError, match="warm_start"):
        workbench(warm_start="hot")
    with pytest.raises(InvalidInputError, match="embedding_dim"):
        RankingTask(SPLIT, embedding_dim=0)
    with pytest.raises(InvalidInputError, match="margin"):
        ProbeCheck(margin=0.0)


def test_trained_on_is_never_worse_than_what_came():
    bench = workbench()
    full = bench.full()
    assert bench.at_rate(0.5).rounding is None
    settings = rounding_epochs(SETTINGS, bench.task.steps_per_epoch)
    for lr in (settings.lr, 1e3):
        bench = workbench(rounding=dataclasses.replace(settings, lr=lr, max_epochs=2))
        assert bench.at_rate(0.5).rounding.lr == 0.5
        embedding = copy.deepcopy(full.embedding)
        found = bench.trained_on(embedding, full)
        assert found.outcome.ok
        assert found.quality >= full.quality
        assert found.quality == pytest.approx(found.evaluate(part="validation").quality())
        if lr == 1e3:
            assert found.model is full.model
            for name, table in full.full_tables().items():
                assert torch.equal(embedding.full_tables()[name], table)
