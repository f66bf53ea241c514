"""Small tables, a plan and batches that sharding tests share, and real processes to run them in."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from gloo_ranks import free_port, gloo_context, join_group
from torchrec import EmbeddingBagConfig, KeyedJaggedTensor, PoolingType

from bet_torchrec import Budget, RowCounts, SizePlan
from bet_torchrec.embeddings import BudgetedEmbeddingBagCollection

BATCH = 12  # examples of a global batch: divides by 1, 2 and 3 ranks
FEATURES = {"f1": "a", "f2": "a", "f3": "b"}


def table_configs() -> list[EmbeddingBagConfig]:
    """Two tables of unlike width and pooling, one of them with two features."""
    return [
        EmbeddingBagConfig(
            name="a", num_embeddings=30, embedding_dim=16, feature_names=["f1", "f2"]
        ),
        EmbeddingBagConfig(
            name="b",
            num_embeddings=17,
            embedding_dim=8,
            feature_names=["f3"],
            pooling=PoolingType.MEAN,
        ),
    ]


def make_plan(seed: int = 0) -> SizePlan:
    """Widths that fused tables take; every table has dropped rows, "b" ids that are no ranks."""
    rng = np.random.default_rng(seed)
    a = np.sort(rng.choice([0, 4, 8, 16], 30))[::-1].copy()
    sizes = {"a": a, "b": rng.choice([0, 4, 8], 17)}
    counts = {t.name: RowCounts.from_rows(np.arange(t.num_embeddings)[::-1].copy()) for t in TABLES}
    return SizePlan.from_sizes(
        TABLES, sizes, counts, budget=Budget.parameters(30 * 16 + 17 * 8), sizer="test"
    )


TABLES = table_configs()


def full_tables(seed: int = 1) -> dict[str, torch.Tensor]:
    """Starting values, rows x embedding_dim."""
    generator = torch.Generator().manual_seed(seed)
    return {
        t.name: torch.randn(t.num_embeddings, t.embedding_dim, generator=generator) for t in TABLES
    }


def masks(plan: SizePlan) -> dict[str, torch.Tensor]:
    """1 where a row keeps an entry."""
    return {
        t.name: (
            torch.arange(t.embedding_dim)[None] < torch.from_numpy(plan.sizes(t.name))[:, None]
        ).float()
        for t in TABLES
    }


def batch(step: int, rank: int = 0, world: int = 1) -> tuple[KeyedJaggedTensor, torch.Tensor]:
    """A rank's part of a step's global batch: multi-hot bags, some empty, and targets (B, 40)."""
    rng = np.random.default_rng(100 + step)
    rows = {t.name: t.num_embeddings for t in TABLES}
    lengths = {f: rng.integers(0, 4, BATCH) for f in FEATURES}
    ids = {f: [rng.integers(0, rows[FEATURES[f]], n) for n in lengths[f]] for f in FEATURES}
    target = torch.from_numpy(rng.standard_normal((BATCH, 40))).float()
    own = slice(rank * BATCH // world, (rank + 1) * BATCH // world)
    values = np.concatenate([np.concatenate([[], *ids[f][own]]) for f in FEATURES]).astype(np.int64)
    kjt = KeyedJaggedTensor(
        keys=list(FEATURES),
        values=torch.from_numpy(values),
        lengths=torch.from_numpy(np.concatenate([lengths[f][own] for f in FEATURES])),
    )
    return kjt, target[own]


def all_rows(module: Callable[[KeyedJaggedTensor], Any]) -> dict[str, torch.Tensor]:
    """What a module holds, read by lookups of every id: {table: (rows, embedding_dim)}."""
    rows = max(t.num_embeddings for t in TABLES)
    ids = torch.arange(rows)
    inside = [ids[: TABLES[0].num_embeddings], ids[:0], ids[: TABLES[1].num_embeddings]]
    lengths = [(ids < n).long() for n in (len(inside[0]), 0, len(inside[2]))]
    kjt = KeyedJaggedTensor(
        keys=list(FEATURES), values=torch.cat(inside), lengths=torch.cat(lengths)
    )
    with torch.no_grad():
        out = module(kjt).to_dict()
    return {
        t.name: out[f][: t.num_embeddings].clone()
        for t, f in zip(TABLES, ("f1", "f3"), strict=True)
    }


def reference(optimizer: str, steps: int, lr: float) -> dict[str, torch.Tensor]:
    """{table: rows} after training full tables times their mask, in one process."""
    plan = make_plan()
    mask, start = masks(plan), full_tables()
    tables = {name: torch.nn.Parameter(start[name] * mask[name]) for name in start}
    square_sums = {name: torch.zeros(len(t)) for name, t in tables.items()}
    made = {
        "sgd": lambda p: torch.optim.SGD(p, lr=lr),
        "adagrad": lambda p: torch.optim.Adagrad(p, lr=lr, eps=1e-8),
        "adam": lambda p: torch.optim.Adam(p, lr=lr),
        "rowwise_adagrad": lambda p: None,
    }[optimizer](list(tables.values()))
    widths = {name: torch.from_numpy(plan.sizes(name)).float() for name in tables}
    for step in range(steps):
        kjt, target = batch(step)
        bags = kjt.to_dict()
        outputs = []
        for table in TABLES:
            for feature in table.feature_names:
                rows = (tables[table.name] * mask[table.name])[bags[feature].values()]
                example = torch.repeat_interleave(
                    torch.arange(len(target)), bags[feature].lengths()
                )
                pooled = torch.zeros(len(target), table.embedding_dim).index_add(0, example, rows)
                if table.pooling.value == "MEAN":
                    pooled = pooled / bags[feature].lengths().clamp_min(1)[:, None]
                outputs.append(pooled)
        loss = (torch.cat(outputs, 1) - target).square().sum(1).mean()
        loss.backward()
        if made is None:  # row-wise Adagrad by its definition: the row's mean of squares
            with torch.no_grad():
                for name, table in tables.items():
                    mean = table.grad.square().sum(1) / widths[name].clamp_min(1)
                    square_sums[name] += mean
                    step_size = lr / (square_sums[name].sqrt() + 1e-8)
                    table -= table.grad * step_size[:, None]
                    table.grad = None
        else:
            made.step()
            made.zero_grad()
    return {name: (t * mask[name]).detach() for name, t in tables.items()}


def make_module(plan: SizePlan, **options: Any) -> BudgetedEmbeddingBagCollection:
    """The collection under test."""
    return BudgetedEmbeddingBagCollection(TABLES, plan, **options)


def run_ranks(world: int, scene: Callable[..., Any], *args: Any) -> list[Any]:
    """``scene(rank, world, *args)`` in real gloo processes; what each rank returned."""
    port = free_port()
    context = gloo_context()
    results = context.SimpleQueue()
    processes = [
        context.Process(target=_rank, args=(rank, world, port, scene, args, results))
        for rank in range(world)
    ]
    for process in processes:
        process.start()
    found = dict(results.get() for _ in processes)
    for process in processes:
        process.join()
    failed = [value for value in found.values() if isinstance(value, _Failure)]
    assert not failed, failed[0].text
    return [found[rank] for rank in range(world)]


class _Failure:
    def __init__(self, text: str) -> None:
        self.text = text


def _rank(rank: int, world: int, port: int, scene: Any, args: Any, results: Any) -> None:
    join_group(rank, world, port)
    try:
        value = scene(rank, world, *args)
    except BaseException:
        value = _Failure(f"rank {rank}:\n{traceback.format_exc()}")
    results.put((rank, value))
    if not isinstance(value, _Failure):
        dist.barrier()
        dist.destroy_process_group()
