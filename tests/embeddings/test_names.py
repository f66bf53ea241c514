"""Names: a table keeps its own, and no two of a user's can be taken for one another."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from masked_cases import LAYOUTS, assert_alike, bags, config, masked, plan_of, values_of
from torchrec import EmbeddingBagCollection, KeyedJaggedTensor
from torchrec.distributed.embedding_types import EmbeddingComputeKernel
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.planner import EmbeddingShardingPlanner, Topology
from torchrec.distributed.planner.enumerators import EmbeddingEnumerator
from torchrec.distributed.planner.types import ParameterConstraints

import bet_torchrec
from bet_torchrec.embeddings import (
    BudgetedEmbeddingBagCollection,
    BudgetedEmbeddingBagCollectionSharder,
    IdMapReservation,
    sharding_constraints,
    with_dense_kernels,
)
from bet_torchrec.errors import InvalidInputError, ShardingError


def alike(tables, sizes, kjt, layout="bucketed", row_order="ranked", **options):
    """The collection's output, equal to the masked full tables'."""
    plan, values = plan_of(tables, sizes), values_of(tables)
    model = BudgetedEmbeddingBagCollection(
        tables, plan, layout=layout, row_order=row_order, **options
    ).load_full_tables(values)
    found = model(kjt)
    assert_alike(found, masked(tables, plan, values, **options)(kjt))
    return model, found


@pytest.mark.parametrize("layout", ["bucketed", "prefix"])
def test_a_table_of_one_width_keeps_its_own_name(layout):
    tables = [config("one", 4, 8, "f"), config("two", 4, 8, "g")]
    plan = plan_of(tables, {"one": [8, 8, 8, 0], "two": [8, 8, 4, 4]})
    model = BudgetedEmbeddingBagCollection(tables, plan, layout=layout)
    names = [c.name for c in model.embedding_bag_collection.embedding_bag_configs()]
    assert names[0] == "one"
    assert len(names) == 3
    assert "embedding_bag_collection.embedding_bags.one.weight" in model.state_dict()
    sharder = BudgetedEmbeddingBagCollectionSharder()
    assert list(sharder.shardable_parameters(model)) == names


def test_feature_and_table_names_with_slashes_do_not_collide():
    """Feature "x/y" of table "z" and feature "x" of table "y/z"."""
    tables = [config("z", 4, 4, "x/y"), config("y/z", 4, 4, "x")]
    alike(tables, {"z": [4, 4, 2, 2], "y/z": [4, 2, 2, 2]}, bags(rows={"x/y": 4, "x": 4}))


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("layout", "row_order"), LAYOUTS)
def test_a_feature_twice_on_a_table(layout, row_order, weighted):
    """Looked up, and put out, twice, as TorchRec does."""
    tables = [config("t", 6, 4, "f", "f", "g")]
    _, found = alike(
        tables,
        {"t": [4, 2, 2, 4, 0, 2]},
        bags(rows={"f": 6, "g": 6}, weighted=weighted),
        layout,
        row_order,
        is_weighted=weighted,
    )
    assert found.keys() == ["f@t", "f@t", "g"]


def test_a_feature_twice_on_a_table_trains_as_torchrec_does():
    tables, sizes = [config("t", 6, 4, "f", "f")], {"t": [4, 2, 2, 4, 0, 2]}
    kjt = bags(rows={"f": 6})
    model, _ = alike(tables, sizes, kjt)
    full = masked(tables, model.plan, values_of(tables))
    for module in (model, full):
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        module(kjt).values().square().sum().backward()
        optimizer.step()
    torch.testing.assert_close(
        model.full_tables()["t"], full.embedding_bags["t"].weight.detach(), atol=1e-6, rtol=1e-5
    )


def test_a_table_called_as_another_s_block_is_refused():
    tables = [config("t", 3, 8, "f"), config("t/w4", 3, 4, "g")]
    plan = plan_of(tables, {"t": [8, 8, 4], "t/w4": [4, 4, 4]})
    with pytest.raises(InvalidInputError, match="'t' and 't/w4' would both .*rename"):
        BudgetedEmbeddingBagCollection(tables, plan)


@pytest.mark.parametrize("name", ["type", "half", "keys", "training", "_modules"])
def test_a_table_called_as_an_attribute_of_modules(name):
    """TorchRec's own collection refuses these with a bare KeyError."""
    tables = [config(name, 4, 4, "f")]
    model = BudgetedEmbeddingBagCollection(tables, plan_of(tables, {name: [4] * 4}))
    assert model.embedding_bag_configs() == tables
    assert [block.name for block in model.blocks[name]] == [f"{name}/w4"]
    assert model(bags(rows={"f": 4})).keys() == ["f"]


def test_a_table_with_a_dot_in_its_name_is_refused():
    tables = [config("a.b", 4, 4, "f")]
    with pytest.raises(InvalidInputError, match="no '.', which separates modules, got 'a.b'"):
        BudgetedEmbeddingBagCollection(tables, plan_of(tables, {"a.b": [4] * 4}))


