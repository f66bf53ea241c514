"""Unpooled tables quantised, saved, exported and migrated."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest
import torch
from masked_cases import LAYOUTS, assert_same_tables, bags, plan_of
from safetensors.numpy import load_file
from sequence_cases import (
    DIM,
    PLAN,
    ROWS,
    SIZES,
    TABLES,
    VALUES,
    assert_alike,
    masked_tables,
    oracle,
    ours,
    together,
    varying,
)
from torchrec import EmbeddingBagConfig, EmbeddingCollection

from bet_torchrec import Budget, SizePlan
from bet_torchrec.embeddings import (
    BudgetedEmbeddingBagCollection,
    BudgetedEmbeddingCollection,
    IdRangeError,
    QuantizedBudgetedEmbeddingBagCollection,
    QuantizedBudgetedEmbeddingCollection,
    export_dense,
    export_tables,
    migrate,
    quantize,
)
from bet_torchrec.errors import InvalidInputError
from bet_torchrec.evaluation import fake_quantise_sized
from bet_torchrec.serving import TableFileError, read_tables

PRECISIONS = ("fp32", "fp16", "int8", "int4", "int2")


def planned(precision: str) -> SizePlan:
    """The same sizes, under a budget of inference bytes."""
    budget = Budget.bytes(10**6, purpose="inference", dtype=precision)
    return plan_of(TABLES, SIZES, budget)


def as_stored(plan: SizePlan, precision: str) -> EmbeddingCollection:
    """TorchRec's own over rows as they read after storing: simulated, in plain torch."""
    masked = masked_tables(oracle())
    values = {
        name: fake_quantise_sized(rows, torch.from_numpy(plan.sizes(name)), precision)
        for name, rows in masked.items()
    }
    return oracle(plan=plan, values=values, need_indices=True)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_lookups_read_the_rows_as_they_are_stored(precision):
    plan = planned(precision)
    model = quantize(ours(plan=plan, need_indices=True))
    assert type(model) is QuantizedBudgetedEmbeddingCollection
    with torch.no_grad():
        for kjt in (bags(rows=ROWS), varying()):
            assert_alike(model(kjt), as_stored(plan, precision)(kjt))
    assert sum(model.allocated_bytes().values()) == plan.cost()


@pytest.mark.parametrize(("layout", "row_order"), LAYOUTS)
def test_any_layout_serves_the_same(layout, row_order):
    model = quantize(ours(layout, row_order), layout=layout)
    with torch.no_grad():
        assert_alike(model(bags(rows=ROWS)), oracle()(bags(rows=ROWS)))


def test_a_model_s_copy_has_both_kinds_quantised():
    pooled = [
        EmbeddingBagConfig(**{f.name: getattr(t, f.name) for f in dataclasses.fields(t)})
        for t in TABLES
    ]
    own = BudgetedEmbeddingBagCollection(pooled, planned("int8")).load_full_tables(VALUES)
    served = quantize(torch.nn.ModuleList([own, ours(plan=planned("int8"))]))
    kinds = [type(part) for part in served]
    assert kinds == [
        QuantizedBudgetedEmbeddingBagCollection,
        QuantizedBudgetedEmbeddingCollection,
    ]
    kjt = bags(rows=ROWS, most=1)
    rows = {k: v.values() for k, v in served[1](kjt).items()}
    sums = served[0](kjt)
    for key, own_rows in rows.items():  # bags of one id or none
        there = kjt[key.split("@")[0]].lengths().bool()
        torch.testing.assert_close(sums[key][there], own_rows)


@pytest.mark.parametrize("precision", ["fp32", "int4"])
def test_a_file_gives_the_same_rows(tmp_path, precision):
    model = quantize(ours("prefix", plan=planned(precision)), layout="prefix")
    path = model.save(tmp_path / "tables")
    again = QuantizedBudgetedEmbeddingCollection.load(path)
    kjt = bags(rows=ROWS)
    for key, rows in model(kjt).items():
        assert torch.equal(again(kjt)[key].values(), rows.values())
    told = [(t.name, t.num_embeddings, t.feature_names) for t in again.embedding_configs()]
    assert told == [(t.name, t.num_embeddings, t.feature_names) for t in TABLES]
    for name, table in read_tables(path).items():
        assert np.array_equal(table.read(np.arange(table.rows)), model.full_tables()[name].numpy())
    with pytest.raises(TableFileError, match="by QuantizedBudgetedEmbeddingCollection.load"):
        QuantizedBudgetedEmbeddingBagCollection.load(path)


def test_trained_rows_are_exported(tmp_path):
    model = ours("prefix", "interleaved")
    whole = load_file(export_dense(model, tmp_path / "dense"))
    assert_same_tables({k: torch.from_numpy(v) for k, v in whole.items()}, masked_tables(oracle()))
    pooled = BudgetedEmbeddingBagCollection(
        [EmbeddingBagConfig(name="tag", num_embeddings=9, embedding_dim=DIM)], PLAN
    )
    path = export_tables(pooled, tmp_path / "pooled")
    with pytest.raises(TableFileError, match="should hold unpooled tables, got pooled ones"):
        QuantizedBudgetedEmbeddingCollection.load(path)
    again = QuantizedBudgetedEmbeddingCollection.load(export_tables(model, tmp_path / "rows"))
    assert_same_tables(again.full_tables(), masked_tables(oracle()))


def test_it_stays_on_its_device_and_copies_are_whole():
    model = quantize(ours(), precision="int8")
    with pytest.raises(InvalidInputError, match="stays on its device"):
        model.to("meta")
    assert torch.equal(*(together(m(bags(rows=ROWS))) for m in (model, copy.deepcopy(model))))
    with pytest.raises(IdRangeError):
        model(bags(rows={**ROWS, "gone": 50}))


# Migration


def test_full_tables_to_a_plan_to_another_and_back():
    full = EmbeddingCollection([dataclasses.replace(table) for table in TABLES])
    with torch.no_grad():
        for name, values in VALUES.items():
            full.embeddings[name].weight.copy_(values)
    first = migrate(full, PLAN, layout="prefix")
    assert type(first) is BudgetedEmbeddingCollection
    assert first.layout == "prefix"
    assert_same_tables(first.full_tables(), masked_tables(oracle()))
    sizes = {name: np.minimum(own, 4) for name, own in SIZES.items()}
    second = migrate(first, plan_of(TABLES, sizes))
    assert second.layout == "prefix"
    for name, table in second.full_tables().items():
        kept = torch.arange(DIM) < torch.from_numpy(sizes[name])[:, None]
        assert torch.equal(table, VALUES[name] * kept)
    migrate(second, full, rest="zeros")
    for name, table in second.full_tables().items():
        assert torch.equal(full.embeddings[name].weight, table)


def test_optimizer_state_goes_along_and_training_continues_as_it_would_have():
    start = ours()
    optimizer = torch.optim.Adagrad(start.parameters(), lr=0.1)
    twin = ours("prefix")
    twin_optimizer = torch.optim.Adagrad(twin.parameters(), lr=0.1)

    def step(model, optimizer, seed):
        optimizer.zero_grad()
        together(model(bags(seed, rows=ROWS))).square().mean().backward()
        optimizer.step()

    for seed in range(3):
        step(start, optimizer, seed)
    migrate(start, twin, optimizer=optimizer, target_optimizer=twin_optimizer)
    for seed in range(3, 6):
        step(start, optimizer, seed)
        step(twin, twin_optimizer, seed)
    assert_same_tables(twin.full_tables(), start.full_tables())
