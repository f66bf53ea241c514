"""The unpooled collection against TorchRec's own over full tables times their mask."""

from __future__ import annotations

import copy
import dataclasses
import pickle

import pytest
import torch
from masked_cases import LAYOUTS, assert_same_tables, bags
from sequence_cases import (
    DIM,
    OPTIMIZERS,
    PLAN,
    ROWS,
    TABLES,
    VALUES,
    assert_alike,
    config,
    loss_of,
    masked_tables,
    oracle,
    ours,
    together,
    varying,
)
from torchrec import DataType, EmbeddingCollection, KeyedJaggedTensor
from torchrec.distributed.embedding import ShardedEmbeddingCollection
from torchrec.modules.embedding_modules import EmbeddingCollectionInterface

from bet_torchrec import SizePlan
from bet_torchrec.embeddings import BudgetedEmbeddingCollection, IdRangeError, ShardingError
from bet_torchrec.embeddings.sequence import module
from bet_torchrec.errors import InvalidInputError, PlanError


def ids(**options) -> KeyedJaggedTensor:
    return bags(rows=ROWS, **options)


# Forward


@pytest.mark.parametrize("need_indices", [False, True])
@pytest.mark.parametrize(("layout", "row_order"), LAYOUTS)
def test_output_is_the_masked_full_table_s(layout, row_order, need_indices):
    model = ours(layout, row_order, need_indices=need_indices)
    full = oracle(need_indices=need_indices)
    for kjt in (ids(), ids(seed=1, batch=1), ids(seed=2, most=1), ids(seed=3, most=30)):
        assert_alike(model(kjt), full(kjt))
    assert list(model(ids())) == ["friend", "me", "shared@item", "item", "gone", "shared@tag"]
    assert model.embedding_names_by_table() == full.embedding_names_by_table()


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_features_by_name_in_any_order_of_either_integer(dtype):
    kjt = ids(dtype=dtype)
    extra = KeyedJaggedTensor(
        keys=["unknown"],
        values=torch.full((14,), -1, dtype=dtype),
        lengths=torch.full((7,), 2, dtype=dtype),
    )
    shuffled = KeyedJaggedTensor.concat([extra, kjt]).permute([4, 1, 5, 0, 3, 2])
    found = ours(need_indices=True)(shuffled)
    assert_alike(found, oracle(need_indices=True)(kjt))
    assert found["me"].weights().dtype == dtype


@pytest.mark.parametrize(("layout", "row_order"), LAYOUTS)
def test_batches_whose_size_differs_between_features(layout, row_order):
    kjt = varying()
    assert_alike(ours(layout, row_order)(kjt), oracle()(kjt))


@pytest.mark.parametrize(("layout", "row_order"), LAYOUTS)
def test_without_ids_and_without_examples_the_loss_still_has_a_gradient(layout, row_order):
    for kjt in (ids(most=0), ids(batch=0)):  # TorchRec's own takes no batch without examples
        model = ours(layout, row_order)
        found = model(kjt)
        if kjt.stride():
            assert_alike(found, oracle()(kjt))
        assert [len(one.lengths()) for one in found.values()] == [kjt.stride()] * 6
        together(found).sum().backward()
        assert not any(w.grad is not None and w.grad.any() for w in model.parameters())


def test_tables_without_any_row():
    only = [table for table in TABLES if table.name == "gone"]
    model = ours(tables=only)
    assert list(model.parameters()) == []
    found = model(ids())
    assert_alike(found, oracle(only)(ids()))
    together(found).sum().backward()


def test_weights_of_ids_are_ignored_as_by_torchrec():
    assert_alike(ours()(ids(weighted=True)), oracle()(ids(weighted=True)))


def test_half_precision_tables_give_fp32():
    tables = [dataclasses.replace(table, data_type=DataType.FP16) for table in TABLES]
    found = ours(tables=tables)(ids())
    expected = {k: v.values() for k, v in oracle()(ids()).items()}
    for key, one in found.items():
        assert one.values().dtype == torch.float32
        torch.testing.assert_close(one.values(), expected[key].half().float())


# Training


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(("layout", "row_order"), LAYOUTS)
def test_training_is_the_masked_full_table_s(layout, row_order, optimizer):
    models = ours(layout, row_order), oracle()
    for model in models:
        step = OPTIMIZERS[optimizer](model.parameters())
        for seed in range(6):
            step.zero_grad()
            loss_of(model(ids(seed=seed)), seed).backward()
            step.step()
    assert_same_tables(models[0].full_tables(), masked_tables(models[1]))
    assert (models[0].full_tables()["user"] - VALUES["user"]).abs().max() > 0.1  # it has learnt