class Both(torch.nn.Module):
    """A plain collection beside ours, with a table of a name like a block's."""

    def __init__(self) -> None:
        super().__init__()
        tables = [config("one", 40, 8, "f"), config("two", 40, 8, "g")]
        plan = plan_of(tables, {"one": [8] * 40, "two": [8] * 20 + [4] * 20})
        self.ours = BudgetedEmbeddingBagCollection(tables, plan, device="meta")
        self.plain = EmbeddingBagCollection(
            tables=[config("ads/user", 40, 8, "h")], device=torch.device("meta")
        )

    def forward(self, features: KeyedJaggedTensor) -> torch.Tensor:
        return self.ours(features).values() + self.plain(features).values()


def planned(model, **options):
    sharders = [EmbeddingBagCollectionSharder(), BudgetedEmbeddingBagCollectionSharder()]
    topology = Topology(world_size=2, compute_device="cpu")
    return EmbeddingShardingPlanner(topology=topology, **options).plan(model, sharders)


def test_dense_kernels_are_for_our_tables_whatever_their_names():
    """Not for a user's own "ads/user"; for a table of one width, which has no slash."""
    model = Both()
    constraints = {
        name: ParameterConstraints(sharding_types=["table_wise"])
        for name in ("one", "two/w8", "two/w4", "ads/user")
    }
    plan = planned(model, constraints=constraints)
    kernels = {
        name: how.compute_kernel
        for own in with_dense_kernels(plan, model).plan.values()
        for name, how in own.items()
    }
    dense, fused = (EmbeddingComputeKernel.DENSE.value, EmbeddingComputeKernel.FUSED.value)
    assert kernels == {"one": dense, "two/w8": dense, "two/w4": dense, "ads/user": fused}
    with pytest.raises(InvalidInputError, match="give the model that was planned"):
        with_dense_kernels(plan, model.plain)


def test_constraints_by_a_table_s_name_reach_all_of_its_blocks():
    model = Both()
    by_table = {
        "two": ParameterConstraints(
            sharding_types=["column_wise"], enforce_hbm=True, batch_sizes=[9]
        )
    }
    constraints = sharding_constraints(model.ours, constraints=by_table, world_size=2)
    assert set(constraints) == {"one", "two/w8", "two/w4"}
    for name in ("two/w8", "two/w4"):
        assert constraints[name].sharding_types == ["column_wise"]
        assert constraints[name].enforce_hbm
        assert constraints[name].batch_sizes == [9]
    assert constraints["one"].enforce_hbm is None
    found = planned(model, constraints=constraints).plan["ours"]
    assert {found[name].sharding_type for name in ("two/w8", "two/w4")} == {"column_wise"}
    with pytest.raises(InvalidInputError, match="tables one, two, got three"):
        sharding_constraints(model.ours, constraints={"three": ParameterConstraints()})


BY_TABLE = {"two": ParameterConstraints(sharding_types=["column_wise"])}


def test_constraints_by_a_table_s_name_straight_to_torchrec_s_planner_are_refused():
    """Where the planner is told of id maps: that is where it hands us its constraints."""
    model = Both()
    with pytest.raises(ShardingError, match="'two' would be ignored: its blocks two/w8, two/w4"):
        planned(model, constraints=BY_TABLE, storage_reservation=IdMapReservation())
    reaching = sharding_constraints(model.ours, constraints=BY_TABLE, world_size=2)
    of_one = {"one": BY_TABLE["two"]}  # which keeps its own name
    for constraints, names in [
        (reaching, ["two/w8", "two/w4"]),
        (reaching | BY_TABLE, ["two/w8", "two/w4"]),
        (of_one, ["one"]),
    ]:
        plan = planned(model, constraints=constraints, storage_reservation=IdMapReservation())
        assert {plan.plan["ours"][name].sharding_type for name in names} == {"column_wise"}


def test_torchrec_hands_its_planner_s_constraints_to_nothing_else_of_ours():
    """Why they are ignored without it: no call from TorchRec has them, and no plan a trace."""
    home, called, given = str(Path(bet_torchrec.__file__).parent), set(), []

    def note(frame, event, _):
        if event == "call" and frame.f_code.co_filename.startswith(home):
            called.add(frame.f_code.co_name)
            given.extend(frame.f_locals.values())

    model = Both()
    sys.setprofile(note)
    try:
        ignoring = planned(model, constraints=BY_TABLE)
    finally:
        sys.setprofile(None)
    assert {"shardable_parameters", "sharding_types"} <= called
    assert not [x for x in given if x is BY_TABLE or x is BY_TABLE["two"]]
    assert not [x for x in given if isinstance(x, (EmbeddingShardingPlanner, EmbeddingEnumerator))]
    assert ignoring.plan == planned(model).plan
