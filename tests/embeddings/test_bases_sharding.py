"""Sharded tables with bases against one process, on real gloo ranks."""

from __future__ import annotations

from dataclasses import replace

import pytest
import sequence_ranks
import torch
from checkpoint_cases import LR, Model, fill_dense, sharded_tables
from sharded_cases import batch, full_tables, make_module, make_plan, run_ranks

from bet_torchrec import Budget, SizePlan
from bet_torchrec.embeddings import (
    BudgetedEmbeddingCollection,
    load_checkpoint,
    migrate,
    save_checkpoint,
)
from bet_torchrec.errors import ShardingError

KINDS = {"a": "trained", "b": "fixed"}
CASES = [
    ("table_wise", False, "bucketed"),
    ("row_wise", False, "prefix"),
    ("data_parallel", True, "bucketed"),
]
STEPS = 4


def based(kinds=KINDS, seed=0, budget=None) -> SizePlan:
    plan = make_plan(seed)
    tables = tuple(replace(table, basis=kinds.get(table.name)) for table in plan.tables)
    return SizePlan(tables, budget or Budget.parameters(10**5), "test")


def steps(model, optimizer, rank=0, world=1):
    for step in range(STEPS):
        kjt, target = batch(step, rank, world)
        (model(kjt) - target).square().sum(1).mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def one_process(layout):
    module = make_module(based(), layout=layout, row_order="interleaved")
    model = Model(module.load_full_tables(full_tables()))
    fill_dense(model)
    steps(model, torch.optim.SGD(module.parameters(), lr=LR))
    return module


def unpooled_plan() -> SizePlan:
    plan = sequence_ranks.make_plan()
    tables = tuple(replace(table, basis=KINDS[table.name]) for table in plan.tables)
    return SizePlan(tables, Budget.parameters(10**5), "test")


def unpooled_in_one_process():
    module = BudgetedEmbeddingCollection(sequence_ranks.TABLES, unpooled_plan())
    model = sequence_ranks.Model(module.load_full_tables(sequence_ranks.full_tables()))
    sequence_ranks.fill_dense(model)
    tables = torch.optim.SGD(module.parameters(), lr=LR)
    top = torch.optim.Adam(model.top.parameters(), lr=LR)
    sequence_ranks.train(model, [tables, top], range(STEPS))
    return module


def unpooled_scene(rank, world):
    model, optimizers = sequence_ranks.sharded_model(
        "table_wise", "sgd", "bucketed", world, plan=unpooled_plan()
    )
    tables = model.module.tables
    axes = torch.optim.SGD(tables.bases.parameters(), lr=LR)
    sequence_ranks.train(model, [*optimizers, axes], range(STEPS), rank, world)
    return {name: table.numpy() for name, table in tables.full_tables().items()}


def scene(rank, world, folder):
    found = {}
    for how, dense, layout in CASES:
        module = make_module(based(), layout=layout, row_order="interleaved", device="meta")
        model = sharded_tables(module, how, "sgd", world, dense=dense)
        tables = model.module.tables
        tables.load_full_tables(full_tables())
        names = dict(model.named_parameters())
        assert [name for name in names if "bases" in name] == ["tables.bases.axes_a"]
        own = list(names.values()) if dense else [names["tables.bases.axes_a"]]
        own = [weight for weight in own if weight.shape != (40, 40) and weight.shape != (40,)]
        fill_dense(model.module)
        steps(model, torch.optim.SGD(own, lr=LR), rank, world)
        found[how] = (
            {name: table.numpy() for name, table in tables.full_tables().items()},
            {name: basis.axes.numpy() for name, basis in tables.table_bases().items()},
        )
        save_checkpoint(tables, f"{folder}/{how}")
        if how == "table_wise":
            plain = make_module(make_plan(7), row_order="interleaved", device="meta")
            other = sharded_tables(plain, "row_wise", "sgd", world).module.tables
            migrate(tables, other, rest="zeros")
            back = make_module(based(seed=7), row_order="interleaved", device="meta")
            again = sharded_tables(back, "table_wise", "sgd", world).module.tables
            migrate(other, again, rest="zeros")
            found["plain"] = {n: t.numpy() for n, t in other.full_tables().items()}
            found["again"] = {n: t.numpy() for n, t in again.full_tables().items()}
    found["unpooled"] = unpooled_scene(rank, world)
    return found


