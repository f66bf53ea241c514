"""Unpooled tables, a plan and batches, and TorchRec's own masked full tables."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from masked_cases import Mask, plan_of, values_of
from torch.nn.utils import parametrize
from torchrec import EmbeddingCollection, EmbeddingConfig, JaggedTensor, KeyedJaggedTensor

from bet_torchrec.embeddings import BudgetedEmbeddingCollection

DIM = 12


def config(name: str, rows: int, *features: str, **options) -> EmbeddingConfig:
    return EmbeddingConfig(
        name=name,
        num_embeddings=rows,
        embedding_dim=DIM,
        feature_names=list(features),
        **options,
    )


# Two features on a table, one feature in two tables, a table without a row.
TABLES = [
    config("user", 40, "friend", "me"),
    config("item", 23, "shared", "item"),
    config("gone", 6, "gone"),
    config("tag", 9, "shared"),
]
SIZES = {
    "user": np.random.default_rng(0).choice([0, 4, 8, 12], 40),
    "item": np.repeat([8, 3, 2], [4, 9, 10]),
    "gone": np.zeros(6, dtype=np.int64),
    "tag": np.array([12, 0, 12, 4, 4, 0, 12, 1, 12]),
}
ROWS = {"friend": 40, "me": 40, "item": 23, "gone": 6, "shared": 9}
PLAN = plan_of(TABLES, SIZES)
VALUES = values_of(TABLES)


def ours(layout="bucketed", row_order="ranked", tables=TABLES, plan=PLAN, values=None, **options):
    made = BudgetedEmbeddingCollection(tables, plan, layout=layout, row_order=row_order, **options)
    return made.load_full_tables(values or {t.name: VALUES[t.name] for t in tables})


def oracle(tables=TABLES, plan=PLAN, values=VALUES, **options):
    """TorchRec's own over full tables times their mask: what ours has to equal."""
    made = EmbeddingCollection([dataclasses.replace(table) for table in tables], **options)
    for table in tables:
        lookup = made.embeddings[table.name]
        lookup.weight.data.copy_(values[table.name])
        parametrize.register_parametrization(lookup, "weight", Mask(plan.sizes(table.name), DIM))
    return made


def masked_tables(made: EmbeddingCollection) -> dict[str, torch.Tensor]:
    """The oracle's tables times their masks."""
    return {name: lookup.weight.detach() for name, lookup in made.embeddings.items()}


def assert_alike(found: dict[str, JaggedTensor], expected: dict[str, JaggedTensor]) -> None:
    assert list(found) == list(expected)
    for key, own in expected.items():
        torch.testing.assert_close(found[key].values(), own.values())
        assert torch.equal(found[key].lengths(), own.lengths())
        assert torch.equal(found[key].offsets(), own.offsets())
        ids = found[key].weights_or_none(), own.weights_or_none()
        assert ids[0] is ids[1] is None or torch.equal(*ids)


def together(found: dict[str, JaggedTensor]) -> torch.Tensor:
    """All rows of an output, (ids, DIM)."""
    return torch.cat([one.values() for one in found.values()])


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.1),
    "adam": lambda p: torch.optim.Adam(p, lr=0.05),
}


def loss_of(found: dict[str, JaggedTensor], seed: int) -> torch.Tensor:
    """Neither linear nor the same for all columns, rows or features."""
    rows = together(found)
    target = torch.randn(rows.shape, generator=torch.Generator().manual_seed(seed))
    return (rows.tanh() - target).square().sum(1).mean()


def varying(seed: int = 0) -> KeyedJaggedTensor:
    """A batch whose size differs between features."""
    rng = np.random.default_rng(seed)
    strides = [int(n) for n in rng.integers(1, 6, len(ROWS))]
    lengths = [rng.integers(0, 4, stride) for stride in strides]
    ids = [rng.integers(0, n, own.sum()) for n, own in zip(ROWS.values(), lengths, strict=True)]
    return KeyedJaggedTensor(
        keys=list(ROWS),
        values=torch.from_numpy(np.concatenate(ids)),
        lengths=torch.from_numpy(np.concatenate(lengths)),
        stride_per_key_per_rank=[[stride] for stride in strides],
    )
