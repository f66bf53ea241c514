"""Ours and TorchRec's of the same tables, pooled and unpooled, to be driven by the same calls."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torchrec import (
    EmbeddingBagCollection,
    EmbeddingBagConfig,
    EmbeddingCollection,
    EmbeddingConfig,
    KeyedJaggedTensor,
)

from bet_torchrec import Budget, RowCounts, SizePlan
from bet_torchrec.embeddings import BudgetedEmbeddingBagCollection, BudgetedEmbeddingCollection

DIM, BATCH, LR = 16, 6, 0.1
FEATURES = {"f1": "a", "f2": "a", "f3": "b"}
ROWS = {"a": 30, "b": 17}
SIZES = {
    "a": np.repeat([16, 8, 4, 0], [4, 8, 12, 6]),  # ids are ranks
    "b": np.random.default_rng(0).permutation(np.repeat([8, 4], [5, 12])),
}


def plan() -> SizePlan:
    """Some rows dropped, widths that FBGEMM's fused kernels take."""
    counts = {n: RowCounts.from_rows(np.arange(rows)[::-1].copy()) for n, rows in ROWS.items()}
    budget = Budget.parameters(47 * DIM)
    return SizePlan.from_sizes(POOLED.tables(), SIZES, counts, budget=budget, sizer="conformance")


def masks() -> dict[str, Tensor]:
    """{table: (rows, DIM)}, true where a row keeps an entry."""
    return {n: torch.arange(DIM) < torch.from_numpy(s)[:, None] for n, s in SIZES.items()}


def values(seed: int = 1) -> dict[str, Tensor]:
    """Full tables, zero where a row keeps nothing."""
    generator = torch.Generator().manual_seed(seed)
    return {n: torch.randn(mask.shape, generator=generator) * mask for n, mask in masks().items()}


@dataclass(frozen=True)
class Kind:
    """Pooled or unpooled."""

    name: str

    @property
    def pooled(self) -> bool:
        return self.name == "pooled"

    def tables(self, **options: Any) -> list[Any]:
        """Two tables, one of them with two features."""
        config = EmbeddingBagConfig if self.pooled else EmbeddingConfig
        return [
            config(
                name=name,
                num_embeddings=rows,
                embedding_dim=DIM,
                feature_names=[f for f, table in FEATURES.items() if table == name],
                **options,
            )
            for name, rows in ROWS.items()
        ]

    @property
    def own(self) -> Any:
        """Our collection's class."""
        return BudgetedEmbeddingBagCollection if self.pooled else BudgetedEmbeddingCollection

    @property
    def plain(self) -> Any:
        """TorchRec's."""
        return EmbeddingBagCollection if self.pooled else EmbeddingCollection

    def ours(self, **options: Any) -> Any:
        """A budgeted collection that holds ``values``, unless it is on "meta"."""
        made = self.own(self.tables(), plan(), row_order="interleaved", **options)
        return made if options.get("device") == "meta" else made.load_full_tables(values())

    def theirs(self, **options: Any) -> Any:
        """TorchRec's with the same rows, of which training changes what ours keep, no more."""
        made: Any = self.plain(tables=self.tables(), **options)
        for name, mask in masks().items():
            weight = self._lookup(made, name).weight
            with torch.no_grad():
                weight.copy_(values()[name])
            weight.register_hook(lambda gradient, mask=mask: gradient * mask)
        return made

    def _lookup(self, made: Any, name: str) -> Any:
        return (made.embedding_bags if self.pooled else made.embeddings)[name]

    def both(self, **options: Any) -> tuple[Any, Any]:
        return self.ours(**options), self.theirs(**options)

    def table(self, made: Any) -> dict[str, Tensor]:
        """All rows of an unsharded collection, whosever it is."""
        if hasattr(made, "full_tables"):
            return dict(made.full_tables())
        return {name: self._lookup(made, name).weight.detach() for name in ROWS}

    def rows_of(self, output: Any) -> dict[str, Tensor]:
        """{name in the output: values}."""
        if self.pooled:
            return dict(output.to_dict())
        return {key: one.values() for key, one in output.items()}


POOLED, UNPOOLED = Kind("pooled"), Kind("unpooled")
KINDS = (POOLED, UNPOOLED)


