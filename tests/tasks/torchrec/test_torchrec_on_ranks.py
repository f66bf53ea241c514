"""A user's DLRM on real gloo ranks, against one process."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.distributed as dist
from click_batches import DIM, ROWS, batches, model, tables
from gloo_ranks import on_ranks
from torchrec import KeyedJaggedTensor
from torchrec.datasets.utils import Batch

from bet_torchrec import BET, Budget, BudgetPlanner, EqualSizes
from bet_torchrec.planning.sizers.bet import FullBatch
from bet_torchrec.tasks.torchrec import TorchRecTask
from bet_torchrec.training import TrainingWorkbench, TrainSettings

pytestmark = pytest.mark.distributed

TRAIN, VALIDATION = batches(640), batches(320, seed=1)
SETTINGS = TrainSettings(lr=0.01, max_epochs=2, validate_every=5, init_std=0.05)


def part(batch: Batch, rank: int, size: int) -> Batch:
    """Every size-th example of a batch."""
    mine = torch.arange(rank, len(batch.labels), size)
    jagged = batch.sparse_features.to_dict()
    dense = {name: j.to_dense() for name, j in jagged.items()}
    bags = {name: [rows[i] for i in mine.tolist()] for name, rows in dense.items()}
    features = KeyedJaggedTensor(
        keys=list(bags),
        values=torch.cat([torch.cat(rows) for rows in bags.values()]),
        lengths=torch.tensor([len(row) for rows in bags.values() for row in rows]),
    )
    return Batch(batch.dense_features[mine], features, batch.labels[mine])


def bench_of(pg=None) -> TrainingWorkbench:
    rank, size = (dist.get_rank(pg), dist.get_world_size(pg)) if pg else (0, 1)
    task = TorchRecTask(
        tables(),
        model=model,
        train=[part(batch, rank, size) for batch in TRAIN],
        validation=[part(batch, rank, size) for batch in VALIDATION],
        process_group=pg,
    )
    fine_tuning = dataclasses.replace(SETTINGS, max_epochs=1)
    return TrainingWorkbench(task, training=SETTINGS, fine_tuning=fine_tuning)


def results(pg=None):
    bench = bench_of(pg)
    weights = sum(ROWS.values()) * DIM
    sizer = BET(iterations=5, candidates=6, finalists=1, trainer=FullBatch(steps=2))
    planner = BudgetPlanner(
        budget=Budget.parameters(weights // 3), widths=(0, 1, 2, 4, 8), sizer=sizer
    )
    given = (bench.tables, bench.counts())
    if pg is None:
        plan = planner.plan(*given, workbench=bench, progress=False)
    else:
        plan = planner.collective_plan(*given, None, pg, workbench=bench, progress=False)
    half = dataclasses.replace(
        planner, budget=Budget.parameters(weights // 2), widths=(0, 4, 8), sizer=EqualSizes()
    ).plan(*given)
    options = {} if pg is None else {"sharding_types": ["row_wise", "table_wise"]}
    trained = bench.fit(bench.task.sharded(half, draw=3, **options), seed=2)
    return {
        "counts": {name: counts.fingerprint() for name, counts in bench.counts().items()},
        "full": bench.full().quality,
        "plan": plan.fingerprint(),
        "sharded": trained.quality,
        "history": trained.outcome.history,
        "tables": trained.full_tables(),
        "deployed": deployed(bench, trained, half),
    }


def deployed(bench, trained, plan) -> torch.Tensor:
    """What the user's model says of a batch that all ranks share."""
    module = bench.task.deploy(trained, plan)
    with torch.no_grad():
        return module(VALIDATION[0].dense_features, VALIDATION[0].sparse_features)


def test_ranks_plan_train_and_deploy_as_one_process():
    alone, found = results(), on_ranks(results, 2)
    for rank in found:
        assert (rank["counts"], rank["plan"]) == (alone["counts"], alone["plan"])
        assert rank["full"] == pytest.approx(alone["full"], abs=1e-5)
        assert rank["sharded"] == pytest.approx(alone["sharded"], abs=1e-5)
        torch.testing.assert_close(rank["tables"], alone["tables"], rtol=0, atol=1e-4)
        torch.testing.assert_close(rank["deployed"], alone["deployed"], rtol=0, atol=1e-3)
    assert found[0]["history"] == found[1]["history"]
