"""The collection against TorchRec's own over full tables times their mask."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from masked_cases import (
    LAYOUTS,
    OPTIMIZERS,
    ROWS,
    TABLES,
    VALUES,
    assert_alike,
    assert_same_tables,
    bags,
    config,
    full_tables,
    masked,
    oracle,
    ours,
    plan_of,
    table_configs,
    trained,
    values_of,
)
from torchrec import EmbeddingBagConfig, KeyedJaggedTensor, PoolingType

from bet_torchrec import Budget, RowCounts, SizePlan
from bet_torchrec.embeddings import BudgetedEmbeddingBagCollection, IdRangeError
from bet_torchrec.errors import InvalidInputError, PlanError

# Forward


@pytest.mark.parametrize(("layout", "row_order"), LAYOUTS)
def test_output_is_the_masked_full_table_s(layout, row_order):
    model, full = ours(layout, row_order), oracle()
    for kjt in (bags(), bags(1, batch=1), bags(2, most=1), bags(3, most=30), bags(4, most=0)):
        assert_alike(model(kjt), full(kjt))
    names = ["friend", "me", "shared@item", "item", "gone", "shared@tag"]
    assert model(bags()).keys() == names


@pytest.mark.parametrize(("layout", "row_order"), LAYOUTS)
def test_bags_repeat_ids(layout, row_order):
    kjt = KeyedJaggedTensor(
        keys=list(ROWS),
        values=torch.tensor([3, 3, 3, 5, 5, 1, 1, 1, 1, 0, 0, 0, 0]),
        lengths=torch.tensor([4, 1, 0, 2, 2, 0, 0, 2, 1, 1]),
    )
    assert_alike(ours(layout, row_order)(kjt), oracle()(kjt))


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_features_by_name_in_any_order_of_either_integer(dtype):
    kjt = bags(dtype=dtype)
    extra = KeyedJaggedTensor(
        keys=["unknown"],
        values=torch.full((14,), -1, dtype=dtype),
        lengths=torch.full((7,), 2, dtype=dtype),
    )
    shuffled = KeyedJaggedTensor.concat([extra, kjt]).permute([4, 1, 5, 0, 3, 2])
    assert_alike(ours()(shuffled), oracle()(kjt))


@pytest.mark.parametrize(("layout", "row_order"), LAYOUTS)
def test_weighted_sums_and_the_gradient_of_weights(layout, row_order):
    tables = table_configs(mean=PoolingType.SUM)
    model = ours(layout, row_order, tables, is_weighted=True)
    full = oracle(tables, is_weighted=True)
    gradients = []
    for module in (model, full):
        kjt = bags(weighted=True)
        kjt.weights().requires_grad_()
        assert_alike(module(kjt), full(kjt))
        module(kjt).values().square().sum().backward()
        gradients.append(kjt.weights().grad)
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize(("layout", "row_order"), LAYOUTS)
def test_weighted_means_divide_by_the_length(layout, row_order):
    """TorchRec's unsharded collection refuses them; its sharded one divides by the length."""
    kjt = bags(weighted=True)
    sums = oracle(table_configs(mean=PoolingType.SUM), is_weighted=True)(kjt)
    found = ours(layout, row_order, is_weighted=True)(kjt)
    names = found.keys()
    for key in names:
        bag = kjt[key.split("@")[0]].lengths() if key in ("shared@item", "item") else torch.ones(7)
        torch.testing.assert_close(found[key], sums[key] / bag.clamp_min(1)[:, None])


def test_weights_are_ignored_where_bags_have_none():
    assert_alike(ours()(bags(weighted=True)), oracle()(bags()))


@pytest.mark.parametrize(("layout", "row_order"), LAYOUTS)
def test_a_batch_without_examples(layout, row_order):
    """Where TorchRec's own fails; the output has the columns that any other batch's has."""
    found = ours(layout, row_order)(bags(batch=0))
    assert found.values().shape == (0, 12 + 12 + 8 + 8 + 3 + 5)
    assert found["shared@tag"].shape == (0, 5)


@pytest.mark.parametrize(("layout", "row_order"), LAYOUTS)
def test_tables_without_any_row(layout, row_order):
    only = [table for table in TABLES if table.name == "gone"]
    model = ours(layout, row_order, only)
    assert list(model.parameters()) == []
    kjt = bags()
    assert_alike(model(kjt), oracle(only)(kjt))
    assert model(bags(batch=0)).values().shape == (0, 3)
    assert not model.full_tables()["gone"].any()
    with pytest.raises(IdRangeError):
        model(bags(rows={"gone": 50}))


# Training


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(("layout", "row_order"), LAYOUTS)
def test_training_is_the_masked_full_table_s(layout, row_order, optimizer):
    model, full = trained(ours(layout, row_order), optimizer), trained(oracle(), optimizer)
    assert_same_tables(model.full_tables(), full_tables(full))
    assert_alike(model(bags(99)), full(bags(99)))
    assert (model.full_tables()["user"] - VALUES["user"] * 1).abs().max() > 0.1  # it has learnt


@pytest.mark.parametrize(("layout", "row_order"), LAYOUTS)
def test_training_with_weights(layout, row_order):
    tables = table_configs(mean=PoolingType.SUM)
    model = ours(layout, row_order, tables, is_weighted=True)
    full = oracle(tables, is_weighted=True)
    found = trained(model, "adagrad", weighted=True).full_tables()
    assert_same_tables(found, full_tables(trained(full, "adagrad", weighted=True)))


