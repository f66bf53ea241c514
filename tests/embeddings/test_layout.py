"""Laws of layouts: blocks are the table's kept entries, each once, whatever the plan."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from masked_cases import LAYOUTS

from bet_torchrec.embeddings import blocks
from bet_torchrec.errors import InvalidInputError
from bet_torchrec.planning.plan import Bucket, TablePlan

LAW = settings(max_examples=60, deadline=None)


@st.composite
def table_plans(draw, most_rows=200):
    """One table's plan of any widths and order, one precision."""
    widths = sorted(draw(st.sets(st.integers(0, 40), min_size=1, max_size=6)), reverse=True)
    rows = [draw(st.integers(1, most_rows // 6)) for _ in widths]
    order = None
    if draw(st.booleans()):
        seed = draw(st.integers(0, 1000))
        order = np.random.default_rng(seed).permutation(sum(rows)).astype(np.int32)
    buckets = tuple(Bucket(w, n) for w, n in zip(widths, rows, strict=True))
    return TablePlan("t", sum(rows), 40, buckets, order)


@LAW
@given(plan=table_plans(), choice=st.sampled_from(LAYOUTS))
def test_blocks_hold_every_kept_entry_once(plan, choice):
    held = np.zeros((plan.rows, plan.embedding_dim), dtype=int)
    for block in blocks(plan, *choice):
        assert block.rows > 0
        assert block.width > 0
        held[block.ids(plan)[:, None], np.arange(plan.embedding_dim)[block.columns]] += 1
    kept = np.arange(plan.embedding_dim) < plan.sizes()[:, None]
    assert np.array_equal(held, kept)


@LAW
@given(plan=table_plans(), choice=st.sampled_from(LAYOUTS))
def test_row_of_a_rank_is_what_the_stride_says(plan, choice):
    layout, row_order = choice
    for block in blocks(plan, layout, row_order):
        ranks = block.rank_of_row()
        expected = np.arange(block.first_rank, block.first_rank + block.rows)
        assert np.array_equal(np.sort(ranks), expected)
        row = (ranks - block.first_rank) * block.stride % block.rows
        assert np.array_equal(row, np.arange(block.rows))
        assert np.array_equal(ranks, expected) == (block.stride == 1)
        assert block.stride == 1 or row_order == "interleaved"
        ids = block.ids(plan)
        assert ids.dtype == np.int64
        assert np.array_equal(ids, ranks if plan.order is None else plan.order[ranks])


@LAW
@given(plan=table_plans(), choice=st.sampled_from(LAYOUTS))
def test_how_many_blocks_and_which_names(plan, choice):
    made = blocks(plan, *choice)
    assert len(made) == sum(width > 0 for width in plan.widths)
    assert len({block.name for block in made}) == len(made)
    if choice[0] == "prefix":
        assert [b.columns.start for b in made[1:]] == [b.columns.stop for b in made[:-1]]
        assert all(b.first_rank == 0 for b in made)
    else:
        assert all(b.first_column == 0 for b in made)
        assert [b.width for b in made] == [width for width in plan.widths if width]


def test_names_and_shapes_of_an_example():
    plan = TablePlan("user", 10, 64, (Bucket(64, 2), Bucket(8, 5), Bucket(0, 3)))
    told = [(b.name, b.first_rank, b.rows, b.first_column, b.width) for b in blocks(plan, "prefix")]
    assert told == [("user/c0-8", 0, 7, 0, 8), ("user/c8-64", 0, 2, 8, 56)]
    told = [(b.name, b.first_rank, b.rows, b.width) for b in blocks(plan, "bucketed")]
    assert told == [("user/w64", 0, 2, 64), ("user/w8", 2, 5, 8)]


@settings(max_examples=40, deadline=None)
@given(rows=st.integers(2, 20_000))
def test_interleaving_gives_contiguous_shards_like_shares_of_any_run_of_ranks(rows):
    """A shard's share of any run is its share of the rows, but for a few: logarithmic, not more."""
    (block,) = blocks(TablePlan("t", rows, 4, (Bucket(4, rows),)), "bucketed", "interleaved")
    row_of_rank = np.argsort(block.rank_of_row())
    for shards in range(2, 9):
        size = math.ceil(rows / shards)
        for first in range(0, rows, size):
            inside = (first <= row_of_rank) & (row_of_rank < first + size)
            # How many more of the first n ranks than its share; a run is a difference of two.
            excess = np.cumsum(inside - inside.mean())
            assert np.ptp(np.append(excess, 0)) <= (1 + math.log2(rows)) / 2, (shards, first)


def test_interleaving_balances_skewed_lookups():
    rows, shards = 100_000, 4
    (block,) = blocks(TablePlan("t", rows, 4, (Bucket(4, rows),)), "bucketed", "interleaved")
    counts = 1 / (np.arange(rows) + 20.0)
    ranked = counts.reshape(shards, -1).sum(1) / counts.sum()
    spread = counts[block.rank_of_row()].reshape(shards, -1).sum(1) / counts.sum()
    assert ranked.max() > 0.8
    assert spread.max() < 0.28


def test_precisions_that_differ_have_no_prefix_layout():
    plan = TablePlan("t", 3, 8, (Bucket(8, 1, "fp16"), Bucket(4, 1, "int8"), Bucket(0, 1)))
    assert [b.precision for b in blocks(plan, "bucketed")] == ["fp16", "int8"]
    with pytest.raises(InvalidInputError, match="one precision a table, got fp16, int8"):
        blocks(plan, "prefix")
    # Dropped rows have no precision worth the name.
    alike = TablePlan("t", 3, 8, (Bucket(8, 2, "fp16"), Bucket(0, 1, "int8")))
    assert [b.precision for b in blocks(alike, "prefix")] == ["fp16"]


@pytest.mark.parametrize(
    ("layout", "row_order"), itertools.product(["bucketed", "prefix"], ["x", ""])
)
def test_unknown_layouts_and_orders(layout, row_order):
    plan = TablePlan("t", 1, 1, (Bucket(1, 1),))
    with pytest.raises(InvalidInputError, match="row_order should be 'ranked' or 'interleaved'"):
        blocks(plan, layout, row_order)
    with pytest.raises(InvalidInputError, match="layout should be 'bucketed' or 'prefix'"):
        blocks(plan, "flat")
