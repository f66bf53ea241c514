"""Sharded collections against the masked full table in plain torch, in real gloo processes."""

from __future__ import annotations

import itertools

import pytest
import torch
from sharded_cases import (
    TABLES,
    all_rows,
    batch,
    full_tables,
    make_module,
    make_plan,
    reference,
    run_ranks,
)

STEPS = 20
TYPES = ("table_wise", "row_wise", "column_wise", "data_parallel")
OPTIMIZERS = ("sgd", "adagrad", "rowwise_adagrad", "adam")
LR = 0.05


def sharded(rank: int, world: int, cases: list[tuple[str, str, str]]) -> list[dict]:
    """What each case's tables are after the same training, sharded."""
    return [_train(rank, world, *case) for case in cases]


def _train(rank: int, world: int, how: str, optimizer: str, layout: str) -> dict:
    import torchrec
    from fbgemm_gpu.split_embedding_configs import EmbOptimType
    from torchrec.distributed.planner import EmbeddingShardingPlanner, Topology

    from bet_torchrec.embeddings import (
        BudgetedEmbeddingBagCollectionSharder,
        sharding_constraints,
        with_dense_kernels,
    )

    device = torch.device("cpu")
    module = make_module(make_plan(), layout=layout, row_order="interleaved", device="meta")
    dense = optimizer == "adam" or how == "data_parallel"
    fused = {
        "sgd": EmbOptimType.EXACT_SGD,
        "adagrad": EmbOptimType.EXACT_ADAGRAD,
        "rowwise_adagrad": EmbOptimType.EXACT_ROWWISE_ADAGRAD,
        "adam": None,
    }[optimizer]
    sharder = BudgetedEmbeddingBagCollectionSharder(
        fused_params=None if dense else {"optimizer": fused, "learning_rate": LR, "eps": 1e-8},
        sharding_types=TYPES,
    )
    counts = {t.name: list(range(t.num_embeddings, 0, -1)) for t in TABLES}
    constraints = sharding_constraints(module, counts, sharding_types=[how], world_size=world)
    planner = EmbeddingShardingPlanner(
        topology=Topology(world_size=world, compute_device="cpu"), constraints=constraints
    )
    plan = planner.collective_plan(module, [sharder], torch.distributed.group.WORLD)
    if dense:
        plan = with_dense_kernels(plan, module)
    model = torchrec.distributed.DistributedModelParallel(
        module, device=device, plan=plan, sharders=[sharder]
    )
    model.module.load_full_tables(full_tables())
    torch_optimizer = None
    if dense:
        made = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD, "adagrad": torch.optim.Adagrad}
        torch_optimizer = made[optimizer](model.parameters(), lr=LR)
    for step in range(STEPS):
        kjt, target = batch(step, rank, world)
        loss = (model(kjt).values() - target).square().sum(1).mean()
        loss.backward()
        if torch_optimizer is not None:
            torch_optimizer.step()
            torch_optimizer.zero_grad()
    return {name: table.numpy() for name, table in all_rows(model).items()}


CASES = [
    (how, optimizer, layout)
    for how, optimizer, layout in itertools.product(TYPES, OPTIMIZERS, ("bucketed", "prefix"))
    # data-parallel tables take torch's optimizers; a row-wise state is one a row, block and
    # column shard
    if optimizer != "rowwise_adagrad"
    or (how in ("table_wise", "row_wise") and layout == "bucketed")
]


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("world", "cases"),
    [(2, CASES), (3, CASES[::4]), pytest.param(3, CASES, marks=pytest.mark.slow)],
    ids=["2", "3-some", "3"],
)
def test_sharded_training_is_the_masked_full_table_s(world: int, cases: list) -> None:
    expected = {optimizer: reference(optimizer, STEPS, LR) for optimizer in OPTIMIZERS}
    for rank, results in enumerate(run_ranks(world, sharded, cases)):
        for case, tables in zip(cases, results, strict=True):
            tolerance = 1e-6 if case[1] == "sgd" else 1e-5
            for name, table in tables.items():
                error = (torch.from_numpy(table) - expected[case[1]][name]).abs().max().item()
                assert error <= tolerance, (rank, case, name, error)


def _unsharded_module_is_alive(rank: int, world: int) -> bool:
    import gc
    import weakref

    from fbgemm_gpu.split_embedding_configs import EmbOptimType
    from torchrec.distributed import DistributedModelParallel

    from bet_torchrec.embeddings import BudgetedEmbeddingBagCollectionSharder

    module = make_module(make_plan(), device="meta")
    alive = weakref.ref(module)
    sharder = BudgetedEmbeddingBagCollectionSharder(
        {"optimizer": EmbOptimType.EXACT_SGD, "learning_rate": LR}, sharding_types=["table_wise"]
    )
    model = DistributedModelParallel(module, device=torch.device("cpu"), sharders=[sharder])
    del module
    gc.collect()
    model(batch(0)[0])
    return alive() is not None


@pytest.mark.distributed
def test_the_unsharded_module_is_let_go() -> None:
    assert run_ranks(1, _unsharded_module_is_alive) == [False]
