"""Served tables with bases: coordinates as simulated, times axes in fp32, to the byte."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from masked_cases import assert_alike
from sequence_cases import TABLES as UNPOOLED_TABLES
from sequence_cases import VALUES as UNPOOLED_VALUES
from serving_cases import FEATURES, PRECISIONS, TABLES, full_tables, inference, make_plan
from torchrec import KeyedJaggedTensor

from bet_torchrec import SizePlan
from bet_torchrec.embeddings import (
    BudgetedEmbeddingBagCollection,
    BudgetedEmbeddingCollection,
    QuantizedBudgetedEmbeddingBagCollection,
    QuantizedBudgetedEmbeddingCollection,
    export_dense,
    export_tables,
    quantize,
)
from bet_torchrec.errors import PlanError
from bet_torchrec.evaluation import fake_quantise_sized
from bet_torchrec.files.tensors import open_file
from bet_torchrec.planning.budget import MemoryModel
from bet_torchrec.serving import read_tables


def based(precision, alignment=1, kinds=None) -> SizePlan:
    plan = make_plan(inference(precision, alignment))
    kinds = {"a": "trained", "b": "fixed"} if kinds is None else kinds
    tables = tuple(replace(t, basis=kinds.get(t.name)) for t in plan.tables)
    return SizePlan(tables, plan.budget, "test")


def module_of(plan, **options):
    made = BudgetedEmbeddingBagCollection(TABLES, plan, **options)
    return made.load_full_tables(full_tables(), counts={"a": np.arange(60)[::-1]})


def expected(module, precision):
    """Rows by hand: coordinates rounded row by row, then turned."""
    found = {}
    for name, table in module.full_tables().items():
        basis, plan = module.table_bases()[name], module.plan[name]
        sizes = torch.from_numpy(plan.sizes(name) if hasattr(plan, "get") else plan.sizes())
        stored = basis.coordinates(table)
        found[name] = fake_quantise_sized(stored, sizes, precision) @ basis.axes
    return found


def batch():
    rng = np.random.default_rng(3)
    lengths = rng.integers(0, 5, (3, 10))
    ids = [rng.integers(0, 33, lengths[f].sum()) for f in range(3)]
    return KeyedJaggedTensor(
        keys=list(FEATURES),
        values=torch.from_numpy(np.concatenate(ids)),
        lengths=torch.from_numpy(lengths.ravel()),
    )


@pytest.mark.parametrize("alignment", [1, 16])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_rows_and_bytes(precision, alignment, monkeypatch):
    plan = based(precision, alignment)
    module = module_of(plan)
    served = quantize(module)
    # The coordinates that full_tables gives back differ in their last bits: one step of a code.
    steps = {"fp32": 1e-5, "fp16": 2e-2, "int8": 0.1, "int4": 2.0, "int2": 8.0}
    rows = served.full_tables()
    for name, table in expected(module, precision).items():
        assert (rows[name] - table).abs().mean() < steps[precision] / 10
    model = MemoryModel.for_budget(plan.budget)
    assert served.allocated_bytes() == {t.name: t.cost(model) for t in plan.tables}
    assert sum(served.allocated_bytes().values()) == plan.cost()
    assert not list(served.parameters())
    # Bags are sums (a) and means (b) of these rows, by our kernel and by TorchRec's.
    one_pass = served(batch())
    monkeypatch.setattr("bet_torchrec.embeddings.quantization.one_pass.available", lambda: False)
    assert_alike(served(batch()), one_pass)
    for key, out in one_pass.to_dict().items():
        jagged, name = batch()[key], FEATURES[key]
        for i, ids in enumerate(jagged.values().split(jagged.lengths().tolist())):
            wanted = rows[name][ids].sum(0) / (max(len(ids), 1) if name == "b" else 1)
            torch.testing.assert_close(out[i], wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("layout", ["bucketed", "prefix"])
@pytest.mark.parametrize("kinds", [{"a": "fixed"}, {"a": "trained", "b": "fixed"}])
def test_files_are_read_by_numpy_and_back(tmp_path, layout, kinds):
    module = module_of(based("int8", kinds=kinds))
    served = quantize(module, layout=layout)
    path = served.save(tmp_path / "a")
    again = QuantizedBudgetedEmbeddingBagCollection.load(path)
    assert torch.equal(again(batch()).values(), served(batch()).values())
    assert again.plan == served.plan
    tables = read_tables(path)
    for name, table in served.full_tables().items():
        ids = np.array([[3, 0], [7, 7]])
        np.testing.assert_allclose(tables[name].read(ids), table[ids].numpy(), atol=1e-5)
        np.testing.assert_allclose(tables[name].read(ids, width=5), table[ids, :5], atol=1e-5)
        assert (tables[name].axes is not None) == (name in kinds)
    trained = read_tables(export_tables(module, tmp_path / "b"))
    for name, table in module.full_tables().items():
        np.testing.assert_allclose(trained[name].read(np.arange(len(table))), table, atol=1e-5)
    dense = open_file(export_dense(module, tmp_path / "c"))
    np.testing.assert_allclose(dense.array("a"), module.full_tables()["a"], atol=1e-5)
    assert open_file(path).metadata["version"] == "2"
    plain = quantize(module_of(based("int8", kinds={})))
    assert open_file(plain.save(tmp_path / "d")).metadata["version"] == "1"


def test_unpooled(tmp_path):
    sizes = {t.name: np.full(t.num_embeddings, 8) for t in UNPOOLED_TABLES}
    plan = SizePlan.from_sizes(UNPOOLED_TABLES, sizes, budget=inference("fp16"))
    tables = tuple(replace(t, basis="fixed") for t in plan.tables[:2]) + plan.tables[2:]
    module = BudgetedEmbeddingCollection(UNPOOLED_TABLES, replace(plan, tables=tables))
    module.load_full_tables(UNPOOLED_VALUES)
    served = quantize(module)
    again = QuantizedBudgetedEmbeddingCollection.load(served.save(tmp_path / "a"))
    rows, full = again.full_tables(), module.full_tables()
    for name, table in full.items():
        torch.testing.assert_close(rows[name], table, atol=0.02, rtol=0.01)
    ids = torch.tensor([3, 5, 3])
    keys = ["friend", "me", "item", "gone", "shared"]
    features = KeyedJaggedTensor(keys=keys, values=ids.repeat(5), lengths=torch.tensor([3] * 5))
    torch.testing.assert_close(again(features)["me"].values(), rows["user"][ids])
    assert sum(again.allocated_bytes().values()) == module.plan.cost()


def test_a_plan_without_the_basis_is_refused():
    module = module_of(based("int8"))
    with pytest.raises(PlanError, match="trained rows' sizes and axes"):
        quantize(module, based("int8", kinds={"b": "fixed"}))
