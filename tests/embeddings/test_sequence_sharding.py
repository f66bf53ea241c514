"""Sharded unpooled collections, their checkpoints and migration, in real gloo processes."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from gloo_ranks import on_ranks
from sequence_ranks import (
    DIM,
    TABLES,
    Batch,
    batch,
    difference,
    everything,
    make_plan,
    plain_model,
    sharded_model,
    train,
)

from bet_torchrec.embeddings import (
    BudgetedEmbeddingCollection,
    BudgetedEmbeddingCollectionSharder,
    ShardedBudgetedEmbeddingCollection,
    ShardingError,
    load_checkpoint,
    migrate,
    save_checkpoint,
)

STEPS = 6
CASES = [
    (how, optimizer, layout)
    for i, (how, optimizer) in enumerate(
        itertools.product(
            ("table_wise", "row_wise", "column_wise", "data_parallel"),
            ("sgd", "adagrad", "rowwise_adagrad", "adam"),
        )
    )
    for layout in [("bucketed", "prefix")[(i + i // 4) % 2]]
    # data-parallel tables take torch's optimizers; a row-wise state is one a row and column shard
    if optimizer != "rowwise_adagrad" or how in ("table_wise", "row_wise")
]


def _trained(pg: Any, cases: Any) -> Any:
    found = []
    for how, optimizer, layout in cases:
        model, optimizers = sharded_model(how, optimizer, layout, pg.size())
        assert type(model.module.tables) is ShardedBudgetedEmbeddingCollection
        train(model, optimizers, range(STEPS), pg.rank(), pg.size())
        found.append(everything(model))
    return found


@pytest.mark.distributed
def test_training_on_two_ranks_is_that_of_one_process():
    expected = {}
    for optimizer, layout in {case[1:] for case in CASES}:
        model, optimizers = plain_model(optimizer, layout)
        train(model, optimizers, range(STEPS))
        expected[optimizer, layout] = everything(model)
    for results in on_ranks(_trained, 2, CASES):
        for case, values in zip(CASES, results, strict=True):
            assert difference(values, expected[case[1:]]) < 1e-5, case


SAVED_AS = [
    ("table_wise", "sgd", "row_wise"),
    ("row_wise", "adagrad", "table_wise"),
    ("data_parallel", "adagrad", "row_wise"),
    ("table_wise", "rowwise_adagrad", "row_wise"),
    ("row_wise", "adam", "data_parallel"),
]


def _saved_and_restored(pg: Any, folder: str) -> Any:
    found = []
    for saved_as, optimizer, restored_as in SAVED_AS:
        path = Path(folder) / f"{saved_as}-{optimizer}"
        model, optimizers = sharded_model(saved_as, optimizer, "bucketed", pg.size())
        train(model, optimizers, range(3), pg.rank(), pg.size())
        save_checkpoint(model, path, optimizers, facts={"step": 3})
        train(model, optimizers, range(3, STEPS), pg.rank(), pg.size())
        other, optimizers = sharded_model(restored_as, optimizer, "bucketed", pg.size())
        facts = load_checkpoint(other, path, optimizers)
        train(other, optimizers, range(facts["step"], STEPS), pg.rank(), pg.size())
        found.append(difference(everything(model), everything(other)))
    return found


@pytest.mark.distributed
def test_checkpoints_restore_across_shardings_and_in_one_process(tmp_path: Path):
    for results in on_ranks(_saved_and_restored, 2, str(tmp_path)):
        assert max(results) < 1e-5
    for saved_as, optimizer, _ in SAVED_AS:
        model, optimizers = plain_model(optimizer, "bucketed", row_order="interleaved")
        load_checkpoint(model, tmp_path / f"{saved_as}-{optimizer}", optimizers)
        train(model, optimizers, range(3, STEPS))
        whole, optimizers = plain_model(optimizer, "bucketed")
        train(whole, optimizers, range(STEPS))
        assert difference(everything(model), everything(whole)) < 1e-5


def _migrated(pg: Any) -> Any:
    old, optimizers = sharded_model("row_wise", "adagrad", "bucketed", pg.size())
    train(old, optimizers, range(3), pg.rank(), pg.size())
    new, _ = sharded_model("table_wise", "adagrad", "prefix", pg.size(), plan=make_plan(7))
    migrate(old.module.tables, new.module.tables, rest="zeros")
    there = new.module.tables.full_tables()
    back, optimizers = sharded_model("row_wise", "adagrad", "bucketed", pg.size())
    migrate(old.module.tables, back.module.tables)
    back.module.top.load_state_dict(old.module.top.state_dict())
    return old.module.tables.full_tables(), there, back.module.tables.full_tables()


@pytest.mark.distributed
def test_sharded_collections_migrate_to_another_plan():
    for old, there, back in on_ranks(_migrated, 2):
        sizes = {table.name: make_plan(7).sizes(table.name) for table in TABLES}
        for name, table in old.items():
            kept = torch.arange(DIM) < torch.from_numpy(sizes[name])[:, None]
            assert torch.equal(there[name], table * kept)
            assert torch.equal(back[name], table)


def _refused(pg: Any) -> str:
    from torchrec.distributed import DistributedModelParallel

    module = BudgetedEmbeddingCollection(TABLES, make_plan(), device="meta")
    sharder = BudgetedEmbeddingCollectionSharder(sharding_types=["table_wise"])
    with pytest.raises(ShardingError) as caught:
        DistributedModelParallel(module, device=torch.device("cpu"), sharders=[sharder])
    return str(caught.value)


@pytest.mark.distributed
def test_a_fused_table_without_an_optimizer_is_refused():
    assert "trains with SGD at 0.01 in silence" in on_ranks(_refused, 1)[0]


def _pipelined(pg: Any) -> Any:
    from torchrec.distributed.train_pipeline import TrainPipelineSparseDist

    model, optimizers = sharded_model("row_wise", "adagrad", "bucketed", pg.size(), loss=True)
    batches = iter([Batch(*batch(step, pg.rank(), pg.size())) for step in range(STEPS)])
    pipeline = TrainPipelineSparseDist(model, *optimizers, torch.device("cpu"))
    for _ in range(STEPS):
        pipeline.progress(batches)
    assert len(pipeline._pipelined_modules) == 1
    return everything(model)


@pytest.mark.distributed
def test_a_pipeline_trains_the_same():
    model, optimizers = plain_model("adagrad", "bucketed")
    train(model, optimizers, range(STEPS))
    for found in on_ranks(_pipelined, 2):
        assert difference(found, everything(model)) < 1e-5
