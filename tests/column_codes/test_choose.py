"""Axes that a loss asks for, and forms chosen for them, against plain sums of what is lost."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from bet_torchrec import RowCounts
from bet_torchrec.axes import Moments, principal_basis
from bet_torchrec.column_codes import (
    CodedEmbedding,
    choose_codes,
    coded_bytes,
    encode_tables,
    loss_turn,
)
from bet_torchrec.column_codes.bits import prefix_curves
from bet_torchrec.column_codes.turn import RIDGE
from bet_torchrec.errors import InfeasibleBudgetError, InvalidInputError
from bet_torchrec.serving.column_codes import read_coded_tables, write_coded_tables

DIM = 8
ROWS = {"user": 500, "item": 90, "flag": 2}


def tables(seed: int = 0):
    rng = np.random.default_rng(seed)
    mixes = {name: rng.standard_normal((DIM, DIM)) * 0.6 ** np.arange(DIM) for name in ROWS}
    full = {
        name: torch.from_numpy((rng.standard_normal((rows, DIM)) @ mixes[name].T).astype("f4"))
        for name, rows in ROWS.items()
    }
    counts = {
        name: RowCounts.from_rows(rng.zipf(1.4, rows).clip(max=5000)) for name, rows in ROWS.items()
    }
    gradients = {}
    for name in ROWS:
        slope = rng.standard_normal((DIM, DIM)) * 0.5 ** np.arange(DIM)
        gradients[name] = Moments(DIM).add(rng.standard_normal((4000, DIM)) @ slope.T)
    return full, counts, gradients


def by_id(counts: RowCounts) -> np.ndarray:
    ranks = np.arange(counts.rows) if counts.order is None else np.argsort(counts.order)
    return counts.at_ranks(ranks).astype(np.float64)


def lost(full, counts, gradients, read) -> float:
    """sum of count * d H d' over all rows, H with its ridge."""
    total = 0.0
    for name, table in full.items():
        measure = gradients[name].matrix() / gradients[name].weight
        measure = measure + np.eye(DIM) * RIDGE * np.trace(measure) / DIM
        error = (read(name) - table).double().numpy()
        total += float((by_id(counts[name]) * ((error @ measure) * error).sum(1)).sum())
    return total


@pytest.mark.parametrize("kept", [1, 3, 6])
def test_a_prefix_in_the_losss_axes_loses_the_least(kept: int):
    full, counts, gradients = tables()
    name = "user"
    weights = by_id(counts[name])
    turn = loss_turn(Moments(DIM).add(full[name], weights), gradients[name])

    def cut(into: torch.Tensor, axes: torch.Tensor) -> float:
        read = (full[name] @ into[:, :kept]) @ axes[:kept]
        return lost({name: full[name]}, counts, gradients, lambda _: read)

    own = cut(turn.into, turn.axes)
    basis = principal_basis(full[name], weights)
    assert own < cut(basis.axes.T, basis.axes)
    # What energy says of the columns that are left out is what leaving them out costs.
    assert own == pytest.approx(weights.sum() * turn.energy[kept:].sum(), rel=0.02)
    rng = np.random.default_rng(kept)
    for _ in range(20):  # no other turn is better
        mixed = torch.from_numpy(np.eye(DIM) + 0.05 * rng.standard_normal((DIM, DIM))).float()
        assert own <= cut(turn.into @ torch.linalg.inv(mixed), mixed @ turn.axes) * 1.001


def test_all_axes_give_the_rows_back_in_coordinates_of_one_size():
    full, counts, gradients = tables()
    weights = by_id(counts["user"])
    turn = loss_turn(Moments(DIM).add(full["user"], weights), gradients["user"])
    coordinates = turn.coordinates(full["user"])
    assert torch.allclose(coordinates @ turn.axes, full["user"], atol=1e-4)
    size = (weights[:, None] * coordinates.double().numpy() ** 2).sum(0) / weights.sum()
    assert np.allclose(size, 1, rtol=1e-3)
    assert (np.diff(turn.energy) <= 0).all()


