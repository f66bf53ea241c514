"""Widths that fused kernels don't take: padded in real tables, counted, never looked at."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from masked_cases import LAYOUTS, assert_alike, bags, config, masked, plan_of, values_of
from sharded_cases import TABLES as SHARDED_TABLES
from sharded_cases import all_rows, batch, full_tables, masks, run_ranks

from bet_torchrec import Budget, BudgetPlanner, EqualSizes, MemoryModel, RowCounts, SizePlan
from bet_torchrec.embeddings import BudgetedEmbeddingBagCollection, migrate, quantize
from bet_torchrec.errors import InvalidInputError, PlanError

TABLES = [config("t", 12, 7, "f", "g"), config("u", 5, 6, "h")]
SIZES = {"t": [7, 7, 6, 6, 3, 3, 1, 1, 1, 0, 0, 4], "u": [1, 1, 1, 1, 1]}
ROWS = {"f": 12, "g": 12, "h": 5}


def fused_budget(amount=10**5, optimizer="sgd"):
    return Budget.bytes(
        amount, purpose="training", dtype="fp32", optimizer=optimizer, fused_kernels=True
    )


def padded(layout="bucketed", row_order="ranked", budget=None, **options):
    plan = plan_of(TABLES, SIZES, budget or fused_budget())
    return BudgetedEmbeddingBagCollection(
        TABLES, plan, layout=layout, row_order=row_order, **options
    ).load_full_tables(values_of(TABLES))


# The account


@pytest.mark.parametrize("optimizer", ["sgd", "adagrad", "rowwise_adagrad", "adam"])
@given(width=st.integers(0, 40))
def test_a_row_costs_what_the_next_multiple_of_four_does(optimizer, width):
    plain, fused = (
        MemoryModel(unit="bytes", purpose="training", optimizer=optimizer, fused_kernels=flag)
        for flag in (False, True)
    )
    assert fused.row_cost(width) == plain.row_cost(-(-width // 4) * 4)
    if width % 4 == 0:
        assert fused.row_cost(width) == plain.row_cost(width)


@pytest.mark.parametrize("optimizer", ["sgd", "adagrad", "rowwise_adagrad"])
def test_bytes_are_what_the_budget_counted(optimizer):
    model = padded(budget=fused_budget(optimizer=optimizer))
    assert {w.shape[1] % 4 for w in model.parameters()} == {0}
    real = sum(w.nbytes for w in model.parameters())
    state = {
        "sgd": 0,
        "adagrad": real,
        "rowwise_adagrad": sum(4 * len(w) for w in model.parameters()),
    }
    assert real + state[optimizer] + model.router.id_map_bytes == model.plan.cost()


def test_a_planner_stays_within_a_budget_of_padded_rows():
    counts = {"t": np.arange(12, 0, -1), "u": np.arange(5, 0, -1)}
    planner = BudgetPlanner(
        budget=fused_budget(300), widths=tuple(range(8)), sizer=EqualSizes(), seed=0
    )
    model = BudgetedEmbeddingBagCollection(TABLES, planner.plan(TABLES, counts))
    assert 200 < sum(w.nbytes for w in model.parameters()) <= 300


def test_padding_that_the_budget_did_not_count_is_refused():
    plain = Budget.bytes(10**5, purpose="training", dtype="fp32", optimizer="sgd")
    exact = Budget.bytes(
        plan_of(TABLES, SIZES, plain).cost(), purpose="training", dtype="fp32", optimizer="sgd"
    )
    assert not padded(budget=exact).fused_kernels
    with pytest.raises(PlanError, match=r"Budget.bytes\(..., fused_kernels=True\)"):
        padded(budget=exact, fused_kernels=True)
    # Parameters are no bytes: asked for, rows are padded.
    assert {
        w.shape[1] % 4 for w in padded(budget=Budget.sparsity(0), fused_kernels=True).parameters()
    } == {0}


def test_what_a_budget_of_other_things_cannot_say():
    with pytest.raises(InvalidInputError, match="purpose='training'"):
        Budget.bytes(9, purpose="inference", dtype="int8", fused_kernels=True)
    with pytest.raises(InvalidInputError, match="takes no purpose"):
        Budget(amount=9, unit="parameters", fused_kernels=True)
    for wrong in (0, -1, 1.5, True, "2"):
        with pytest.raises(InvalidInputError, match="world_size should be"):
            Budget.bytes(9, purpose="training", dtype="fp32", optimizer="sgd", world_size=wrong)


def test_plans_without_these_words_keep_their_fingerprints_and_files():
    plain = plan_of(
        TABLES, SIZES, Budget.bytes(10**5, purpose="training", dtype="fp32", optimizer="sgd")
    )
    assert plain.fingerprint() == "10e6f021eec595c6"
    for budget in (fused_budget(), Budget.sparsity(0)):
        plan = plan_of(TABLES, SIZES, budget)
        assert SizePlan.from_bytes(plan.to_bytes()) == plan
        assert plan.fingerprint() != plain.fingerprint()


# What it does


def padding_of(model):
    for own in model.blocks.values():
        for block in own:
            yield model.weight(block).detach()[:, block.width :]


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adagrad", "adam"])
@pytest.mark.parametrize(("layout", "row_order"), LAYOUTS)
def test_padded_tables_are_the_masked_full_ones(layout, row_order, optimizer):
    model = padded(layout, row_order)
    full = masked(TABLES, model.plan, values_of(TABLES))
    assert sum(part.numel() for part in padding_of(model)) > 10
    for seed in range(3):
        assert_alike(model(bags(seed, rows=ROWS)), full(bags(seed, rows=ROWS)))
    for module in (model, full):
        step = {
            "sgd": lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=0.1),
            "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
            "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.1),
            "adam": lambda p: torch.optim.Adam(p, lr=0.1),
        }[optimizer](module.parameters())
        for seed in range(4):
            step.zero_grad()
            module(bags(seed, rows=ROWS)).values().tanh().square().sum().backward()
            step.step()
    found = model.full_tables()
    for name, bag in full.embedding_bags.items():
        torch.testing.assert_close(found[name], bag.weight.detach(), atol=1e-6, rtol=1e-5)
    assert not any(part.any() for part in padding_of(model))  # zeros from the first draw on


def test_padding_is_zero_whenever_weights_are_drawn():
    model = BudgetedEmbeddingBagCollection(TABLES, plan_of(TABLES, SIZES, fused_budget()))
    assert not any(part.any() for part in padding_of(model))
    model.reset_parameters()
    assert not any(part.any() for part in padding_of(model))


def test_padded_tables_migrate_and_are_quantised_as_others():
    model = padded()
    plain = plan_of(TABLES, SIZES, Budget.sparsity(0))
    bare = migrate(model, plain)
    assert {w.shape[1] for w in bare.parameters()} == {7, 6, 4, 3, 1}
    for name, table in model.full_tables().items():
        assert torch.equal(table, bare.full_tables()[name])
    back = migrate(bare, model.plan)
    assert all(
        torch.equal(a, b) for a, b in zip(back.parameters(), model.parameters(), strict=True)
    )
    served, expected = quantize(model, precision="fp16"), quantize(bare, precision="fp16")
    assert torch.equal(served(bags(rows=ROWS)).values(), expected(bags(rows=ROWS)).values())


def test_padded_states_migrate_with_their_rows():
    model = padded()
    optimizer = torch.optim.Adagrad(model.parameters(), lr=0.1)
    model(bags(rows=ROWS)).values().square().sum().backward()
    optimizer.step()
    target = BudgetedEmbeddingBagCollection(TABLES, plan_of(TABLES, SIZES))
    other = torch.optim.Adagrad(target.parameters(), lr=0.1)
    migrate(model, target, optimizer=optimizer, target_optimizer=other)
    for name, own in model.blocks.items():
        for block, bare in zip(own, target.blocks[name], strict=True):
            state = optimizer.state[model.weight(block)]["sum"][:, : block.width]
            assert torch.equal(state, other.state[target.weight(bare)]["sum"])


# Sharded


def narrow_plan() -> SizePlan:
    """Widths 1, 3, 6 and 13 of the sharding tests' tables."""
    sizes = {
        "a": np.repeat([13, 6, 3, 1, 0], [5, 8, 8, 5, 4]),
        "b": np.array([1, 3, 6] * 5 + [0, 1]),
    }
    counts = {
        t.name: RowCounts.from_rows(np.arange(t.num_embeddings)[::-1].copy())
        for t in SHARDED_TABLES
    }
    budget = Budget.bytes(
        10**5,
        purpose="training",
        dtype="fp32",
        optimizer="adagrad",
        fused_kernels=True,
        world_size=2,
    )
    return SizePlan.from_sizes(SHARDED_TABLES, sizes, counts, budget=budget, sizer="test")