# A module like any other


def test_it_is_torchrec_s_interface():
    model = ours(need_indices=True)
    assert isinstance(model, EmbeddingCollectionInterface)
    assert model.embedding_configs() == TABLES
    assert model.embedding_dim() == DIM
    assert model.need_indices()


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_are_whole_and_share_nothing(clone):
    model = ours("prefix")
    twin = clone(model)
    assert_alike(twin(ids()), model(ids()))
    with torch.no_grad():
        for weight in twin.parameters():
            weight.zero_()
    assert not together(twin(ids())).any()
    assert together(model(ids())).any()


def test_state_dicts_restore_and_meta_modules_are_drawn():
    model = ours()
    other = BudgetedEmbeddingCollection(TABLES, PLAN, device="meta").to_empty(device="cpu")
    other.reset_parameters()
    assert all(0 < w.abs().max() <= (1 / 6) ** 0.5 for w in other.parameters())
    other.load_state_dict(model.state_dict())
    assert_alike(other(ids()), model(ids()))


def test_rows_get_the_first_entries_of_full_tables_and_give_them_back():
    assert_same_tables(ours("prefix").full_tables(), masked_tables(oracle()))


# Wrong input


def test_ids_out_of_range_and_missing_features():
    kjt = ids()
    kjt.values()[3] = 40
    with pytest.raises(IdRangeError, match="feature 'friend'"):
        ours()(kjt)
    with pytest.raises(InvalidInputError, match="shared, gone missing"):
        ours()(ids().split([3, 2])[0])


def test_tables_of_several_widths():
    tables = [*TABLES, dataclasses.replace(config("wide", 5, "wide"), embedding_dim=16)]
    with pytest.raises(InvalidInputError, match="one embedding_dim.*got 12, 16"):
        BudgetedEmbeddingCollection(tables, PLAN)
    with pytest.raises(InvalidInputError, match="at least one table"):
        BudgetedEmbeddingCollection([], PLAN)
    with pytest.raises(PlanError, match="expected a table of the plan"):
        BudgetedEmbeddingCollection([config("new", 5)], PLAN)


def test_one_plan_serves_pooled_and_unpooled_tables():
    assert isinstance(PLAN, SizePlan)
    some = TABLES[:2]
    assert set(ours(tables=some).full_tables()) == {"user", "item"}
    assert not isinstance(ours(), EmbeddingCollection)  # TorchRec's sharder would take it


# As the pooled one


@pytest.mark.parametrize("layout", ["bucketed", "prefix"])
def test_padding_for_fused_kernels_changes_nothing(layout):
    model, full = ours(layout, fused_kernels=True), oracle()
    assert {w.shape[1] % 4 for w in model.parameters()} == {0}
    for one in (model, full):
        loss_of(one(ids()), 0).backward()
        torch.optim.Adagrad(one.parameters(), lr=0.1).step()
    assert_same_tables(model.full_tables(), masked_tables(full))


def test_a_plain_collection_s_state_is_pointed_to_load_full_tables():
    plain = EmbeddingCollection([dataclasses.replace(table) for table in TABLES])
    with pytest.raises(RuntimeError, match="give them to load_full_tables"):
        ours().load_state_dict(plain.state_dict())


def test_config_fields_without_effect_are_refused():
    table = dataclasses.replace(TABLES[0], use_virtual_table=True)
    with pytest.raises(InvalidInputError, match="'user': use_virtual_table should be False"):
        BudgetedEmbeddingCollection([table], PLAN)


def test_torchrec_s_default_sharder_does_not_take_it_apart():
    strips = ours().embedding_collections
    taken = ShardedEmbeddingCollection.__new__(ShardedEmbeddingCollection)
    with pytest.raises(ShardingError, match="BudgetedEmbeddingCollectionSharder"):
        setattr(strips, next(iter(strips)), taken)


@pytest.mark.parametrize(("layout", "row_order"), LAYOUTS)
def test_without_our_kernel_rows_and_gradients_are_the_same(layout, row_order, monkeypatch):
    """As on a GPU, in half precision, or without a compiler: routed, looked up, put together."""
    found = []
    for kernel in (True, False):
        if not kernel:
            monkeypatch.setattr(module, "by_kernel", lambda weights, ids: False)
        made = ours(layout, row_order)
        out = made(ids(seed=3))
        flat = torch.cat([one.values().flatten() for one in out.values()])
        flat.tanh().square().sum().backward()
        found.append((flat, [weight.grad for weight in made.parameters()]))
    torch.testing.assert_close(*found)