# Ids and batches that are refused


@pytest.mark.parametrize(("layout", "row_order"), LAYOUTS)
@pytest.mark.parametrize(("feature", "rows"), ROWS.items())
def test_ids_out_of_range(feature, rows, layout, row_order):
    most = 23 if feature == "shared" else rows  # of the two tables that it is looked up in
    model = ours(layout, row_order)
    for wrong in (-1, most, 2**40):
        kjt = bags(1)
        kjt.values()[int(kjt.offset_per_key()[kjt.keys().index(feature)])] = wrong
        with pytest.raises(IdRangeError, match=f"feature '{feature}'.*got {wrong}"):
            model(kjt)


def test_batches_that_are_refused():
    with pytest.raises(InvalidInputError, match="item: shared, gone missing"):
        ours()(bags(rows={"friend": 40, "me": 40, "item": 23}))
    with pytest.raises(InvalidInputError, match="expects a KeyedJaggedTensor with weights"):
        ours(is_weighted=True)(bags())
    varying = KeyedJaggedTensor(
        keys=list(ROWS),
        values=torch.zeros(10).long(),
        lengths=torch.ones(10).long(),
        stride_per_key_per_rank=[[1], [2], [3], [2], [2]],  # examples by feature
    )
    with pytest.raises(InvalidInputError, match="the same batch size"):
        ours()(varying)


# Moved


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_to_another_dtype(dtype):
    model = ours().to(dtype)
    assert {weight.dtype for weight in model.parameters()} == {dtype}
    expected = oracle(values={n: v.to(dtype).float() for n, v in VALUES.items()})(bags())
    found = model(bags())
    torch.testing.assert_close(found.values(), expected.values(), atol=0.1, rtol=0.05)
    assert found.values().dtype == torch.float32  # as TorchRec's own has it


@pytest.mark.gpu
@pytest.mark.parametrize(("layout", "row_order"), LAYOUTS)
def test_moved_to_a_gpu_and_back(layout, row_order):
    model, full = ours(layout, row_order).to("cuda"), oracle()
    found = model(bags().to(torch.device("cuda")))
    torch.testing.assert_close(found.values().cpu(), full(bags()).values(), atol=1e-5, rtol=1e-5)
    with pytest.raises(IdRangeError):
        model(bags(rows={**ROWS, "user": 40, "me": 400}).to(torch.device("cuda")))
    assert_alike(model.cpu()(bags()), full(bags()))


# Any tables, any plan


@st.composite
def collections(draw):
    rng = np.random.default_rng(draw(st.integers(0, 2**20)))
    names = [f"f{i}" for i in range(4)]
    tables, sizes = [], {}
    for number in range(draw(st.integers(1, 3))):
        rows, dim = draw(st.integers(1, 30)), draw(st.integers(1, 9))
        features = draw(st.sets(st.sampled_from(names), min_size=1, max_size=3))
        pooling = draw(st.sampled_from([PoolingType.SUM, PoolingType.MEAN]))
        tables.append(config(f"t{number}", rows, dim, *sorted(features), pooling=pooling))
        own = rng.integers(0, dim + 1, rows) * draw(st.sampled_from([0, 1, 1, 1]))
        sizes[f"t{number}"] = np.sort(own)[::-1].copy() if draw(st.booleans()) else own
    least = {
        n: min([t.num_embeddings for t in tables if n in t.feature_names] or [1]) for n in names
    }
    kjt = bags(draw(st.integers(0, 999)), draw(st.integers(1, 5)), least, draw(st.integers(0, 4)))
    return tables, plan_of(tables, sizes), kjt


@settings(max_examples=40, deadline=None)
@given(case=collections(), choice=st.sampled_from(LAYOUTS))
def test_any_collection_is_its_masked_full_tables(case, choice):
    tables, plan, kjt = case
    values = values_of(tables)
    model, full = ours(*choice, tables, plan, values), masked(tables, plan, values)
    assert_alike(model(kjt), full(kjt))
    if any(b for own in model.blocks.values() for b in own):
        for module in (model, full):
            module(kjt).values().square().sum().backward()
            torch.optim.SGD(module.parameters(), lr=0.1).step()
    assert_same_tables(model.full_tables(), full_tables(full))


def test_prefix_states_that_are_over_the_budget_are_refused():
    table = EmbeddingBagConfig(name="t", num_embeddings=10, embedding_dim=8, feature_names=["f"])
    counts = {"t": RowCounts.from_rows(list(range(10, 0, -1)))}
    sizes = {"t": np.repeat([8, 4], [5, 5])}
    cost = 5 * (8 * 4 + 4) + 5 * (4 * 4 + 4)  # the 5 wide rows have a second state in "prefix"

    def plan(amount: int) -> SizePlan:
        budget = Budget.bytes(amount, purpose="training", dtype="fp32", optimizer="rowwise_adagrad")
        return SizePlan.from_sizes([table], sizes, counts, budget=budget, sizer="test")

    BudgetedEmbeddingBagCollection([table], plan(cost))
    BudgetedEmbeddingBagCollection([table], plan(cost + 20), layout="prefix")
    with pytest.raises(PlanError, match="20 bytes beside the plan's 280 are over"):
        BudgetedEmbeddingBagCollection([table], plan(cost + 19), layout="prefix")
