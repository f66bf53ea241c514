"""Weights and optimizer state carried from plan to plan, against numpy on the full tables."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from checkpoint_cases import (
    difference,
    everything,
    plain_model,
    run_ranks,
    sharded_model,
    sharded_tables,
    torch_optimizer,
    train,
)
from sharded_cases import TABLES, batch, full_tables, make_module, make_plan, table_configs
from torch.utils._python_dispatch import TorchDispatchMode
from torchrec import EmbeddingBagCollection

from bet_torchrec import Budget, RowCounts, SizePlan
from bet_torchrec.embeddings import migrate
from bet_torchrec.errors import InvalidInputError

OLD, NEW = make_plan(0), make_plan(7)  # rows grow, shrink, come and go, and change their rank
LAYOUTS = [("bucketed", "ranked"), ("prefix", "interleaved")]


def expected(name, old_values, old_sizes, new_values, new_sizes):
    """What a table should hold: the old prefix, then what was there, then zeros."""
    width = new_values.shape[1]
    column = np.arange(width)[None]
    old = np.zeros(new_values.shape, np.float32)
    shared = min(width, old_values.shape[1])
    old[:, :shared] = old_values[:, :shared]
    kept = np.where(column < old_sizes[:, None], old, new_values)
    return np.where(column < new_sizes[:, None], kept, 0)


def check(old, new, old_plan, new_plan, initial):
    """Every table's weights after a migration."""
    for table in TABLES:
        name, full = table.name, np.full(table.num_embeddings, table.embedding_dim)
        want = expected(
            name,
            old[name].numpy(),
            full if old_plan is None else old_plan.sizes(name),
            initial[name].numpy(),
            full if new_plan is None else new_plan.sizes(name),
        )
        np.testing.assert_array_equal(new[name].numpy(), want, err_msg=name)


def weights(ebc):
    """A plain collection's tables."""
    return {t.name: ebc.embedding_bags[t.name].weight.detach().clone() for t in TABLES}


def full_collection(seed=3):
    """A plain collection with drawn weights."""
    ebc = EmbeddingBagCollection(tables=table_configs())
    tables = full_tables(seed)
    with torch.no_grad():
        for name, values in tables.items():
            ebc.embedding_bags[name].weight.copy_(values)
    return ebc


@pytest.mark.parametrize(("layout", "row_order"), LAYOUTS)
def test_full_table_to_plan_to_plan_and_back(layout, row_order) -> None:
    full = full_collection()
    first = migrate(full, OLD, layout=layout, row_order=row_order)
    assert (first.layout, first.row_order, first.plan) == (layout, row_order, OLD)
    check(weights(full), first.full_tables(), None, OLD, full_tables())
    for other, order in LAYOUTS:
        second = make_module(NEW, layout=other, row_order=order)
        initial = second.full_tables()
        assert migrate(first, second, chunk_rows=7) is second
        check(first.full_tables(), second.full_tables(), OLD, NEW, initial)
    third = migrate(first, NEW)
    assert (third.layout, third.row_order) == (layout, row_order)

    target = full_collection(9)
    initial = weights(target)
    migrate(first, target)
    check(first.full_tables(), weights(target), OLD, None, initial)
    migrate(first, target, rest="zeros")
    assert difference(weights(target), first.full_tables()) == 0


def state_tables(module, optimizer, name):
    """A torch optimizer's state as full tables, and where there is any."""
    tables, there = {}, {}
    for table in module.tables:
        values = np.zeros((table.num_embeddings, table.embedding_dim), np.float32)
        where = np.zeros(values.shape, bool)
        for block in module.blocks[table.name]:
            ids = block.ids(module.plan[table.name])
            state = optimizer.state[module.weight(block)][name].numpy()
            values[ids, block.columns] = state
            where[ids, block.columns] = True
        tables[table.name], there[table.name] = values, where
    return tables, there


@pytest.mark.parametrize(("name", "states"), [("adagrad", ["sum"]), ("adam", ["exp_avg_sq"])])
@pytest.mark.parametrize(("layout", "row_order"), LAYOUTS)
def test_state_moves_with_its_weight(name, states, layout, row_order) -> None:
    model, optimizers = plain_model(name, "bucketed")
    train(model, optimizers, range(4))
    target = make_module(NEW, layout=layout, row_order=row_order)
    new = torch_optimizer(name, target.parameters())
    migrate(model.tables, target, optimizer=optimizers, target_optimizer=new, chunk_rows=11)
    for state in states:
        old_values, _ = state_tables(model.tables, optimizers[0], state)
        values, there = state_tables(target, new, state)
        for table in TABLES:
            column = np.arange(table.embedding_dim)[None]
            had = column < OLD.sizes(table.name)[:, None]
            want = np.where(had & there[table.name], old_values[table.name], 0)
            np.testing.assert_array_equal(values[table.name], want)
    for weight in target.parameters():
        assert new.state[weight]["step"] == (4 if name == "adam" else new.state[weight]["step"])


