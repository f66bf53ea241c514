"""ES by hand."""

from __future__ import annotations

import pytest

from bet_torchrec.errors import InfeasibleBudgetError, InvalidInputError
from bet_torchrec.planning.budget import Budget
from bet_torchrec.planning.counts import RowCounts
from bet_torchrec.planning.plan import Bucket
from bet_torchrec.planning.sizers import EqualSizes, SizingProblem
from bet_torchrec.planning.tables import TableSpec

ANY = tuple(range(1, 129))


def problem(budget, counts, dims=(128, 128), widths=ANY):
    tables = [
        TableSpec(f"t{i}", len(c), d) for i, (c, d) in enumerate(zip(counts, dims, strict=False))
    ]
    return SizingProblem(
        tables=tables,
        counts=[RowCounts.from_rows(c) for c in counts],
        budget=budget,
        widths=widths,
    )


def test_the_remainder_goes_to_the_most_frequent_rows_of_all_tables():
    # 8 rows, 6.4 x 8 = 51.2 -> 51 = 8 x 6 + 3: the counts 9, 8 and 5
    plan = EqualSizes()(problem(Budget.parameters(51), [[9, 5, 1, 0], [8, 4, 3, 2]]))
    assert plan.sizes("t0").tolist() == [7, 7, 6, 6]
    assert plan.sizes("t1").tolist() == [7, 6, 6, 6]
    assert plan.cost() == 51


def test_ids_that_are_no_ranks():
    plan = EqualSizes()(problem(Budget.parameters(14), [[1, 5, 3, 9]]))
    assert plan.sizes("t0").tolist() == [3, 4, 3, 4]


def test_ninety_five_percent_of_128_is_six_and_some_sevens():
    counts = [list(range(1000, 0, -1))]
    plan = EqualSizes()(problem(Budget.sparsity(0.95), counts))
    assert plan["t0"].buckets == (Bucket(7, 400), Bucket(6, 600))


def test_a_narrow_table_passes_its_surplus_on():
    plan = EqualSizes()(problem(Budget.parameters(44), [[1] * 4, [1] * 4], dims=(3, 128)))
    assert plan["t0"].buckets == (Bucket(3, 4),)
    assert plan["t1"].buckets == (Bucket(8, 4),)


def test_steps_that_alignment_makes_free_are_taken():
    # an int8 row of 12 takes 16 bytes, as one of 5 does; 28 takes 32
    budget = Budget.bytes(16 * 64, purpose="inference", dtype="int8")
    plan = EqualSizes()(problem(budget, [[1] * 64]))
    assert plan["t0"].buckets == (Bucket(12, 64, "int8"),)
    budget = Budget.bytes(16 * 64 + 256, purpose="inference", dtype="int8")
    plan = EqualSizes()(problem(budget, [[1] * 64]))
    assert plan["t0"].buckets == (Bucket(28, 16, "int8"), Bucket(12, 48, "int8"))


def test_precision_is_the_first_allowed_or_the_one_asked_for():
    budget = Budget.bytes(16384, purpose="inference", dtype=("int8", "int4"), alignment=1)
    given = problem(budget, [[1] * 256])
    assert EqualSizes()(given)["t0"].buckets == (Bucket(60, 256, "int8"),)
    assert EqualSizes(precision="int4")(given)["t0"].buckets == (Bucket(120, 256, "int4"),)
    with pytest.raises(InvalidInputError, match="int8, int4, got 'fp32'"):
        EqualSizes(precision="fp32")(given)


def test_a_precision_that_fits_nothing_is_refused():
    budget = Budget.bytes(256 * 100, purpose="inference", dtype=("fp32", "int8"), alignment=1)
    given = problem(budget, [[1] * 256], widths=(64,))
    with pytest.raises(InfeasibleBudgetError, match="is 65536 bytes"):
        EqualSizes()(given)
    assert EqualSizes(precision="int8")(given).used == 256 * 68 / 25600


def test_a_billion_rows():
    counts = RowCounts.from_distinct([10**6, 100, 1], [10**5, 10**7, 10**9])
    given = SizingProblem(
        tables=[TableSpec("t", counts.rows, 128)],
        counts=[counts],
        budget=Budget.sparsity(0.9),
        widths=(4, 8, 16, 32, 64, 128),
    )
    plan = EqualSizes()(given)
    assert plan.limit - plan.cost() < 8


def test_no_map_is_charged_for_a_table_of_one_width():
    # int8, 4 wide: 8 bytes a row; maps of 400 + 40 bytes would leave nothing for 110 rows
    budget = Budget.bytes(1024, purpose="inference", dtype="int8", alignment=1)
    plan = EqualSizes()(problem(budget, [[1, 2] * 50, [3, 1] * 5], widths=(0, 4, 8)))
    assert [t.buckets for t in plan.tables] == [(Bucket(4, 100, "int8"),), (Bucket(8, 10, "int8"),)]
    assert [t.order for t in plan.tables] == [None, None]
    assert plan.cost() == 896 + 128  # 800 and 120, in blocks of 128


def test_a_map_is_paid_for_where_it_pays():
    budget = Budget.bytes(1024 + 512, purpose="inference", dtype="int8", alignment=1)
    plan = EqualSizes()(problem(budget, [[1, 2] * 50], widths=(0, 4, 16)))
    assert plan["t0"].order is not None
    assert plan.sizes("t0").tolist()[:2] == [4, 16]
    assert plan.limit - plan.cost() < 128
