"""A collection in axes of its own against TorchRec's over the full tables."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor, PoolingType

from bet_torchrec import Budget, EqualSizes, RowCounts
from bet_torchrec.axes import Basis, principal_basis
from bet_torchrec.embeddings import BudgetedEmbeddingBagCollection, quantize
from bet_torchrec.embeddings.turned import (
    TurnedEmbeddingBagCollection,
    budget_beside,
    coordinate_tables,
)
from bet_torchrec.errors import InvalidInputError
from bet_torchrec.planning.plan import SizePlan
from bet_torchrec.planning.sizers import SizingProblem
from bet_torchrec.planning.tables import table_specs

TABLES = [
    EmbeddingBagConfig(
        name="a", num_embeddings=20, embedding_dim=8, feature_names=["f1", "f2"],
        pooling=PoolingType.SUM,
    ),
    EmbeddingBagConfig(
        name="b", num_embeddings=12, embedding_dim=6, feature_names=["f3"],
        pooling=PoolingType.MEAN,
    ),
]  # fmt: skip


def full_tables() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        t.name: torch.randn(t.num_embeddings, t.embedding_dim, generator=generator) for t in TABLES
    }


def features(seed: int = 0) -> KeyedJaggedTensor:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, 4, (3, 5))
    ids = [rng.integers(0, n, own.sum()) for n, own in zip((20, 20, 12), lengths, strict=True)]
    return KeyedJaggedTensor(
        keys=["f1", "f2", "f3"],
        values=torch.from_numpy(np.concatenate(ids)),
        lengths=torch.from_numpy(lengths.ravel()),
    )


def plan_of(tables, budget: Budget) -> SizePlan:
    counts = [RowCounts.from_rows(np.arange(t.num_embeddings)[::-1].copy()) for t in tables]
    problem = SizingProblem(
        tables=table_specs(tables), counts=tuple(counts), budget=budget, widths=(1, 2, 4, 8)
    )
    return EqualSizes()(problem)


def plain(tables: dict[str, torch.Tensor]) -> EmbeddingBagCollection:
    made = EmbeddingBagCollection(tables=TABLES)
    with torch.no_grad():
        for name, table in tables.items():
            made.embedding_bags[name].weight.copy_(table)
    return made


def turned(
    budget: Budget, width: int, *, train: bool = False, layout: str = "bucketed"
) -> TurnedEmbeddingBagCollection:
    full = full_tables()
    bases = {"a": principal_basis(full["a"], width=width)}
    tables = coordinate_tables(TABLES, bases)
    plan = plan_of(tables, budget_beside(budget, bases, train=train))
    inner = BudgetedEmbeddingBagCollection(tables, plan, layout=layout)
    return TurnedEmbeddingBagCollection(inner, bases, train=train).load_full_tables(full)


@pytest.mark.parametrize("layout", ["bucketed", "prefix"])
def test_all_axes_and_sizes_give_the_full_tables(layout: str):
    module = turned(Budget.parameters(10**6), 8, layout=layout)
    out, wanted = module(features()), plain({**full_tables(), "b": module.full_tables()["b"]})
    expected = wanted(features())
    assert out.keys() == ["f1", "f2", "f3"]
    assert out.length_per_key() == [8, 8, 6]
    assert torch.allclose(out.values(), expected.values(), atol=1e-5)
    assert [c.embedding_dim for c in module.embedding_bag_configs()] == [8, 6]
    assert torch.allclose(module.full_tables()["a"], full_tables()["a"], atol=1e-5)


@pytest.mark.parametrize("train", [False, True])
def test_trains_as_the_product_of_masked_coordinates_and_axes(train: bool):
    module = turned(Budget.parameters(120), 4, train=train)
    sizes = torch.from_numpy(module.collection.plan.sizes("a")).long()
    assert 0 < int(sizes.sum()) < 80
    coordinates = module.collection.full_tables()["a"].clone().requires_grad_()
    axes = module.bases()["a"].axes.clone().requires_grad_(train)
    mask = (torch.arange(4) < sizes[:, None]).float()
    ours = torch.optim.SGD(module.parameters(), lr=0.05)
    theirs = torch.optim.SGD([coordinates, *([axes] if train else [])], lr=0.05)
    for step in range(3):
        batch = features(step)
        ours.zero_grad()
        out = module(batch).to_dict()
        (out["f1"].tanh().sum() + out["f2"].square().sum()).backward()
        ours.step()
        theirs.zero_grad()
        rows, loss = (coordinates * mask) @ axes, torch.zeros(())
        for key, of in (("f1", torch.tanh), ("f2", torch.square)):
            own = batch[key]
            bag = torch.repeat_interleave(torch.arange(5), own.lengths())
            loss = loss + of(torch.zeros(5, 8).index_add(0, bag, rows[own.values()])).sum()
        loss.backward()
        theirs.step()
    assert torch.allclose(module.full_tables()["a"], (coordinates * mask) @ axes, atol=1e-5)
    assert train is ("axes_0" in dict(module.named_parameters()))


def test_saved_with_the_model_and_quantised_with_its_axes_in_fp32():
    budget = Budget.bytes(3000, purpose="inference", dtype="int8", alignment=1)
    module = turned(budget, 4)
    other = turned(budget, 4)
    with torch.no_grad():
        for weight in other.parameters():
            weight.zero_()
    other.load_state_dict(module.state_dict())
    assert torch.equal(other(features()).values(), module(features()).values())
    model = nn.ModuleDict({"tables": module})
    served = quantize(model)["tables"]
    assert torch.equal(served.axes("a"), module.axes("a"))
    rows = served.collection.full_tables()["a"]
    assert torch.allclose(served.full_tables()["a"], rows @ module.axes("a"))
    found = served(features())
    assert torch.allclose(found.values(), module(features()).values(), atol=0.1)
    assert sum(served.collection.allocated_bytes().values()) + module.bases()["a"].nbytes <= 3000


def test_axes_are_counted():
    basis = {"a": Basis(torch.eye(4, 8))}
    assert budget_beside(Budget.parameters(100), basis).amount == 100 - 32
    training = Budget.bytes(1000, purpose="training", dtype="fp32", optimizer="adam")
    assert budget_beside(training, basis).amount == 1000 - 32 * 4
    assert budget_beside(training, basis, train=True).amount == 1000 - 32 * (4 + 8)
    half = Budget.bytes(1000, purpose="training", dtype="fp16", optimizer="rowwise_adagrad")
    assert budget_beside(half, basis, train=True).amount == 1000 - 32 * 4 - 4 * 4
    with pytest.raises(InvalidInputError, match="more than the budget's 31"):
        budget_beside(Budget.parameters(31), basis)
    with pytest.raises(InvalidInputError, match="sparsity"):
        budget_beside(Budget.sparsity(0.5), basis)


def test_what_does_not_fit_is_named():
    with pytest.raises(InvalidInputError, match="its 4 coordinates, got 8 columns"):
        TurnedEmbeddingBagCollection(plain(full_tables()), {"a": Basis(torch.eye(4, 8))})
    with pytest.raises(InvalidInputError, match="got one of 'c' too"):
        coordinate_tables(TABLES, {"c": Basis(torch.eye(2))})
    with pytest.raises(InvalidInputError, match="has embedding_bag_configs, got Linear"):
        TurnedEmbeddingBagCollection(nn.Linear(2, 2), {})