def batch(
    seed: int = 0, *, dtype: torch.dtype = torch.int64, weighted: bool = False
) -> KeyedJaggedTensor:
    """Bags of 0 to 3 ids."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, 4, (len(FEATURES), BATCH))
    ids = [
        rng.integers(0, ROWS[t], n.sum()) for t, n in zip(FEATURES.values(), lengths, strict=True)
    ]
    flat = torch.from_numpy(np.concatenate(ids)).to(dtype)
    return KeyedJaggedTensor(
        keys=list(FEATURES),
        values=flat,
        lengths=torch.from_numpy(lengths.reshape(-1)).to(dtype),
        weights=torch.from_numpy(rng.random(len(flat))).float() if weighted else None,
    )


def assert_alike(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """The same names and values, to rounding."""
    assert set(found) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-5, rtol=1e-5)


def assert_same_output(kind: Kind, ours: Any, theirs: Any, *batches: KeyedJaggedTensor) -> None:
    """Of two callables on the same batches."""
    for one in batches or (batch(), batch(1)):
        assert_alike(kind.rows_of(ours(one)), kind.rows_of(theirs(one)))


def loss_of(kind: Kind, output: Any) -> Tensor:
    """Neither linear nor the same for all columns."""
    rows = torch.cat([value.reshape(-1, DIM) for value in kind.rows_of(output).values()])
    return ((rows - torch.linspace(0.1, 1, DIM)) ** 2).sum() / BATCH


def trained(kind: Kind, module: Any, optimizer: Any, steps: range = range(3)) -> Any:
    """The module after some steps; optimizer: None where the backward pass does it."""
    for seed in steps:
        if optimizer is not None:
            optimizer.zero_grad()
        loss_of(kind, module(batch(seed))).backward()
        if optimizer is not None:
            optimizer.step()
    return module


class Model(nn.Module):
    """A collection inside something, as everywhere."""

    def __init__(self, tables: nn.Module) -> None:
        super().__init__()
        self.tables = tables

    def forward(self, features: KeyedJaggedTensor) -> Any:
        return self.tables(features)


@contextmanager
def group() -> Iterator[dist.ProcessGroup]:
    """A default process group of this process alone."""
    with tempfile.NamedTemporaryFile() as file:
        store = dist.FileStore(file.name, 1)
        dist.init_process_group("gloo", store=store, rank=0, world_size=1)
        try:
            yield dist.group.WORLD
        finally:
            dist.destroy_process_group()


def sharder(kind: Kind, own: bool, fused: dict[str, Any] | None) -> Any:
    """Ours or TorchRec's."""
    from torchrec.distributed.embedding import EmbeddingCollectionSharder
    from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder

    from bet_torchrec.embeddings import (
        BudgetedEmbeddingBagCollectionSharder,
        BudgetedEmbeddingCollectionSharder,
    )

    made: dict[tuple[bool, bool], Callable[..., Any]] = {
        (True, True): BudgetedEmbeddingBagCollectionSharder,
        (True, False): EmbeddingBagCollectionSharder,
        (False, True): BudgetedEmbeddingCollectionSharder,
        (False, False): EmbeddingCollectionSharder,
    }
    return made[kind.pooled, own](fused_params=fused)


def fused() -> dict[str, Any]:
    from fbgemm_gpu.split_embedding_configs import EmbOptimType

    return {"optimizer": EmbOptimType.EXACT_SGD, "learning_rate": LR}


def sharded(
    kind: Kind,
    collection: Any,
    *,
    sharders: list[Any] | None = None,
    how: str = "table_wise",
    world: int = 1,
) -> Any:
    """Under DistributedModelParallel with a fused SGD; full of ``values`` again."""
    from torchrec.distributed import DistributedModelParallel
    from torchrec.distributed.planner import EmbeddingShardingPlanner, Topology
    from torchrec.distributed.planner.types import ParameterConstraints

    own = hasattr(collection, "blocks")
    if sharders is None:
        sharders = [sharder(kind, own, fused())]
    model = Model(collection)
    names = [b.name for o in collection.blocks.values() for b in o] if own else list(ROWS)
    plan = EmbeddingShardingPlanner(
        topology=Topology(world_size=world, compute_device="cpu"),
        constraints={name: ParameterConstraints(sharding_types=[how]) for name in names},
    ).collective_plan(model, sharders, dist.group.WORLD)
    made: Any = DistributedModelParallel(
        model, device=torch.device("cpu"), plan=plan, sharders=sharders, init_parameters=False
    )
    fill(kind, made)
    return made


def fill(kind: Kind, model: Any) -> None:
    """``values`` into a sharded model's tables."""
    tables = model.module.tables
    if hasattr(tables, "load_full_tables"):
        tables.load_full_tables(values())
        return
    for name, weight in _held(kind, model).items():
        weight.copy_(values()[name])


def kept_rows(kind: Kind, model: Any) -> dict[str, Tensor]:
    """What ours keep of a sharded model's rows, whosever it is; of one rank."""
    tables = model.module.tables
    if hasattr(tables, "full_tables"):
        return dict(tables.full_tables())
    return {name: weight * masks()[name] for name, weight in _held(kind, model).items()}


def _held(kind: Kind, model: Any) -> dict[str, Tensor]:
    where = "embedding_bags" if kind.pooled else "embeddings"
    weights = {n: model.state_dict()[f"tables.{where}.{n}.weight"] for n in ROWS}
    return {
        name: (w.local_shards()[0].tensor if hasattr(w, "local_shards") else w).detach()
        for name, w in weights.items()
    }