def fused_training(rank: int, world: int, cases: list[tuple[str, str]]) -> list[dict[str, Any]]:
    import torchrec
    from fbgemm_gpu.split_embedding_configs import EmbOptimType
    from torchrec.distributed.planner import EmbeddingShardingPlanner, Topology

    from bet_torchrec.embeddings import BudgetedEmbeddingBagCollectionSharder, sharding_constraints
    from bet_torchrec.embeddings.parts import parts_of

    found = []
    for how, layout in cases:
        module = BudgetedEmbeddingBagCollection(
            SHARDED_TABLES, narrow_plan(), layout=layout, row_order="interleaved", device="meta"
        )
        fused = {"optimizer": EmbOptimType.EXACT_ADAGRAD, "learning_rate": 0.05, "eps": 1e-8}
        sharder = BudgetedEmbeddingBagCollectionSharder(fused, sharding_types=["table_wise", how])
        plan = EmbeddingShardingPlanner(
            topology=Topology(world_size=world, compute_device="cpu"),
            constraints=sharding_constraints(module, sharding_types=[how], world_size=world),
        ).collective_plan(module, [sharder], torch.distributed.group.WORLD)
        model = torchrec.distributed.DistributedModelParallel(
            module, device=torch.device("cpu"), plan=plan, sharders=[sharder]
        )
        model.module.load_full_tables(full_tables())
        for step in range(8):
            kjt, target = batch(step, rank, world)
            (model(kjt).values() - target[:, :40]).square().sum(1).mean().backward()
        blocks = {b.name: b for own in model.module.blocks.values() for b in own}
        state = model.module.embedding_bag_collection.state_dict()
        filled = [
            part.values[:, max(0, block.width - part.column) :].abs().sum().item()
            for name, block in blocks.items()
            for part in parts_of(state[f"embedding_bags.{name}.weight"])
        ]
        tables = {name: table.numpy() for name, table in all_rows(model).items()}
        whole = {name: table.numpy() for name, table in model.module.full_tables().items()}
        found.append({"tables": tables, "whole": whole, "padding": sum(filled)})
    return found


def expected_training() -> dict[str, torch.Tensor]:
    plan = narrow_plan()
    full = masked(SHARDED_TABLES, plan, full_tables())
    optimizer = torch.optim.Adagrad(full.parameters(), lr=0.05, eps=1e-8)
    for step in range(8):
        kjt, target = batch(step)
        optimizer.zero_grad()
        (full(kjt).values() - target).square().sum(1).mean().backward()
        optimizer.step()
    return {name: bag.weight.detach() for name, bag in full.embedding_bags.items()}


@pytest.mark.distributed
def test_widths_1_3_6_and_13_train_in_fused_kernels_on_two_ranks():
    cases = [("table_wise", "bucketed"), ("table_wise", "prefix"), ("row_wise", "bucketed")]
    cases += [("column_wise", "bucketed")]
    expected = expected_training()
    assert set(masks(narrow_plan())) == set(expected)
    for results in run_ranks(2, fused_training, cases):
        for case, result in zip(cases, results, strict=True):
            assert result["padding"] == 0, case
            for kind in ("tables", "whole"):
                for name, table in result[kind].items():
                    error = (torch.from_numpy(table) - expected[name]).abs().max().item()
                    assert error <= 1e-5, (case, kind, name, error)
