"""Tables, a plan and bags for tests in one process, and TorchRec's own masked full tables."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor, PoolingType

from bet_torchrec import Budget, RowCounts, SizePlan
from bet_torchrec.embeddings import BudgetedEmbeddingBagCollection

LAYOUTS = [(x, y) for x in ("bucketed", "prefix") for y in ("ranked", "interleaved")]


def config(
    name: str,
    rows: int,
    dim: int,
    *features: str,
    pooling: PoolingType = PoolingType.SUM,
    **options,
) -> EmbeddingBagConfig:
    return EmbeddingBagConfig(
        name=name,
        num_embeddings=rows,
        embedding_dim=dim,
        feature_names=list(features),
        pooling=pooling,
        **options,
    )


def table_configs(mean: PoolingType = PoolingType.MEAN) -> list[EmbeddingBagConfig]:
    """All sorts: two features on a table, one feature in two tables, a table without a row."""
    return [
        config("user", 40, 12, "friend", "me"),
        config("item", 23, 8, "shared", "item", pooling=mean),
        config("gone", 6, 3, "gone"),
        config("tag", 9, 5, "shared"),
    ]


# Ids of "item" and "gone" are their ranks, those of the others are not; one has rows of all widths.
SIZES = {
    "user": np.random.default_rng(0).choice([0, 1, 4, 7, 12], 40),
    "item": np.repeat([8, 3, 2], [4, 9, 10]),
    "gone": np.zeros(6, dtype=np.int64),
    "tag": np.array([5, 0, 5, 2, 2, 0, 5, 1, 5]),
}
ROWS = {"friend": 40, "me": 40, "item": 23, "gone": 6, "shared": 9}  # ids that any table has


def plan_of(
    tables: Sequence[EmbeddingBagConfig],
    sizes: Mapping[str, np.ndarray],
    budget: Budget | None = None,
) -> SizePlan:
    """These sizes, in id order; ids are ranks where sizes fall."""
    falling = {t.name: RowCounts.from_rows(range(t.num_embeddings, 0, -1)) for t in tables}
    budget = budget or Budget.sparsity(0)
    return SizePlan.from_sizes(tables, sizes, falling, budget=budget, sizer="by hand")


def values_of(tables: Sequence[EmbeddingBagConfig], seed: int = 0) -> dict[str, Tensor]:
    """Full tables of normal values."""
    generator = torch.Generator().manual_seed(seed)
    return {
        t.name: torch.randn(t.num_embeddings, t.embedding_dim, generator=generator) for t in tables
    }


class Mask(nn.Module):
    """E -> E * mask, as published code trains rows of unlike sizes."""

    def __init__(self, sizes: np.ndarray, dim: int) -> None:
        super().__init__()
        self.register_buffer("mask", torch.arange(dim) < torch.from_numpy(sizes)[:, None])

    def forward(self, table: Tensor) -> Tensor:
        return table * self.mask


def masked(
    tables: Sequence[EmbeddingBagConfig], plan: SizePlan, values: Mapping[str, Tensor], **options
) -> EmbeddingBagCollection:
    """TorchRec's own over full tables times their mask: what ours has to equal."""
    copies = [dataclasses.replace(table) for table in tables]
    collection = EmbeddingBagCollection(tables=copies, **options)
    for table in tables:
        bag = collection.embedding_bags[table.name]
        bag.weight.data.copy_(values[table.name])
        mask = Mask(plan.sizes(table.name), table.embedding_dim)
        parametrize.register_parametrization(bag, "weight", mask)
    return collection


def full_tables(collection: EmbeddingBagCollection) -> dict[str, Tensor]:
    """The oracle's tables times their masks."""
    return {name: bag.weight.detach() for name, bag in collection.embedding_bags.items()}


def bags(
    seed: int = 0,
    batch: int = 7,
    rows: Mapping[str, int] = ROWS,
    most: int = 5,
    weighted: bool = False,
    dtype: torch.dtype = torch.int64,
) -> KeyedJaggedTensor:
    """Bags of 0 to ``most`` ids with repetitions."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, most + 1, (len(rows), batch))
    ids = [rng.integers(0, n, own.sum()) for n, own in zip(rows.values(), lengths, strict=True)]
    values = torch.from_numpy(np.concatenate(ids)).to(dtype)
    return KeyedJaggedTensor(
        keys=list(rows),
        values=values,
        lengths=torch.from_numpy(lengths.reshape(-1)).to(dtype),
        weights=torch.from_numpy(rng.standard_normal(len(values))).float() if weighted else None,
    )


TABLES = table_configs()
PLAN = plan_of(TABLES, SIZES)
VALUES = values_of(TABLES)


def ours(layout="bucketed", row_order="ranked", tables=TABLES, plan=PLAN, values=None, **options):
    made = BudgetedEmbeddingBagCollection(
        tables, plan, layout=layout, row_order=row_order, **options
    )
    return made.load_full_tables(values or {t.name: VALUES[t.name] for t in tables})


def oracle(tables=TABLES, plan=PLAN, values=VALUES, **options):
    return masked(tables, plan, values, **options)


def assert_alike(found, expected):
    assert found.keys() == expected.keys()
    assert found.length_per_key() == expected.length_per_key()
    torch.testing.assert_close(found.values(), expected.values(), atol=1e-6, rtol=1e-5)


def assert_same_tables(found, expected):
    assert set(found) == set(expected)
    for name, table in expected.items():
        torch.testing.assert_close(found[name], table, atol=1e-6, rtol=1e-5)


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.1),
    "adam": lambda p: torch.optim.Adam(p, lr=0.05),
}


def trained(model, optimizer, steps=6, **options):
    step = OPTIMIZERS[optimizer](model.parameters())
    for seed in range(steps):
        target = torch.randn(7, 48, generator=torch.Generator().manual_seed(seed))
        # Neither linear nor the same for all columns.
        loss = (model(bags(seed, **options)).values().tanh() - target).square().sum(1).mean()
        step.zero_grad()
        loss.backward()
        step.step()
    return model
