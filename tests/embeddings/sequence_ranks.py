"""Unpooled tables under DistributedModelParallel: tables, batches, models, and what to expect."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torchrec import EmbeddingConfig, KeyedJaggedTensor
from torchrec.streamable import Pipelineable

from bet_torchrec import Budget, RowCounts, SizePlan
from bet_torchrec.embeddings import BudgetedEmbeddingCollection

BATCH, DIM, LR = 12, 16, 0.05  # the global batch divides by 1, 2 and 3 ranks
FEATURES = {"f1": "a", "f2": "a", "f3": "b"}
TABLES = [
    EmbeddingConfig(name="a", num_embeddings=30, embedding_dim=DIM, feature_names=["f1", "f2"]),
    EmbeddingConfig(name="b", num_embeddings=17, embedding_dim=DIM, feature_names=["f3"]),
]
_ROWS = {table.name: table.num_embeddings for table in TABLES}


def make_plan(seed: int = 0) -> SizePlan:
    """Widths that fused tables take; every table has dropped rows, "b" ids that are no ranks."""
    rng = np.random.default_rng(seed)
    a = np.sort(rng.choice([0, 4, 8, 16], 30))[::-1].copy()
    sizes = {"a": a, "b": rng.choice([0, 4, 8], 17)}
    counts = {t.name: RowCounts.from_rows(np.arange(t.num_embeddings)[::-1].copy()) for t in TABLES}
    budget = Budget.parameters(47 * DIM)
    return SizePlan.from_sizes(TABLES, sizes, counts, budget=budget, sizer="test")


def full_tables(seed: int = 1) -> dict[str, torch.Tensor]:
    """Starting values, rows x DIM."""
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(rows, DIM, generator=generator) for name, rows in _ROWS.items()}


def batch(
    step: int, rank: int = 0, world: int = 1
) -> tuple[KeyedJaggedTensor, dict[str, torch.Tensor]]:
    """A rank's part of a step's global batch, and a target for each of its ids, by feature."""
    rng = np.random.default_rng(100 + step)
    own = slice(rank * BATCH // world, (rank + 1) * BATCH // world)
    lengths, ids, targets = [], [], {}
    for feature, table in FEATURES.items():
        counts = rng.integers(0, 5, BATCH)
        starts = np.concatenate([[0], counts.cumsum()])
        mine = slice(starts[own.start], starts[own.stop])
        ids.append(rng.integers(0, _ROWS[table], counts.sum())[mine])
        targets[feature] = torch.from_numpy(rng.standard_normal((counts.sum(), DIM))[mine]).float()
        lengths.append(counts[own])
    kjt = KeyedJaggedTensor(
        keys=list(FEATURES),
        values=torch.from_numpy(np.concatenate(ids)),
        lengths=torch.from_numpy(np.concatenate(lengths)),
    )
    return kjt, targets


class Model(nn.Module):
    """A sequence model in small: rows through a dense layer, and a buffer."""

    def __init__(self, tables: nn.Module) -> None:
        super().__init__()
        self.tables = tables
        self.top = nn.Linear(DIM, DIM)
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def forward(self, kjt: KeyedJaggedTensor) -> dict[str, torch.Tensor]:
        self.seen += 1
        rows = self.tables(kjt)
        return {key: self.top(rows[key].values()) for key in FEATURES}


@dataclass
class Batch(Pipelineable):
    """As pipelines take them."""

    kjt: KeyedJaggedTensor
    targets: dict[str, torch.Tensor]

    def to(self, device: torch.device, non_blocking: bool = False) -> Batch:
        return self

    def record_stream(self, stream: torch.Stream) -> None: ...

    def pin_memory(self) -> Batch:
        return self


class TrainModel(Model):
    """One that gives its loss, as pipelines expect."""

    def forward(self, one: Batch) -> Any:
        loss = loss_of(super().forward(one.kjt), one.targets, one.kjt.stride())
        return loss, loss.detach()


def loss_of(found: dict[str, torch.Tensor], targets: dict[str, torch.Tensor], examples: int) -> Any:
    """A sum over ids, mean over examples: what ranks have of it adds up to the whole."""
    parts = [(found[key] - targets[key]).square().sum() for key in FEATURES]
    return torch.stack(parts).sum() / examples


def fill_dense(model: Any) -> None:
    """The same dense weights whatever was drawn before."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for weight in model.top.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator) * 0.2)


