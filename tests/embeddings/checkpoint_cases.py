"""Models, training steps and processes that tests of checkpoints and of migration share."""

from __future__ import annotations

import tempfile
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from gloo_ranks import free_port, gloo_context, join_group
from sharded_cases import batch, full_tables, make_module, make_plan
from torch import nn

LR = 0.05


class Model(nn.Module):
    """A collection under a dense layer and a buffer, as in any recommender."""

    def __init__(self, tables: nn.Module) -> None:
        super().__init__()
        self.tables = tables
        self.top = nn.Linear(40, 40)
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def forward(self, kjt: Any) -> torch.Tensor:
        self.seen += 1
        return self.top(self.tables(kjt).values())


def torch_optimizer(name: str, weights: Any) -> torch.optim.Optimizer:
    """One that does what FBGEMM's of that name does."""
    if name == "adagrad":
        return torch.optim.Adagrad(weights, lr=LR, eps=1e-8)
    return {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}[name](weights, lr=LR)


def sharded_tables(
    module: nn.Module, how: str, optimizer: str, world: int, *, dense: bool = False
) -> nn.Module:
    """A Model of these tables under DistributedModelParallel.

    how: a sharding type; or "mixed", every other block table-wise and data-parallel.
    """
    import torchrec
    from fbgemm_gpu.split_embedding_configs import EmbOptimType
    from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
    from torchrec.distributed.planner import EmbeddingShardingPlanner, Topology
    from torchrec.distributed.planner.types import ParameterConstraints
    from torchrec.modules.embedding_modules import EmbeddingBagCollection

    from bet_torchrec.embeddings import (
        BudgetedEmbeddingBagCollectionSharder,
        sharding_constraints,
        with_dense_kernels,
    )

    kinds = {
        "sgd": EmbOptimType.EXACT_SGD,
        "adagrad": EmbOptimType.EXACT_ADAGRAD,
        "rowwise_adagrad": EmbOptimType.EXACT_ROWWISE_ADAGRAD,
    }
    params = None if dense else {"optimizer": kinds[optimizer], "learning_rate": LR, "eps": 1e-8}
    if isinstance(module, EmbeddingBagCollection):
        sharder: Any = EmbeddingBagCollectionSharder(fused_params=params)
        constraints = {
            config.name: ParameterConstraints(sharding_types=[how], min_partition=4)
            for config in module.embedding_bag_configs()
        }
    else:
        types = ["data_parallel", "table_wise", *([] if how == "mixed" else [how])]
        sharder = BudgetedEmbeddingBagCollectionSharder(params, sharding_types=types)
        constraints = sharding_constraints(
            module,
            {table.name: [1] * table.num_embeddings for table in module.tables},
            sharding_types=types[:1] if how == "mixed" else [how],
            world_size=world,
        )
        if how == "mixed":
            for name in list(constraints)[::2]:
                constraints[name].sharding_types = ["table_wise"]
    torch.manual_seed(0)
    model, ours = Model(module), not isinstance(module, EmbeddingBagCollection)
    plan = EmbeddingShardingPlanner(
        topology=Topology(world_size=world, compute_device="cpu"), constraints=constraints
    ).collective_plan(model, [sharder], dist.group.WORLD)
    return torchrec.distributed.DistributedModelParallel(
        model,
        device=torch.device("cpu"),
        plan=with_dense_kernels(plan, model) if ours and dense else plan,
        sharders=[sharder],
        init_parameters=False,
    )


def sharded_model(
    how: str, optimizer: str, layout: str, world: int, *, plan: Any = None, tables: Any = None
) -> tuple[nn.Module, list[torch.optim.Optimizer]]:
    """Model and the torch optimizers of whatever is not fused, from the same start anywhere."""
    dense = optimizer == "adam" or how in ("data_parallel", "mixed")
    module = make_module(plan or make_plan(), layout=layout, row_order="interleaved")
    model = sharded_tables(module, how, optimizer, world, dense=dense)
    inner = model.module
    inner.tables.load_full_tables(full_tables() if tables is None else tables)
    fill_dense(inner)
    own = [torch_optimizer(optimizer, inner.tables.parameters())] if dense else []
    return model, [*own, torch_optimizer("adam", inner.top.parameters())]


def plain_model(optimizer: str, layout: str) -> tuple[nn.Module, list[torch.optim.Optimizer]]:
    """The same in one process."""
    module = make_module(make_plan(), layout=layout, row_order="interleaved")
    model = Model(module.load_full_tables(full_tables()))
    fill_dense(model)
    tables = torch_optimizer(optimizer, model.tables.parameters())
    return model, [tables, torch_optimizer("adam", model.top.parameters())]


def fill_dense(model: nn.Module) -> None:
    """The same dense weights whatever was drawn before."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for weight in model.top.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator) * 0.1)


def train(
    model: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    steps: range,
    rank: int = 0,
    world: int = 1,
) -> None:
    """Steps on a rank's part of their global batches."""
    for step in steps:
        kjt, target = batch(step, rank, world)
        (model(kjt) - target).square().sum(1).mean().backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()


def everything(model: nn.Module) -> dict[str, torch.Tensor]:
    """All that training changes but optimizer state, in full, on every rank."""
    inner = getattr(model, "module", model)
    dense = {f"top.{n}": w.detach().clone() for n, w in inner.top.named_parameters()}
    return {**inner.tables.full_tables(), **dense, "seen": inner.seen.clone()}


def difference(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """The largest anywhere."""
    assert a.keys() == b.keys()
    return max((a[name] - b[name]).abs().max().item() for name in a)


def run_ranks(
    world: int, scene: Callable[..., Any], *args: Any, killed: Sequence[int] = ()
) -> list[Any]:
    """``scene(rank, world, keep, *args)`` in real gloo processes; what each rank returned.

    killed: ranks that end by SIGKILL; the others, which then wait or fail, are ended too, and what
    a rank gave to ``keep`` before is returned.
    """
    context = gloo_context()
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        processes = [
            context.Process(target=_rank, args=(r, world, port, folder, scene, args), daemon=True)
            for r in range(world)
        ]
        for process in processes:
            process.start()
        for rank in killed:
            processes[rank].join(120)
            assert processes[rank].exitcode == -9
        for process in processes:
            if killed and process.is_alive():
                process.kill()
            process.join(120)
        if not killed:
            failed = [path.read_text() for path in sorted(Path(folder).glob("*.error"))]
            assert not failed, "\n".join(failed)
            assert [process.exitcode for process in processes] == [0] * world
        kept = [Path(folder) / str(rank) for rank in range(world)]
        return [torch.load(k, weights_only=False) if k.exists() else None for k in kept]


def _rank(rank: int, world: int, port: int, folder: str, scene: Any, args: Any) -> None:
    join_group(rank, world, port)

    def keep(value: Any) -> None:
        torch.save(value, Path(folder) / str(rank))

    try:
        value = scene(rank, world, keep, *args)
    except BaseException:
        (Path(folder) / f"{rank}.error").write_text(f"rank {rank}:\n{traceback.format_exc()}")
        raise
    if value is not None:
        keep(value)
    dist.barrier()
    dist.destroy_process_group()