def test_curves_of_prefixes_by_hand():
    # One column: 9 errors by bits. 0 and 1 bytes a row: 0 and 8 bits.
    error = np.array([[9.0 - b, 90.0 - 10 * b] for b in range(9)])
    one, two = prefix_curves(error)
    assert one.tolist() == [9, 1]
    # Two columns, 0, 8, 16 bits: the second column is worth ten times as much a bit.
    assert two.tolist() == [99, 9 + 10, 1 + 10]


def test_never_over_the_budget_and_more_bytes_lose_less():
    full, counts, gradients = tables()
    losses = []
    for limit in (400, 700, 1200, 2500, 5000, 9000):
        codes = choose_codes(full, counts, gradients, limit=limit)
        assert coded_bytes(codes.tables) <= limit
        read = CodedEmbedding(codes.tables)
        losses.append(lost(full, counts, gradients, read.table))
        for name, coordinates in codes.coordinates(full).items():
            assert coordinates.shape == (ROWS[name], len(codes.tables[name].blocks[0].bits))
            assert codes.tables[name].axes.dtype == np.int8
    assert all(a > b for a, b in itertools.pairwise(losses))
    assert losses[-1] < 0.01 * losses[0]


@pytest.mark.parametrize("limit", [1500, 4000])
def test_chosen_forms_lose_less_than_principal_axes(limit: int):
    full, counts, gradients = tables()
    chosen = CodedEmbedding(choose_codes(full, counts, gradients, limit=limit).tables)
    found = lost(full, counts, gradients, chosen.table)
    for width in (2, 4, 8):
        bases = {n: principal_basis(t, by_id(counts[n]), width=width) for n, t in full.items()}
        for blocks in (1, 4):
            try:
                plain = encode_tables(full, counts, limit=limit, bases=bases, rank_blocks=blocks)
            except InfeasibleBudgetError:
                continue
            assert found < lost(full, counts, gradients, CodedEmbedding(plain).table)


def test_a_table_that_no_example_looks_up_gets_what_nobody_else_can_use():
    full, counts, gradients = tables()
    seen = choose_codes(full, counts, gradients, limit=2700).tables
    unseen = choose_codes(full, counts, {**gradients, "item": Moments(DIM)}, limit=2700).tables
    assert unseen["user"].nbytes > seen["user"].nbytes
    assert unseen["item"].nbytes < seen["item"].nbytes


def test_a_file_keeps_what_was_chosen(tmp_path):
    full, counts, gradients = tables()
    codes = choose_codes(full, counts, gradients, limit=3000).tables
    found = read_coded_tables(write_coded_tables(codes, tmp_path / "codes.safetensors"))
    for name, table in codes.items():
        ids = np.arange(ROWS[name])
        assert np.array_equal(found[name].read(ids), table.read(ids))
        assert found[name].nbytes == table.nbytes


def test_errors_say_what_came():
    full, counts, gradients = tables()
    with pytest.raises(InfeasibleBudgetError, match="a single column a table takes 39 bytes"):
        choose_codes(full, counts, gradients, limit=38)  # 3 x (8 of an axis, 5 of a grid)
    choose_codes(full, counts, gradients, limit=39)
    with pytest.raises(InvalidInputError, match="expected counts and gradients of tables"):
        choose_codes(full, counts, {"user": gradients["user"]}, limit=5000)
    narrow = {**full, "item": full["item"][:, :4]}
    with pytest.raises(InvalidInputError, match="'item': expected 90 rows of 8 columns"):
        choose_codes(narrow, counts, gradients, limit=5000)
    with pytest.raises(InvalidInputError, match="expected gradients of 8 columns"):
        loss_turn(Moments(DIM).add(full["user"]), Moments(4))
    with pytest.raises(InvalidInputError, match="counts above 0"):
        loss_turn(Moments(DIM), gradients["user"])