class RowWiseAdagrad(torch.optim.Optimizer):
    """By its definition, of rows that are as wide as their table: the row's mean of squares."""

    def __init__(self, weights: Any) -> None:
        super().__init__(weights, {})

    @torch.no_grad()
    def step(self) -> None:
        for weight in self.param_groups[0]["params"]:
            seen = self.state[weight].setdefault("sum", torch.zeros(len(weight), 1))
            seen += weight.grad.square().mean(1, keepdim=True)
            weight -= LR * weight.grad / (seen.sqrt() + 1e-8)


def torch_optimizer(name: str, weights: Any) -> torch.optim.Optimizer:
    """One that does what FBGEMM's of that name does."""
    if name == "adagrad":
        return torch.optim.Adagrad(weights, lr=LR, eps=1e-8)
    if name == "rowwise_adagrad":
        return RowWiseAdagrad(weights)
    return {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}[name](weights, lr=LR)


def plain_model(
    optimizer: str, layout: str, **options: Any
) -> tuple[Model, list[torch.optim.Optimizer]]:
    """In one process."""
    module = BudgetedEmbeddingCollection(TABLES, make_plan(), layout=layout, **options)
    model = Model(module.load_full_tables(full_tables()))
    fill_dense(model)
    tables = torch_optimizer(optimizer, model.tables.parameters())
    return model, [tables, torch_optimizer("adam", model.top.parameters())]


def sharded_model(
    how: str,
    optimizer: str,
    layout: str,
    world: int,
    *,
    plan: SizePlan | None = None,
    loss: bool = False,
) -> tuple[Any, list[torch.optim.Optimizer]]:
    """Under DistributedModelParallel, and the torch optimizers of whatever is not fused."""
    from fbgemm_gpu.split_embedding_configs import EmbOptimType
    from torchrec.distributed import DistributedModelParallel
    from torchrec.distributed.planner import EmbeddingShardingPlanner, Topology

    from bet_torchrec.embeddings import (
        BudgetedEmbeddingCollectionSharder,
        sharding_constraints,
        with_dense_kernels,
    )

    dense = optimizer == "adam" or how == "data_parallel"
    fused = {
        "sgd": EmbOptimType.EXACT_SGD,
        "adagrad": EmbOptimType.EXACT_ADAGRAD,
        "rowwise_adagrad": EmbOptimType.EXACT_ROWWISE_ADAGRAD,
    }
    params = None if dense else {"optimizer": fused[optimizer], "learning_rate": LR, "eps": 1e-8}
    sharder = BudgetedEmbeddingCollectionSharder(params, sharding_types=[how, "table_wise"])
    module = BudgetedEmbeddingCollection(
        TABLES, plan or make_plan(), layout=layout, row_order="interleaved", device="meta"
    )
    constraints = sharding_constraints(
        module,
        {name: list(range(rows, 0, -1)) for name, rows in _ROWS.items()},
        sharding_types=[how],
        world_size=world,
    )
    model = TrainModel(module) if loss else Model(module)
    sharding = EmbeddingShardingPlanner(
        topology=Topology(world_size=world, compute_device="cpu"), constraints=constraints
    ).collective_plan(model, [sharder], dist.group.WORLD)
    parallel = DistributedModelParallel(
        model,
        device=torch.device("cpu"),
        plan=with_dense_kernels(sharding, model) if dense else sharding,
        sharders=[sharder],
    )
    inner: Any = parallel.module
    inner.tables.load_full_tables(full_tables())
    fill_dense(inner)
    own = [torch_optimizer(optimizer, inner.tables.parameters())] if dense else []
    return parallel, [*own, torch_optimizer("adam", inner.top.parameters())]


def train(model: Any, optimizers: Any, steps: range, rank: int = 0, world: int = 1) -> None:
    """Steps on a rank's part of their global batches."""
    for step in steps:
        kjt, targets = batch(step, rank, world)
        loss_of(model(kjt), targets, BATCH // world).backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()


def everything(model: Any) -> dict[str, torch.Tensor]:
    """All that training changes but optimizer state, in full, on every rank."""
    inner = getattr(model, "module", model)
    dense = {f"top.{n}": w.detach().clone() for n, w in inner.top.named_parameters()}
    return {**inner.tables.full_tables(), **dense}


def difference(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """The largest anywhere."""
    assert a.keys() == b.keys()
    return max((a[name] - b[name]).abs().max().item() for name in a)
