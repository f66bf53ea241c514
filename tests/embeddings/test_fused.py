"""The CPU step of our own against the masked full table in plain torch."""

from __future__ import annotations

import shutil

import pytest
import torch
from sharded_cases import TABLES, all_rows, batch, full_tables, make_module, make_plan, reference
from torchrec import EmbeddingBagConfig, KeyedJaggedTensor, PoolingType

from bet_torchrec import Budget, RowCounts, SizePlan
from bet_torchrec.embeddings import BudgetedEmbeddingBagCollection, IdRangeError
from bet_torchrec.embeddings.fused import CompilerError, FusedBudgetedEmbeddingBagCollection
from bet_torchrec.embeddings.native.build import library
from bet_torchrec.errors import InvalidInputError

pytestmark = pytest.mark.skipif(
    not any(shutil.which(name) for name in ("g++", "c++", "clang++")), reason="no C++ compiler"
)
STEPS, LR = 12, 0.05


def fused(optimizer="sgd", lr=LR, **options):
    module = make_module(make_plan(), **options).load_full_tables(full_tables())
    return FusedBudgetedEmbeddingBagCollection(module, optimizer=optimizer, lr=lr)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("row_order", ["ranked", "interleaved"])
@pytest.mark.parametrize("optimizer", ["sgd", "rowwise_adagrad", "adagrad"])
def test_training_is_the_masked_full_table_s(optimizer, row_order, threads):
    expected = reference(optimizer, STEPS, LR)
    model = fused(optimizer, row_order=row_order)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for step in range(STEPS):
            kjt, target = batch(step)
            (model(kjt).values() - target).square().sum(1).mean().backward()
    finally:
        torch.set_num_threads(before)
    for name, table in all_rows(model).items():
        torch.testing.assert_close(table, expected[name], atol=2e-6, rtol=1e-5)
        torch.testing.assert_close(model.module.full_tables()[name], table)


@pytest.mark.parametrize("optimizer", ["sgd", "rowwise_adagrad", "adagrad"])
def test_threads_change_nothing_but_rounding_order(optimizer):
    results = []
    for threads in (1, 2):
        model, before = fused(optimizer), torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            for step in range(3):
                kjt, target = batch(step)
                (model(kjt).values() * target).sum().backward()
        finally:
            torch.set_num_threads(before)
        results.append(model.module.full_tables())
    for name in results[0]:
        torch.testing.assert_close(results[0][name], results[1][name], atol=1e-6, rtol=1e-5)


def test_bag_weights_and_mean_pooling():
    tables = [
        EmbeddingBagConfig(
            name="t", num_embeddings=9, embedding_dim=6, feature_names=["f"], pooling=pooling
        )
        for pooling in (PoolingType.SUM, PoolingType.MEAN)
    ]
    ids, lengths = torch.tensor([0, 0, 3, 8, 5]), torch.tensor([3, 0, 2])
    weights = torch.tensor([0.5, 2.0, -1.0, 3.0, 0.25])
    kjt = KeyedJaggedTensor(keys=["f"], values=ids, lengths=lengths, weights=weights)
    gradient = torch.randn(3, 6)
    for table in tables:
        plan = SizePlan.from_sizes(
            [table],
            {"t": torch.tensor([6, 6, 3, 3, 3, 1, 1, 0, 0]).numpy()},
            {"t": RowCounts.from_rows(list(range(9, 0, -1)))},
            budget=Budget.parameters(99),
            sizer="test",
        )
        twin = BudgetedEmbeddingBagCollection([table], plan, is_weighted=True)
        start = {"t": torch.randn(9, 6)}
        twin.load_full_tables(start)
        module = BudgetedEmbeddingBagCollection([table], plan, is_weighted=True)
        module.load_full_tables(start)
        model = FusedBudgetedEmbeddingBagCollection(module, optimizer="sgd", lr=LR)
        optimizer = torch.optim.SGD(twin.parameters(), lr=LR)
        for _ in range(3):
            ours, theirs = model(kjt).values(), twin(kjt).values()
            torch.testing.assert_close(ours, theirs)
            ours.backward(gradient)
            theirs.backward(gradient)
            optimizer.step()
            optimizer.zero_grad()
        torch.testing.assert_close(module.full_tables(), twin.full_tables())


def test_no_gradient_changes_nothing():
    model = fused()
    kjt, _ = batch(0)
    with torch.no_grad():
        out = model(kjt).values()
    assert not out.requires_grad
    start, plan = full_tables(), make_plan()
    for table in TABLES:
        sizes = torch.from_numpy(plan.sizes(table.name))[:, None]
        mask = torch.arange(table.embedding_dim)[None] < sizes
        assert torch.equal(model.module.full_tables()[table.name], start[table.name] * mask)


def test_a_new_learning_rate_counts():
    model = fused(lr=1e-30)
    before = model.module.full_tables()
    kjt, target = batch(0)
    (model(kjt).values() - target).square().sum().backward()
    torch.testing.assert_close(model.module.full_tables(), before, atol=1e-20, rtol=0)
    model.lr = 0.1
    (model(kjt).values() - target).square().sum().backward()
    assert not torch.equal(model.module.full_tables()["a"], before["a"])


def test_ids_are_checked():
    kjt, _ = batch(0)
    values = kjt.values().clone()
    values[-1] = 17  # table "b" has rows 0 to 16
    bad = KeyedJaggedTensor(keys=kjt.keys(), values=values, lengths=kjt.lengths())
    with pytest.raises(IdRangeError, match="0 to 16, got 17"):
        fused()(bad)


def test_what_it_cannot_take():
    plan = make_plan()
    with pytest.raises(InvalidInputError, match="bucketed"):
        FusedBudgetedEmbeddingBagCollection(
            make_module(plan, layout="prefix"), optimizer="sgd", lr=LR
        )
    with pytest.raises(InvalidInputError, match="optimizer should be one of"):
        FusedBudgetedEmbeddingBagCollection(make_module(plan), optimizer="adam", lr=LR)
    with pytest.raises(InvalidInputError, match="lr should be positive"):
        FusedBudgetedEmbeddingBagCollection(make_module(plan), optimizer="sgd", lr=0.0)
    with pytest.raises(InvalidInputError, match="fp32 on the CPU"):
        FusedBudgetedEmbeddingBagCollection(make_module(plan).half(), optimizer="sgd", lr=LR)


def test_no_compiler_is_a_clear_error(monkeypatch):
    library.cache_clear()
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(CompilerError, match="install g\\+\\+ or set CXX"):
        fused()(batch(0)[0])
    library.cache_clear()
