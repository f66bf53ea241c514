"""Quantised collections: rows bit by bit as simulated, bytes as the plan counted them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from serving_cases import (
    FEATURES,
    PRECISIONS,
    TABLES,
    assert_rows,
    every_row,
    expected,
    full_tables,
    inference,
    make_plan,
    rows_of,
    trained,
)
from torch import nn
from torchrec import KeyedJaggedTensor

from bet_torchrec import Budget, MemoryModel, RowCounts, SizePlan
from bet_torchrec.embeddings import (
    BudgetedEmbeddingBagCollection,
    IdRangeError,
    QuantizedBudgetedEmbeddingBagCollection,
    ShardedBudgetedEmbeddingBagCollection,
    quantize,
)
from bet_torchrec.errors import InvalidInputError, PlanError
from bet_torchrec.evaluation import fake_quantise_rows
from bet_torchrec.planning.plan import Bucket, TablePlan


@pytest.mark.parametrize("alignment", [1, 16])
@pytest.mark.parametrize("layout", ["bucketed", "prefix"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_rows_bit_by_bit_as_simulated(precision: str, layout: str, alignment: int):
    plan = make_plan(inference(precision, alignment))
    for order in ("ranked", "interleaved"):
        quantised = quantize(trained(plan, layout=layout, row_order=order))
        assert_rows(rows_of(quantised), expected(plan))
        assert_rows(quantised.full_tables(), expected(plan))


@pytest.mark.parametrize("alignment", [1, 16])
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("seed", range(3))
def test_allocated_bytes_are_the_plans_cost(precision: str, alignment: int, seed: int):
    plan = make_plan(inference(precision, alignment), seed=seed)
    quantised = quantize(trained(plan))
    model = MemoryModel.for_budget(plan.budget)
    assert quantised.allocated_bytes() == {t.name: t.cost(model) for t in plan.tables}
    assert sum(quantised.allocated_bytes().values()) == plan.cost()
    assert quantised.router.id_map_bytes == 33 * 4
    storages = {
        rows.untyped_storage().data_ptr(): rows.untyped_storage().nbytes()
        for own in quantised.blocks.values()
        for rows in [quantised.packed_rows(block) for block in own]
    }
    assert sum(storages.values()) + 33 * 4 == plan.cost()


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("precision", ["fp16", "int8", "int4", "int2"])
def test_pooling_multi_hot_and_weights(precision: str, weighted: bool):
    plan = make_plan(inference(precision))
    quantised = quantize(trained(plan, is_weighted=weighted))
    rng = np.random.default_rng(3)
    lengths = rng.integers(0, 5, (3, 10))
    ids = [rng.integers(0, 33, lengths[f].sum()) for f in range(3)]
    weights = torch.from_numpy(rng.random(lengths.sum())).float()
    features = KeyedJaggedTensor(
        keys=list(FEATURES),
        values=torch.from_numpy(np.concatenate(ids)),
        lengths=torch.from_numpy(lengths.ravel()),
        weights=weights if weighted else None,
    )
    out, rows, at = quantised(features), expected(plan), 0
    assert out.keys() == ["f1", "f2", "f3"]
    assert out.length_per_key() == [20, 20, 13]
    for f, (feature, table) in enumerate(FEATURES.items()):
        for example in range(10):
            n = lengths[f, example]
            own = torch.from_numpy(ids[f][lengths[f, :example].sum() :][:n])
            scale = weights[at : at + n] if weighted else torch.ones(n)
            bag = (rows[table][own].double() * scale[:, None].double()).sum(dim=0)
            if table == "b":
                bag /= max(n, 1)
            assert torch.allclose(out[feature][example].double(), bag, atol=1e-5)
            at += n


def test_each_bucket_in_its_own_precision():
    order = np.random.default_rng(0).permutation(33).astype(np.int32)
    a = (Bucket(20, 5, "int8"), Bucket(9, 10, "int4"), Bucket(3, 20, "fp16"), Bucket(0, 25))
    b = (Bucket(13, 3, "fp32"), Bucket(5, 30, "int2"))
    tables = (TablePlan("a", 60, 20, a), TablePlan("b", 33, 13, b, order))
    for alignment in (1, 16):
        plan = SizePlan(tables, inference(PRECISIONS, alignment), "test")
        quantised = quantize(trained(plan))
        assert sum(quantised.allocated_bytes().values()) == plan.cost()
        found = rows_of(quantised)
        for table in tables:
            first, ids = 0, np.arange(table.rows) if table.order is None else table.order
            for bucket in table.buckets:
                own = torch.from_numpy(ids[first : first + bucket.rows].astype(np.int64))
                wanted = torch.zeros(bucket.rows, table.embedding_dim)
                if bucket.width:
                    rows = full_tables()[table.name][own, : bucket.width]
                    wanted[:, : bucket.width] = fake_quantise_rows(rows, bucket.precision)
                assert torch.equal(found[table.name][own], wanted)
                first += bucket.rows


@pytest.mark.parametrize("budget", [Budget.parameters(10**5), Budget.sparsity(0.0)])
def test_budgets_without_bytes_serve_fp32(budget: Budget):
    module = trained(make_plan(budget))
    quantised = quantize(module)
    assert not quantised.training
    assert_rows(rows_of(quantised), rows_of(module))
    assert quantised.alignment == 1
    assert_rows(rows_of(quantize(module, precision="int4")), expected(module.plan, "int4"))


def test_a_training_plan_is_served_in_its_type():
    budget = Budget.bytes(10**6, purpose="training", dtype="fp16", optimizer="sgd")
    module = trained(make_plan(budget))
    assert_rows(rows_of(quantize(module)), expected(module.plan, "fp16"))


def test_another_plan_of_the_same_sizes():
    module = trained(make_plan(Budget.parameters(10**5)))
    plan = make_plan(inference(("int8", "int2")), precisions={"a": "int8", "b": "int2"})
    quantised = quantize(module, plan)
    assert_rows(rows_of(quantised), expected(plan))
    assert sum(quantised.allocated_bytes().values()) == plan.cost()
    # The same sizes, but other ranks for ids of one size.
    counts = {t.name: RowCounts.from_rows(np.arange(t.num_embeddings)) for t in TABLES}
    sizes = {name: plan.sizes(name) for name in "ab"}
    turned = SizePlan.from_sizes(TABLES, sizes, counts, budget=inference("int4"), sizer="test")
    assert turned["a"].order is not None
    assert_rows(rows_of(quantize(module, turned)), expected(turned))
    with pytest.raises(PlanError, match="table 'a'.*migrate"):
        quantize(module, make_plan(inference("int8"), seed=5))


@pytest.mark.parametrize("source", ["bucketed", "prefix"])
def test_the_prefix_layout_quantises_each_block(source: str):
    plan = make_plan(inference("int4"))
    quantised = quantize(trained(plan, layout=source), layout="prefix")
    found, full = rows_of(quantised), full_tables()
    for name, own in quantised.blocks.items():
        wanted = torch.zeros_like(full[name])
        for block in own:
            ids = torch.from_numpy(block.ids(plan[name]))
            wanted[ids, block.columns] = fake_quantise_rows(full[name][ids, block.columns], "int4")
        assert torch.equal(found[name], wanted)


class _Model(nn.Module):
    def __init__(self, plan: SizePlan) -> None:
        super().__init__()
        self.one = trained(plan)
        self.nested = nn.Sequential(BudgetedEmbeddingBagCollection(TABLES[:1], plan), nn.Identity())
        self.dense = nn.Linear(53, 2)

    def forward(self, features: KeyedJaggedTensor) -> torch.Tensor:
        return self.dense(self.one(features).values()) + self.nested(features).values()[:, :2]


def test_a_model_is_copied_with_its_collections_replaced():
    plan = make_plan(inference("int8"))
    model = _Model(plan)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    copied = quantize(model)
    assert isinstance(copied.one, QuantizedBudgetedEmbeddingBagCollection)
    assert isinstance(copied.nested[0], QuantizedBudgetedEmbeddingBagCollection)
    assert isinstance(model.one, BudgetedEmbeddingBagCollection)
    assert model.training
    assert not copied.training
    assert copied.dense.weight is not model.dense.weight
    wanted = model.dense(quantize(model.one)(every_row()).values())
    wanted = wanted + quantize(model.nested[0])(every_row()).values()[:, :2]
    assert torch.equal(copied(every_row()), wanted)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_no_rows_at_all_and_no_examples():
    zeros = {t.name: np.zeros(t.num_embeddings, dtype=np.int64) for t in TABLES}
    counts = {t.name: RowCounts.from_rows(np.arange(t.num_embeddings)[::-1].copy()) for t in TABLES}
    plan = SizePlan.from_sizes(TABLES, zeros, counts, budget=inference("int8"), sizer="test")
    quantised = quantize(BudgetedEmbeddingBagCollection(TABLES, plan))
    assert not quantised(every_row()).values().any()
    assert sum(quantised.allocated_bytes().values()) == plan.cost()
    nothing = KeyedJaggedTensor(
        keys=list(FEATURES), values=torch.empty(0).long(), lengths=torch.zeros(6).long()
    )
    assert not quantize(trained(make_plan(inference("int8"))))(nothing).values().any()


def test_what_cannot_be_served_is_refused():
    plan = make_plan(inference("int8"))
    module = trained(plan)
    with pytest.raises(InvalidInputError, match="precision should be .* 'int3'"):
        quantize(module, precision="int3")
    with pytest.raises(InvalidInputError, match="model without any"):
        quantize(nn.Linear(2, 2))
    sharded = ShardedBudgetedEmbeddingBagCollection.__new__(ShardedBudgetedEmbeddingBagCollection)
    nn.Module.__init__(sharded)
    with pytest.raises(InvalidInputError, match="sharded ones.*load_full_tables"):
        quantize(nn.Sequential(module, sharded))
    with pytest.raises(InvalidInputError, match="'meta'"):
        quantize(BudgetedEmbeddingBagCollection(TABLES, plan, device="meta"))
    with pytest.raises(InvalidInputError, match="power of 2"):
        quantize(module, alignment=3)
    with pytest.raises(InvalidInputError, match="CUDA kernels need rows aligned to 16"):
        quantize(module, device="cuda")


@pytest.mark.parametrize("bad", [-1e6, float("nan"), float("-inf")])
@pytest.mark.parametrize("precision", ["fp16", "int8", "int2"])
def test_values_that_no_row_can_hold_are_refused(precision: str, bad: float):
    module = trained(make_plan(inference("fp32")))
    with torch.no_grad():
        module.weight(module.blocks["b"][1])[2, 1] = bad
    with pytest.raises(InvalidInputError, match="fp16 cannot hold"):
        quantize(module, precision=precision)


def test_it_stays_where_it_is_and_checks_ids():
    quantised = quantize(trained(make_plan(inference("int8"))))
    rows = rows_of(quantised)
    assert_rows(rows_of(quantised.to("cpu").half().float()), rows)
    with pytest.raises(InvalidInputError, match="stays on its device, cpu"):
        nn.Sequential(quantised).to("meta")
    bad = KeyedJaggedTensor(
        keys=list(FEATURES), values=torch.tensor([0, 60, 0]), lengths=torch.ones(3).long()
    )
    with pytest.raises(IdRangeError, match="'f2'.*60"):
        quantised(bad)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", PRECISIONS)
def test_on_cuda(precision: str):
    plan = make_plan(inference(precision, 16))
    here = quantize(trained(plan))
    there = quantize(trained(plan, device="cuda"))
    assert there.device.type == "cuda"
    assert there.allocated_bytes() == here.allocated_bytes()
    assert_rows(there.full_tables(), here.full_tables())
    out = there(every_row().to(torch.device("cuda"))).values()
    torch.testing.assert_close(out.cpu(), here(every_row()).values(), rtol=1e-6, atol=1e-6)