@pytest.mark.parametrize("name", ["sgd", "adagrad", "adam"])
def test_training_goes_on_as_if_nothing_had_happened(name) -> None:
    for layout, row_order in LAYOUTS:
        model, optimizers = plain_model(name, "bucketed")
        train(model, optimizers, range(3))
        moved, others = plain_model(name, layout)
        moved.tables = make_module(OLD, layout=layout, row_order=row_order)
        others = [torch_optimizer(name, moved.tables.parameters())]
        migrate(model.tables, moved.tables, optimizer=optimizers, target_optimizer=others)
        moved.top, moved.seen = model.top, model.seen
        for one, own in ((model, optimizers[:1]), (moved, others)):
            for step in range(3, 6):
                kjt, target = batch(step)
                (one(kjt) - target).square().sum(1).mean().backward()
                own[0].step()
                one.zero_grad()
        assert (
            difference(
                everything(moved) | {"seen": 0 * model.seen},
                everything(model) | {"seen": 0 * model.seen},
            )
            <= 1e-6
        )


def row_state(module, optimizer):
    """Row-wise Adagrad's values in full tables, each as wide as its row's part."""
    tables = {}
    for table in module.tables:
        values = np.full((table.num_embeddings, table.embedding_dim), np.nan, np.float32)
        for block in module.blocks[table.name]:
            ids = block.ids(module.plan[table.name])
            values[ids, block.columns] = optimizer.state[module.weight(block)]["sum"].numpy()
        tables[table.name] = values
    return tables


@pytest.mark.parametrize("plans", [(OLD, OLD), (OLD, NEW)], ids=["same", "other"])
@pytest.mark.parametrize("way", [("bucketed", "prefix"), ("prefix", "bucketed")])
def test_a_value_a_row_is_copied_or_averaged_by_width(plans, way) -> None:
    from torchrec.optim.rowwise_adagrad import RowWiseAdagrad

    modules = [make_module(p, layout=w) for p, w in zip(plans, way, strict=True)]
    old, new = (RowWiseAdagrad(module.parameters()) for module in modules)
    for weight in modules[0].parameters():
        old.state[weight]["sum"] = torch.rand(len(weight), 1)
    for weight in modules[1].parameters():
        new.state[weight]["sum"] = torch.full((len(weight), 1), -1.0)  # "as it was"
    before, was = row_state(modules[0], old), row_state(modules[1], new)
    migrate(*modules, optimizer=old, target_optimizer=new, chunk_rows=5)
    after = row_state(modules[1], new)
    for table in TABLES:
        for block in modules[1].blocks[table.name]:
            for row in block.ids(plans[1][table.name]):
                got = after[table.name][row, block.columns]
                from_here = before[table.name][row, block.columns]
                from_here = from_here[~np.isnan(from_here)]
                want = from_here.mean() if len(from_here) else was[table.name][row, block.columns]
                np.testing.assert_allclose(got, want, rtol=1e-6)
    steps = [float(new.state[w]["step"]) for w in modules[1].parameters()]
    assert set(steps) == {0.0}


def test_what_does_not_fit_is_refused() -> None:
    full = full_collection()
    model, optimizers = plain_model("adam", "bucketed")
    with pytest.raises(InvalidInputError, match=r"give the collection inside"):
        migrate(model, OLD)
    with pytest.raises(InvalidInputError, match="same tables and rows"):
        migrate(full, EmbeddingBagCollection(tables=table_configs()[:1]))
    with pytest.raises(InvalidInputError, match="with a plan as target"):
        migrate(full, model.tables, layout="prefix")
    with pytest.raises(InvalidInputError, match="chunk_rows"):
        migrate(full, model.tables, chunk_rows=0)
    with pytest.raises(InvalidInputError, match="same optimizer, got sgd and adam"):
        migrate(
            full,
            model.tables,
            optimizer=torch.optim.SGD(full.parameters()),
            target_optimizer=optimizers,
        )


WAYS = [  # source: how, optimizer, layout; target: how, layout
    (("table_wise", "adagrad", "bucketed"), ("row_wise", "prefix")),
    (("column_wise", "adagrad", "prefix"), ("data_parallel", "bucketed")),
    (("data_parallel", "adagrad", "bucketed"), ("table_wise", "prefix")),
    (("row_wise", "sgd", "prefix"), ("column_wise", "bucketed")),
    (("row_wise", "adam", "bucketed"), ("column_wise", "prefix")),
    (("table_wise", "rowwise_adagrad", "bucketed"), ("row_wise", "bucketed")),
    (("mixed", "adam", "bucketed"), ("mixed", "prefix")),
]


