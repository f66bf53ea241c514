"""Plans: what they promise about sizes, cost, equality and files."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from planning_strategies import plans

from bet_torchrec.errors import InvalidInputError, PlanError
from bet_torchrec.planning.budget import Budget, MemoryModel
from bet_torchrec.planning.counts import RowCounts
from bet_torchrec.planning.plan import Bucket, SizePlan, TablePlan
from bet_torchrec.planning.tables import TableSpec

BYTES = Budget.bytes(4096, purpose="inference", dtype=("int8", "int4"))


def two_tables(budget=BYTES, **changes):
    users = TablePlan(
        "user", 5, 64, (Bucket(28, 2, "int8"), Bucket(12, 3, "int8")), np.array([4, 0, 2, 1, 3])
    )
    items = TablePlan("item", 10, 64, (Bucket(40, 4, "int4"), Bucket(0, 6, "int4")))
    plan = {"tables": (users, items), "budget": budget, "sizer": "es", "seed": 1}
    return SizePlan(**{**plan, **changes})


def test_cost_by_hand():
    plan = two_tables()
    # user: 2 x 32 -> 128, 3 x 16 -> 128, an id map of 5 x 4; item: 4 x roundup(24, 16) -> 128
    assert plan.cost() == 128 + 128 + 20 + 128
    assert plan.limit == 4096
    assert plan.used == pytest.approx(404 / 4096)
    assert plan.parameters() == 2 * 28 + 3 * 12 + 4 * 40
    assert plan.sparsity() == pytest.approx(1 - 252 / (15 * 64))
    assert plan.precisions == {"user": ("int8", "int8"), "item": ("int4", "int4")}
    assert plan.widths == (0, 12, 28, 40)


def test_sizes_are_in_id_order():
    plan = two_tables()
    assert plan.sizes("user").tolist() == [28, 12, 12, 12, 28]
    assert plan.sizes("item").tolist() == [40] * 4 + [0] * 6
    assert plan.sizes("user").dtype == np.int32
    assert plan["user"].ends.tolist() == [2, 5]
    with pytest.raises(InvalidInputError, match="one of 'user', 'item', got 'movie'"):
        plan.sizes("movie")


def test_from_sizes_keeps_the_counts_order_where_sizes_fall_with_rank():
    tables = [TableSpec("t", 4, 8)]
    counts = {"t": RowCounts.from_rows([1, 9, 5, 5])}
    budget = Budget.parameters(32)
    plan = SizePlan.from_sizes(tables, {"t": [2, 8, 4, 4]}, counts, budget=budget, sizer="x")
    assert plan["t"].order.tolist() == [1, 2, 3, 0]
    assert plan["t"].buckets == (Bucket(8, 1), Bucket(4, 2), Bucket(2, 1))
    assert plan["t"].counts_fingerprint == counts["t"].fingerprint()
    # and makes one by size, ties by rank, where they don't
    plan = SizePlan.from_sizes(tables, {"t": [8, 2, 2, 4]}, counts, budget=budget, sizer="x")
    assert plan["t"].order.tolist() == [0, 3, 1, 2]
    assert plan.sizes("t").tolist() == [8, 2, 2, 4]


@pytest.mark.parametrize("sizes", [[1, 2], [1.0] * 4, [9, 1, 1, 1]])
def test_from_sizes_refuses_wrong_sizes(sizes):
    counts = {"t": RowCounts.from_rows([1, 9, 5, 5])}
    with pytest.raises(ValueError, match="table 't'"):
        SizePlan.from_sizes(
            [TableSpec("t", 4, 8)], {"t": sizes}, counts, budget=Budget.parameters(32), sizer="x"
        )


@given(plans())
@settings(max_examples=50, deadline=None)
def test_from_sizes_gives_the_sizes_back(plan):
    for table in plan.tables:
        counts = RowCounts.from_rows(np.arange(table.rows))
        again = TablePlan.from_sizes(table, table.sizes(), counts)
        assert np.array_equal(again.sizes(), table.sizes())
        assert again.widths == table.widths


@given(plans())
@settings(max_examples=60, deadline=None)
def test_a_plan_survives_its_bytes(plan):
    again = SizePlan.from_bytes(plan.to_bytes())
    assert again == plan
    assert hash(again) == hash(plan)
    assert again.fingerprint() == plan.fingerprint()
    assert again.metadata == plan.metadata
    assert again.cost() == plan.cost() <= plan.limit
    for table in plan.tables:
        assert np.array_equal(again.sizes(table.name), plan.sizes(table.name))


def test_equality_is_by_content():
    plan = two_tables()
    assert plan == two_tables(metadata={"note": "free text does not matter"})
    users, items = plan.tables
    unlike = [
        two_tables(seed=2),
        two_tables(sizer="mr"),
        two_tables(budget=replace(BYTES, amount=4097)),
        two_tables(tables=(items, users)),
        two_tables(tables=(replace(users, order=None), items)),
        two_tables(tables=(replace(users, order=np.array([4, 0, 2, 3, 1])), items)),
        two_tables(tables=(users, replace(items, counts_fingerprint="other"))),
        two_tables(tables=(users, replace(items, buckets=(Bucket(40, 10, "int4"),)))),
    ]
    assert len({plan, *unlike}) == 1 + len(unlike)
    assert plan != "something else"


def test_a_plan_over_its_budget_cannot_exist():
    assert two_tables(budget=replace(BYTES, amount=404)).used == 1
    with pytest.raises(PlanError, match=r"at most 403 bytes.*got 404"):
        two_tables(budget=replace(BYTES, amount=403))


def test_a_precision_that_the_budget_does_not_allow_is_refused():
    with pytest.raises(PlanError, match="among the budget's int8, got int4, int8"):
        two_tables(budget=replace(BYTES, dtypes=("int8",)))


@pytest.mark.parametrize(
    ("buckets", "order", "says"),
    [
        ((Bucket(4, 2), Bucket(8, 1)), None, "fall strictly"),
        ((Bucket(4, 2), Bucket(4, 1)), None, "fall strictly"),
        ((Bucket(4, 2),), None, "all 3 rows, got 2"),
        ((), None, "all 3 rows, got 0"),
        ((Bucket(9, 3),), None, "exceed embedding_dim 8, got 9"),
        ((Bucket(8, 3),), [0, 1, 1], "every id once, got none of id 2"),
        ((Bucket(8, 3),), [0, 1], "3 ids"),
    ],
)
def test_contradictions_are_refused(buckets, order, says):
    with pytest.raises(PlanError, match=says):
        TablePlan("t", 3, 8, buckets, None if order is None else np.array(order))


@pytest.mark.parametrize("fields", [(-1, 1), (4, 0), (4, 1, "int3")])
def test_wrong_buckets_are_refused(fields):
    with pytest.raises(PlanError, match="a bucket should"):
        Bucket(*fields)


def test_two_tables_of_one_name_are_refused():
    table = TablePlan("t", 1, 8, (Bucket(8, 1),))
    with pytest.raises(InvalidInputError, match="distinct names"):
        SizePlan((table, table), Budget.parameters(99), "es")


def test_nothing_can_be_changed():
    order = np.array([4, 0, 2, 1, 3])
    plan = two_tables()
    with pytest.raises(ValueError, match="read-only"):
        plan["user"].order[0] = 1
    with pytest.raises(TypeError):
        plan.metadata["new"] = "entry"
    table = TablePlan("t", 5, 8, (Bucket(8, 4), Bucket(4, 1)), order)
    order[0] = 0  # the caller's own array stays the caller's
    assert table.order[0] == 4


def test_a_billion_rows_take_no_memory():
    table = TablePlan("t", 10**9, 128, (Bucket(128, 10**6), Bucket(4, 10**9 - 10**6)))
    plan = SizePlan((table,), Budget.sparsity(0.9), "es")
    assert plan.cost() == 128 * 10**6 + 4 * (10**9 - 10**6)
    assert len(plan.to_bytes()) < 5000
    assert plan.coarsen((4, 64)).used > 0.03


def test_summary_shows_rows_widths_and_bytes():
    text = two_tables().summary()
    lines = [line.split() for line in text.splitlines()]
    assert ["28", "int8", "2", "40.0%", "128"] in lines
    assert ["0", "dropped", "6", "60.0%", "0"] in lines
    assert ["id", "map", "5", "20"] in lines
    assert "404 of 4,096 bytes used (9.86%)" in text
    assert "int8/int4" in text
    assert "404" not in two_tables(budget=Budget.parameters(300)).summary()
    plan = two_tables()
    assert f"<SizePlan {plan.fingerprint()} by {plan.sizer}, " in repr(plan)


def test_a_plan_by_hand_needs_no_counts(tmp_path):
    tables = [TableSpec("a", 4, 8), TableSpec("b", 2, 8)]
    sizes = {"a": [0, 8, 4, 8], "b": np.array([4, 4])}
    plan = SizePlan.from_sizes(tables, sizes, budget=Budget.parameters(28))
    assert plan.sizes("a").tolist() == [0, 8, 4, 8]
    assert plan["a"].order.tolist() == [1, 3, 2, 0]
    assert (plan["b"].order, plan["b"].counts_fingerprint, plan.sizer) == (None, "", "by hand")
    assert SizePlan.load(plan.save(tmp_path / "hand.plan")) == plan


def test_rows_of_one_width_need_no_order():
    table = TablePlan("a", 3, 8, (Bucket(4, 3),), np.array([2, 0, 1]))
    assert table.order is None
    assert table.cost(MemoryModel(unit="bytes", purpose="training", optimizer="sgd")) == 3 * 16
