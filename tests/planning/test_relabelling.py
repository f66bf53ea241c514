"""Ids to ranks and back, for any loader."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bet_torchrec.errors import InvalidInputError, PlanFileError
from bet_torchrec.planning import Budget, BudgetPlanner, EqualSizes, Relabelling, TableSpec
from bet_torchrec.planning.counts import RowCounts

COUNTS = {"item": [1, 5, 3], "user": np.array([9, 4, 4, 0])}


def test_ids_become_ranks_by_hand():
    relabelling = Relabelling.from_counts(COUNTS)
    ids = torch.tensor([[1, 2], [0, 1]])
    ranks = relabelling.ranks("item", ids)
    assert ranks.tolist() == [[0, 1], [2, 0]]
    assert ranks.dtype == torch.int64
    assert torch.equal(relabelling.ids("item", ranks), ids)
    assert relabelling.ranks("user", ids) is ids  # ranks already
    assert relabelling.rows("item", COUNTS["item"]).tolist() == [5, 3, 1]
    full = torch.arange(6.0).view(3, 2)
    assert relabelling.rows("item", full).tolist() == [[2, 3], [4, 5], [0, 1]]


def test_a_relabelled_table_needs_no_map():
    relabelling = Relabelling.from_counts(COUNTS)
    tables = [TableSpec("item", 3, 8), TableSpec("user", 4, 8)]
    planner = BudgetPlanner(budget=Budget.parameters(30), widths=(4, 8), sizer=EqualSizes())
    ranked = {name: relabelling.rows(name, counts) for name, counts in COUNTS.items()}
    by_id, by_rank = planner.plan(tables, COUNTS), planner.plan(tables, ranked)
    assert all(table.order is None for table in by_rank.tables)
    ids = np.arange(3)
    sizes = by_rank.sizes("item")[relabelling.ranks("item", ids)]
    assert sizes.tolist() == by_id.sizes("item").tolist()


@given(st.lists(st.integers(0, 5), min_size=1, max_size=30))
def test_ranks_sort_counts_and_are_undone(counts):
    relabelling = Relabelling.from_counts({"t": RowCounts.from_rows(counts)})
    ids = np.arange(len(counts))
    ranks = relabelling.ranks("t", ids)
    assert sorted(ranks.tolist()) == ids.tolist()
    assert relabelling.ids("t", ranks).tolist() == ids.tolist()
    assert (np.diff(relabelling.rows("t", np.array(counts))) <= 0).all()


def test_it_is_saved(tmp_path):
    path = Relabelling.from_counts(COUNTS).save(tmp_path / "ranks.safetensors")
    again = Relabelling.load(path)
    assert again.orders["item"].tolist() == [1, 2, 0]
    assert again.orders["user"] is None


@pytest.mark.parametrize("damage", ["cut", "foreign", "no order"])
def test_another_file_is_refused(tmp_path, damage):
    from safetensors.numpy import save_file

    path = tmp_path / "x"
    if damage == "cut":
        path.write_bytes(Relabelling.from_counts(COUNTS).save(path).read_bytes()[:-3])
    elif damage == "foreign":
        save_file({"order.item": np.array([0, 1], np.int32)}, path, {"format": "other"})
    else:
        wrong = {"order.item": np.array([0, 0], np.int32)}
        save_file(wrong, path, {"format": "bet_torchrec.relabelling"})
    with pytest.raises(PlanFileError):
        Relabelling.load(path)


@pytest.mark.parametrize(
    ("table", "ids", "says"),
    [
        ("film", [0], "'item', 'user'"),
        ("item", [3], "0 to 2, got 3 to 3"),
        ("item", [-1, 0], "got -1 to 0"),
        ("item", [0.5], "integers"),
    ],
)
def test_wrong_ids_are_refused(table, ids, says):
    with pytest.raises(InvalidInputError, match=says):
        Relabelling.from_counts(COUNTS).ranks(table, np.array(ids))
    with pytest.raises(InvalidInputError, match="expected 3 rows, got 2"):
        Relabelling.from_counts(COUNTS).rows("item", [1, 2])