def migrations(rank, world, keep):
    """Each way: tables before, of the target before and after, and both trained on after it."""
    found = {}
    for source, (how, layout) in WAYS:
        name = source[1]
        model, optimizers = sharded_model(*source, world)
        train(model, optimizers, range(3), rank, world)
        target, others = sharded_model(how, name, layout, world, plan=NEW, tables=full_tables(8))
        tables = model.module.tables, target.module.tables
        before = tables[1].full_tables()
        options = {"optimizer": optimizers, "target_optimizer": others, "chunk_rows": 7}
        migrate(*tables, **options)
        moved = tables[0].full_tables(), before, tables[1].full_tables()

        # the same plan cut otherwise trains on as if nothing had happened
        target, others = sharded_model(how, name, layout, world, tables=full_tables(8))
        migrate(tables[0], target.module.tables, **{**options, "target_optimizer": others})
        target.module.top.load_state_dict(model.module.top.state_dict())
        others[-1].load_state_dict(copy.deepcopy(optimizers[-1].state_dict()))
        for one, own in ((model, optimizers), (target, others)):
            train(one, own, range(3, 6), rank, world)
        ends = [{**everything(one), "seen": torch.zeros(1)} for one in (model, target)]
        found[source, how, layout] = moved, difference(*ends)
    return found, plain_sides(rank, world)


def plain_sides(rank, world):
    """From and to plain collections, sharded and not."""
    model, optimizers = sharded_model("table_wise", "adagrad", "bucketed", world)
    train(model, optimizers, range(3), rank, world)
    budgeted = model.module.tables
    here = full_collection(9)
    migrate(budgeted, here, rest="zeros", chunk_rows=7)
    plain = sharded_tables(full_collection(4), "column_wise", "adagrad", world)
    migrate(budgeted, plain.module.tables, rest="zeros")
    again, others = sharded_model("column_wise", "adagrad", "prefix", world, tables=full_tables(8))
    migrate(plain.module.tables, again.module.tables)
    again.module.top.load_state_dict(model.module.top.state_dict())
    others[-1].load_state_dict(copy.deepcopy(optimizers[-1].state_dict()))
    found = {
        "to a plain one": difference(weights(here), budgeted.full_tables()),
        "through a sharded plain one": difference(
            again.module.tables.full_tables(), budgeted.full_tables()
        ),
    }
    for one, own in ((model, optimizers), (again, others)):
        train(one, own, range(3, 6), rank, world)
    ends = [{**everything(one), "seen": torch.zeros(1)} for one in (model, again)]
    found["and its state"] = difference(*ends)
    return found


@pytest.mark.distributed
def test_sharded_to_sharded() -> None:
    for found, plain in run_ranks(2, migrations):
        for (source, how, layout), ((old, initial, new), trained) in found.items():
            check(old, new, OLD, NEW, initial)
            assert trained <= (1e-6 if source[1] == "sgd" else 1e-5), (source, how, layout)
        assert plain["to a plain one"] == plain["through a sharded plain one"] == 0
        assert plain["and its state"] <= 1e-5


class Largest(TorchDispatchMode):
    """The most bytes of a tensor that was made, views of what was there left out."""

    def __init__(self, *modules):
        super().__init__()
        self.bytes, self._known = 0, set()
        for module in modules:
            for weight in module.parameters():
                self._known.add(weight.untyped_storage().data_ptr())

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for one in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(one, torch.Tensor) and one.dtype.is_floating_point:
                storage = one.untyped_storage()
                if storage.data_ptr() not in self._known:
                    self.bytes = max(self.bytes, storage.nbytes())
        return out


def test_never_holds_a_full_table() -> None:
    rows, width = 5000, 16
    from torchrec import EmbeddingBagConfig

    table = EmbeddingBagConfig(
        name="a", num_embeddings=rows, embedding_dim=width, feature_names=["f"]
    )
    rng = np.random.default_rng(0)

    def plan():
        sizes = {"a": rng.choice([0, 4, 8, 16], rows)}
        counts = {"a": RowCounts.from_rows(np.arange(rows))}
        budget = Budget.parameters(rows * width)
        return SizePlan.from_sizes([table], sizes, counts, budget=budget, sizer="test")

    from bet_torchrec.embeddings import BudgetedEmbeddingBagCollection

    source, target = (BudgetedEmbeddingBagCollection([table], plan()) for _ in range(2))
    with Largest(source, target) as largest:
        migrate(source, target, chunk_rows=64)
    assert 0 < largest.bytes <= 64 * width * 4
