"""How the collection is built, what it holds and takes, how it is copied and saved."""

from __future__ import annotations

import copy
import io
import math
import pickle
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from masked_cases import (
    LAYOUTS,
    PLAN,
    SIZES,
    TABLES,
    VALUES,
    assert_alike,
    assert_same_tables,
    bags,
    config,
    full_tables,
    oracle,
    ours,
    plan_of,
    table_configs,
    trained,
    values_of,
)
from torchrec import EmbeddingBagCollection
from torchrec.modules.embedding_configs import DataType

from bet_torchrec import Budget, SizePlan
from bet_torchrec.embeddings import BudgetedEmbeddingBagCollection
from bet_torchrec.errors import InvalidInputError, PlanError
from bet_torchrec.planning.plan import Bucket, TablePlan

# Building


def test_meta_allocates_nothing_until_asked():
    rows = 2 * 10**9  # a terabyte of them
    buckets = (Bucket(128, rows // 2), Bucket(64, rows // 4), Bucket(0, rows // 4))
    plan = SizePlan((TablePlan("huge", rows, 128, buckets),), Budget.sparsity(0), "by hand")
    for layout, row_order in LAYOUTS:
        model = BudgetedEmbeddingBagCollection(
            [config("huge", rows, 128, "f")],
            plan,
            layout=layout,
            row_order=row_order,
            device="meta",
        )
        assert all(weight.is_meta for weight in model.parameters())
        assert sum(weight.nbytes for weight in model.parameters()) == plan.cost() * 4


@pytest.mark.parametrize(("layout", "row_order"), LAYOUTS)
def test_from_meta_to_real_tables(layout, row_order):
    model = BudgetedEmbeddingBagCollection(
        TABLES, PLAN, layout=layout, row_order=row_order, device="meta"
    )
    model.to_empty(device="cpu").reset_parameters()
    assert 0.05 < model.full_tables()["user"].abs().max() <= 1 / math.sqrt(40)
    model.load_full_tables(VALUES)
    assert_alike(model(bags()), oracle()(bags()))
    assert_same_tables(trained(model, "sgd").full_tables(), full_tables(trained(oracle(), "sgd")))


def test_names_and_shapes_of_real_tables():
    shapes = {
        name.removeprefix("embedding_bag_collection.embedding_bags."): tuple(weight.shape)
        for name, weight in ours().state_dict().items()
    }
    assert {k: v for k, v in shapes.items() if k.startswith("item")} == {
        "item/w8.weight": (4, 8),
        "item/w3.weight": (9, 3),
        "item/w2.weight": (10, 2),
    }
    assert not any(name.startswith("gone") for name in shapes)
    prefix = {n.split(".")[-2]: tuple(w.shape) for n, w in ours("prefix").state_dict().items()}
    assert (prefix["item/c0-2"], prefix["item/c2-3"], prefix["item/c3-8"]) == (
        (23, 2),
        (13, 1),
        (4, 5),
    )


@pytest.mark.parametrize(("layout", "row_order"), LAYOUTS)
def test_weights_are_drawn_from_the_full_table_s_range(layout, row_order):
    """TorchRec's default depends on the number of rows, and a block has fewer."""
    plain = config("plain", 4000, 8, "a")
    ranged = config("ranged", 500, 8, "b", weight_init_min=3.0, weight_init_max=5.0)
    own = config("own", 40, 8, "c", init_fn=partial(torch.nn.init.constant_, val=7))
    tables = [plain, ranged, own]
    sizes = {t.name: np.repeat([8, 2], [10, t.num_embeddings - 10]) for t in tables}
    model = BudgetedEmbeddingBagCollection(
        tables, plan_of(tables, sizes), layout=layout, row_order=row_order
    )
    for _ in range(2):
        weights = {
            t.name: torch.cat([model.weight(b).detach().view(-1) for b in model.blocks[t.name]])
            for t in tables
        }
        bound = 1 / math.sqrt(4000)
        assert weights["plain"].abs().max() <= bound
        assert weights["plain"].abs().max() > 0.95 * bound
        assert weights["ranged"].min() >= 3
        assert weights["ranged"].max() <= 5
        assert weights["ranged"].mean() == pytest.approx(4, abs=0.2)
        assert (weights["own"] == 7).all()
        before = weights["plain"].clone()
        model.reset_parameters()
    assert not torch.equal(before, model.weight(model.blocks["plain"][-1]).detach().view(-1))


def test_the_same_distribution_as_torchrec_s_own_tables():
    table = config("t", 3000, 4, "f")
    plan = plan_of([table], {"t": np.full(3000, 4)})
    torch.manual_seed(0)
    found = BudgetedEmbeddingBagCollection([table], plan).full_tables()["t"]
    torch.manual_seed(0)
    full = EmbeddingBagCollection(tables=[config("t", 3000, 4, "f")])
    assert torch.equal(found, full.embedding_bags["t"].weight.detach())


@pytest.mark.parametrize(("layout", "row_order"), LAYOUTS)
def test_half_precision(layout, row_order):
    """By the budget or by the config; rows are fp16 and the output fp32, as TorchRec has it."""
    half = table_configs()
    for table in half:
        table.data_type = DataType.FP16
    budget = Budget.bytes(10**6, purpose="training", dtype="fp16", optimizer="sgd")
    rounded = {name: table.half().float() for name, table in VALUES.items()}
    expected = oracle(values=rounded)(bags())
    for tables, plan in ((half, PLAN), (TABLES, plan_of(TABLES, SIZES, budget))):
        model = ours(layout, row_order, tables, plan)
        assert {weight.dtype for weight in model.parameters()} == {torch.float16}
        found = model(bags())
        assert found.values().dtype == torch.float32
        torch.testing.assert_close(found.values(), expected.values(), atol=0.03, rtol=0.01)
        assert_same_tables(model.full_tables(), full_tables(oracle(values=rounded)))


def test_no_two_features_need_be_named():
    unnamed = [config("user", 40, 12)]
    model = ours(tables=unnamed, values={"user": VALUES["user"]})
    assert model(bags(rows={"user": 40})).keys() == ["user"]


def test_some_of_the_plan_s_tables():
    """Several collections under one plan; the original configs are given back."""
    for some in ([TABLES[0]], [TABLES[3], TABLES[1]]):
        model = ours(tables=some)
        assert model.embedding_bag_configs() == some
        assert_alike(model(bags()), oracle(some)(bags()))


def test_configs_stay_as_they_were():
    tables = table_configs()
    ours(tables=tables)
    for before, after in zip(table_configs(), tables, strict=True):
        for name in ("name", "feature_names", "num_embeddings", "embedding_dim", "pooling"):
            assert getattr(before, name) == getattr(after, name)


def test_tables_that_do_not_fit_the_plan():
    def build(*tables):
        BudgetedEmbeddingBagCollection(tables, PLAN)

    with pytest.raises(InvalidInputError, match="at least one table"):
        build()
    with pytest.raises(InvalidInputError, match="distinct names, got 'user' twice"):
        build(TABLES[0], TABLES[0])
    with pytest.raises(PlanError, match="got 'other': plan all tables"):
        build(config("other", 40, 12, "f"))
    with pytest.raises(PlanError, match="40 rows of 12, got 41 rows of 12: plan again"):
        build(config("user", 41, 12, "f"))
    with pytest.raises(PlanError, match="40 rows of 12, got 40 rows of 16"):
        build(config("user", 40, 16, "f"))
    eight_bits = config("user", 40, 12, "f")
    eight_bits.data_type = DataType.INT8
    with pytest.raises(InvalidInputError, match="FP32 or FP16 in training"):
        build(eight_bits)
    with pytest.raises(InvalidInputError, match="layout should be"):
        BudgetedEmbeddingBagCollection(TABLES, PLAN, layout="flat")


# What it holds


@pytest.mark.parametrize(("layout", "row_order"), LAYOUTS)
def test_full_tables_there_and_back(layout, row_order):
    model = ours(layout, row_order)
    found = model.full_tables()
    expected = full_tables(oracle())
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    other = ours(layout, row_order, values=values_of(TABLES, seed=9)).load_full_tables(found)
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
    found["user"].zero_()  # a copy
    assert torch.equal(model.full_tables()["user"], expected["user"])


def test_full_tables_as_narrow_as_the_widest_row_do():
    sizes = {"t": np.array([3, 0, 1, 3])}
    table = config("t", 4, 8, "f")
    model = BudgetedEmbeddingBagCollection([table], plan_of([table], sizes))
    narrow = torch.arange(12.0).view(4, 3)
    assert torch.equal(
        model.load_full_tables({"t": narrow}).full_tables()["t"][:, :3],
        narrow * (torch.arange(3) < torch.tensor([3, 0, 1, 3])[:, None]),
    )
    for wrong in ({"t": narrow[:, :2]}, {"t": narrow[:3]}, {"t": narrow[0]}, {"x": narrow}, {}):
        with pytest.raises(InvalidInputError, match="expected"):
            model.load_full_tables(wrong)


def plans_of_bytes():
    return st.builds(
        lambda dtype, optimizer, seed: (dtype, optimizer, seed),
        st.sampled_from(["fp32", "fp16"]),
        st.sampled_from(["sgd", "rowwise_adagrad", "adagrad", "adam"]),
        st.integers(0, 100),
    )


@settings(max_examples=25, deadline=None)
@given(case=plans_of_bytes(), choice=st.sampled_from(LAYOUTS))
def test_bytes_are_what_the_budget_counted(case, choice):
    """Weights, the optimizer's real state and the maps of ids: to the byte."""
    dtype, optimizer, seed = case
    rng = np.random.default_rng(seed)
    sizes = {t.name: rng.integers(0, t.embedding_dim + 1, t.num_embeddings) for t in TABLES}
    budget = Budget.bytes(10**6, purpose="training", dtype=dtype, optimizer=optimizer)
    model = BudgetedEmbeddingBagCollection(
        TABLES, plan_of(TABLES, sizes, budget), layout=choice[0], row_order=choice[1]
    )
    weights = sum(weight.nbytes for weight in model.parameters())
    entries = sum(weight.numel() for weight in model.parameters())
    kept_rows = sum(int((own > 0).sum()) for own in sizes.values())
    state = {
        "sgd": 0,
        "rowwise_adagrad": 4 * kept_rows,
        "adagrad": 4 * entries,
        "adam": 8 * entries,
    }[optimizer]
    assert weights + state + model.router.id_map_bytes == model.plan.cost()


@pytest.mark.parametrize(("layout", "row_order"), LAYOUTS)
@pytest.mark.parametrize("how", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_are_whole_and_apart(how, layout, row_order):
    model = ours(layout, row_order)
    other = how(model)
    assert_alike(other(bags()), model(bags()))
    assert other.plan == model.plan
    with torch.no_grad():
        for weight in other.parameters():
            weight.zero_()
    assert not other(bags()).values().any()
    assert_alike(model(bags()), oracle()(bags()))


@pytest.mark.parametrize(("layout", "row_order"), LAYOUTS)
def test_state_dict_there_and_back(layout, row_order):
    model = trained(ours(layout, row_order), "sgd", steps=1)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other = ours(layout, row_order, values=values_of(TABLES, seed=5))
    other.load_state_dict(torch.load(file, weights_only=True))
    assert_same_tables(other.full_tables(), model.full_tables())
    assert_alike(other(bags()), model(bags()))


def test_the_state_dict_holds_weights_only():
    """The plan has the maps of ids, in a file of its own."""
    model = ours()
    held = sum(value.nbytes for value in model.state_dict().values())
    assert held == sum(weight.nbytes for weight in model.parameters())


def test_another_plan_s_state_is_refused():
    other = plan_of(TABLES, {**SIZES, "item": np.repeat([8, 2], [4, 19])})
    with pytest.raises(RuntimeError, match="item/w3"):
        ours(plan=other).load_state_dict(ours().state_dict())