@pytest.mark.distributed
def test_sharded_as_in_one_process(tmp_path):
    ranks = run_ranks(2, scene, str(tmp_path))
    for how, _, layout in CASES:
        module = one_process(layout)
        for found in ranks:
            tables, bases = found[how]
            for name, table in module.full_tables().items():
                torch.testing.assert_close(
                    torch.from_numpy(tables[name]), table, atol=1e-5, rtol=1e-4
                )
            for name, basis in module.table_bases().items():
                torch.testing.assert_close(
                    torch.from_numpy(bases[name]), basis.axes, atol=1e-5, rtol=1e-4
                )
        loaded = make_module(based(), layout=layout, row_order="interleaved")
        load_checkpoint(loaded, tmp_path / how, optimizer_state=False)
        for name, table in loaded.full_tables().items():
            assert (table - torch.from_numpy(ranks[0][how][0][name])).abs().max() < 1e-6
    for name, table in unpooled_in_one_process().full_tables().items():
        for found in ranks:
            own = torch.from_numpy(found["unpooled"][name])
            torch.testing.assert_close(own, table, atol=1e-5, rtol=1e-4)
    # Migrations on the ranks are those of one process.
    source = make_module(based(), row_order="interleaved")
    load_checkpoint(source, tmp_path / "table_wise", optimizer_state=False)
    plain = migrate(source, make_plan(7), rest="zeros")
    again = migrate(plain, based(seed=7), rest="zeros")
    for found in ranks:
        for which, made in (("plain", plain), ("again", again)):
            for name, table in made.full_tables().items():
                error = (torch.from_numpy(found[which][name]) - table).abs().max()
                assert error < 1e-5, (which, name)


def test_axes_take_no_optimizer_in_backward():
    from torch.distributed.optim import _apply_optimizer_in_backward
    from torchrec.distributed.types import ParameterSharding

    from bet_torchrec.embeddings.sharding.checks import check_sharding

    module = make_module(based())
    _apply_optimizer_in_backward(torch.optim.SGD, module.bases.parameters(), {"lr": LR})
    params = {
        block.name: ParameterSharding(sharding_type="data_parallel", compute_kernel="dense")
        for own in module.blocks.values()
        for block in own
    }
    with pytest.raises(ShardingError, match="bases.axes_a: what apply_optimizer_in_backward"):
        check_sharding(module, params, {}, 2, torch.device("cpu"))


def test_every_rank_s_bases_are_in_the_account():
    from torchrec.distributed.types import ParameterSharding

    from bet_torchrec.embeddings.sharding.storage import check_memory

    budget = Budget.bytes(10**6, purpose="training", dtype="fp32", optimizer="sgd")
    plan = based({"a": "fixed"}, budget=budget)
    tight = replace(plan, budget=replace(budget, amount=plan.cost()))
    module = make_module(tight)
    params = {
        block.name: ParameterSharding(sharding_type="table_wise", compute_kernel="fused", ranks=[0])
        for own in module.blocks.values()
        for block in own
    }
    from torch.distributed._shard.sharding_spec import EnumerableShardingSpec, ShardMetadata

    for own in module.blocks.values():
        for block in own:
            shard = ShardMetadata([0, 0], [block.rows, block.real_width], "rank:0/cpu")
            params[block.name].sharding_spec = EnumerableShardingSpec([shard])
    check_memory(module, params, {}, 1)
    with pytest.raises(ShardingError, match="on 2 ranks tables, id maps, bases"):
        check_memory(module, params, {}, 2)
    paid = replace(plan, budget=replace(budget, world_size=2))
    exact = replace(paid, budget=replace(paid.budget, amount=paid.cost()))
    check_memory(make_module(exact), params, {}, 2)
    assert exact.cost() - tight.cost() == plan["a"].axes * 16 * 4 + 17 * 4
