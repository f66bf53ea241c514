"""Tables with rows of odd sizes, a plan in any precision, and what their rows should read as."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torchrec import EmbeddingBagConfig, KeyedJaggedTensor, PoolingType

from bet_torchrec import Budget, RowCounts, SizePlan
from bet_torchrec.embeddings import BudgetedEmbeddingBagCollection
from bet_torchrec.evaluation import fake_quantise_sized

PRECISIONS = ("fp32", "fp16", "int8", "int4", "int2")
FEATURES = {"f1": "a", "f2": "a", "f3": "b"}


def table_configs() -> list[EmbeddingBagConfig]:
    """A ranked table with two features, and one whose ids are no ranks, of unlike widths."""
    return [
        EmbeddingBagConfig(
            name="a", num_embeddings=60, embedding_dim=20, feature_names=["f1", "f2"]
        ),
        EmbeddingBagConfig(
            name="b",
            num_embeddings=33,
            embedding_dim=13,
            feature_names=["f3"],
            pooling=PoolingType.MEAN,
        ),
    ]


TABLES = table_configs()


def inference(precision: str | tuple[str, ...], alignment: int = 1) -> Budget:
    """Room for everything."""
    return Budget.bytes(10**6, purpose="inference", dtype=precision, alignment=alignment)


def make_plan(budget: Budget, precisions: dict[str, str] | None = None, seed: int = 0) -> SizePlan:
    """Sizes that no format likes, some rows dropped."""
    rng = np.random.default_rng(seed)
    sizes = {
        "a": np.sort(rng.choice([0, 1, 3, 6, 9, 20], 60))[::-1].copy(),
        "b": rng.choice([0, 2, 5, 13], 33),
    }
    counts = {t.name: RowCounts.from_rows(np.arange(t.num_embeddings)[::-1].copy()) for t in TABLES}
    return SizePlan.from_sizes(
        TABLES, sizes, counts, budget=budget, sizer="test", precisions=precisions
    )


def full_tables(seed: int = 1) -> dict[str, torch.Tensor]:
    """Trained values, rows x embedding_dim."""
    generator = torch.Generator().manual_seed(seed)
    return {
        t.name: torch.randn(t.num_embeddings, t.embedding_dim, generator=generator) for t in TABLES
    }


def trained(plan: SizePlan, **options: Any) -> BudgetedEmbeddingBagCollection:
    """A collection that holds ``full_tables``."""
    return BudgetedEmbeddingBagCollection(TABLES, plan, **options).load_full_tables(full_tables())


def expected(plan: SizePlan, precision: str | None = None) -> dict[str, torch.Tensor]:
    """What rows read as after storing: simulated, in plain torch."""
    found = {}
    for name, table in full_tables().items():
        sizes = torch.from_numpy(plan.sizes(name))
        kind = precision or plan.precisions[name][0]
        masked = table * (torch.arange(table.shape[1]) < sizes[:, None])
        found[name] = fake_quantise_sized(masked, sizes, kind)
    return found


def every_row() -> KeyedJaggedTensor:
    """Each id once, a bag of its own."""
    a, b = torch.arange(60), torch.arange(33)
    return KeyedJaggedTensor(
        keys=list(FEATURES),
        values=torch.cat([a, a.flip(0), b]),
        lengths=torch.cat([torch.ones(120), torch.arange(60) < 33]).int(),
    )


def rows_of(module: Any) -> dict[str, torch.Tensor]:
    """All rows by lookup."""
    out = module(every_row()).to_dict()
    assert torch.equal(out["f1"], out["f2"].flip(0))
    assert not out["f3"][33:].any()
    return {"a": out["f1"], "b": out["f3"][:33]}


def assert_rows(found: dict[str, Any], wanted: dict[str, torch.Tensor]) -> None:
    """Bit by bit."""
    assert set(found) == set(wanted)
    for name, rows in wanted.items():
        assert torch.equal(torch.as_tensor(found[name]), rows), name
