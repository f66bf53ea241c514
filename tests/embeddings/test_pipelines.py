"""Sharded models in TorchRec's training pipelines, in real gloo processes."""

from __future__ import annotations

from typing import Any

import dlrm_budgeted
import dlrm_plain
import numpy as np
import pytest
import torch
from model_cases import (
    TABLES,
    batch,
    counts,
    full_tables,
    make_model,
    make_plan,
    masked_collection,
)
from sharded_cases import run_ranks

WORLD, STEPS, LR = 2, 8, 0.05
EPS = 0.01  # a small one makes Adagrad's first step the sign of the gradient, rounding and all
CASES = [("dlrm", "bucketed"), ("deepfm", "prefix")]


def reference(kind: str) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Losses and tables of masked full tables, one process, no sharding."""
    collection = masked_collection(make_plan("adagrad", WORLD))
    model = make_model(kind, collection)
    optimizer = torch.optim.Adagrad(model.parameters(), lr=LR, eps=EPS)
    losses = []
    for step in range(STEPS):
        loss, _ = model(batch(step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, {n: bag.weight.detach() for n, bag in collection.embedding_bags.items()}


def every_case(rank: int, world: int) -> list[dict[str, Any]]:
    """Every case, by hand and in both pipelines."""
    return [
        _train(rank, world, kind, layout, how)
        for kind, layout in CASES
        for how in ("by hand", "TrainPipelineBase", "TrainPipelineSparseDist")
    ]


def _train(rank: int, world: int, kind: str, layout: str, how: str) -> dict[str, Any]:
    from fbgemm_gpu.split_embedding_configs import EmbOptimType
    from torchrec.distributed import DistributedModelParallel, train_pipeline
    from torchrec.distributed.model_parallel import get_default_sharders
    from torchrec.distributed.planner import EmbeddingShardingPlanner, Topology
    from torchrec.optim.optimizers import in_backward_optimizer_filter

    from bet_torchrec.embeddings import (
        BudgetedEmbeddingBagCollection,
        BudgetedEmbeddingBagCollectionSharder,
        sharding_constraints,
    )

    device = torch.device("cpu")
    plan = make_plan("adagrad", WORLD)  # whose state is as large in both layouts
    own = BudgetedEmbeddingBagCollection(TABLES, plan, layout=layout, device="meta")
    model = make_model(kind, own)
    start = {n: w.clone() for n, w in model.named_parameters() if not w.is_meta}
    fused = {"optimizer": EmbOptimType.EXACT_ADAGRAD, "learning_rate": LR, "eps": EPS}
    sharders = [*get_default_sharders(), BudgetedEmbeddingBagCollectionSharder(fused_params=fused)]
    planner = EmbeddingShardingPlanner(
        topology=Topology(world_size=world, compute_device="cpu"),
        constraints=sharding_constraints(own, counts(), world_size=world),
    )
    plan = planner.collective_plan(model, sharders, torch.distributed.group.WORLD)
    sharded = DistributedModelParallel(model, device=device, plan=plan, sharders=sharders)
    collection = sharded.module.model.sparse_arch.embedding_bag_collection
    collection.load_full_tables(full_tables())
    dense = dict(in_backward_optimizer_filter(sharded.named_parameters()))
    with torch.no_grad():  # DistributedModelParallel draws a CPU model's weights anew
        for name, weight in dense.items():
            weight.copy_(start[name])
    optimizer = torch.optim.Adagrad(dense.values(), lr=LR, eps=EPS)
    batches = (batch(step, rank, world) for step in range(STEPS))
    losses, pipelined = [], []
    if how == "by hand":
        for part in batches:
            loss, _ = sharded(part)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    else:
        pipeline = getattr(train_pipeline, how)(sharded, optimizer, device)
        for _ in range(STEPS):
            losses.append(pipeline.progress(batches)[0].item())
        if how == "TrainPipelineSparseDist":
            pipelined = [type(module).__name__ for module in pipeline._pipelined_modules]
    tables = {name: table.numpy() for name, table in collection.full_tables().items()}
    kernels = {how.compute_kernel for own in plan.plan.values() for how in own.values()}
    return {"losses": losses, "tables": tables, "pipelined": pipelined, "kernels": kernels}


@pytest.mark.distributed
def test_pipelines_train_what_one_process_does_and_pipeline_the_collection() -> None:
    found = run_ranks(WORLD, every_case)
    for i, (kind, _) in enumerate(CASES):
        losses, tables = reference(kind)
        for by_hand, base, sparse in (ranks[3 * i : 3 * i + 3] for ranks in found):
            assert sparse["pipelined"] == ["ShardedBudgetedEmbeddingBagCollection"]
            assert by_hand["kernels"] == {"fused"}
            for result in (by_hand, base, sparse):
                assert result["losses"] == by_hand["losses"]
                for name, table in result["tables"].items():
                    np.testing.assert_array_equal(table, by_hand["tables"][name])
                    np.testing.assert_allclose(table, tables[name].numpy(), atol=1e-5)
        by_rank = [ranks[3 * i]["losses"] for ranks in found]
        np.testing.assert_allclose(np.mean(by_rank, axis=0), losses, atol=1e-5)


def dropped_optimizers(rank: int, world: int) -> list[str]:
    from torchrec.distributed import DistributedModelParallel
    from torchrec.optim import RowWiseAdagrad
    from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward

    from bet_torchrec.embeddings import (
        BudgetedEmbeddingBagCollection,
        BudgetedEmbeddingBagCollectionSharder,
        ShardingError,
    )

    own = BudgetedEmbeddingBagCollection(TABLES, make_plan(world_size=world))
    apply_optimizer_in_backward(RowWiseAdagrad, own.parameters(), {"lr": LR})
    seen = []
    for types in (["data_parallel"], ["table_wise"]):
        sharder = BudgetedEmbeddingBagCollectionSharder(sharding_types=types)
        model = make_model("dlrm", own)
        try:
            DistributedModelParallel(model, device=torch.device("cpu"), sharders=[sharder])
            seen.append("sharded")
        except ShardingError as error:
            seen.append(str(error))
    return seen


def others(rank: int, world: int) -> tuple[list[list[float]], list[str]]:
    return [dlrm_plain.main(), dlrm_budgeted.main()], dropped_optimizers(rank, world)


@pytest.mark.distributed
def test_a_dlrm_moved_to_a_budget_trains_and_no_optimizer_is_dropped_in_silence() -> None:
    """On TorchRec's default plan; test_models counts the lines that moving it took."""
    for runs, (refused, allowed) in run_ranks(WORLD, others):
        for losses in runs:
            assert np.mean(losses[-4:]) < 0.95 * np.mean(losses[:4])
        assert "would never train" in refused
        assert allowed == "sharded"
