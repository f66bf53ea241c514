"""Column codes against rows by hand, exhaustive search, and an arithmetic of big integers."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bet_torchrec import RowCounts
from bet_torchrec.axes import principal_basis
from bet_torchrec.column_codes import (
    CodeCost,
    CodedEmbedding,
    allocate,
    best_grids,
    cells_of,
    coded_bytes,
    encode_tables,
)
from bet_torchrec.column_codes.encode import rank_edges
from bet_torchrec.errors import InfeasibleBudgetError, InvalidInputError
from bet_torchrec.serving.column_codes import (
    CodedBlock,
    CodedTable,
    CodeFileError,
    pack_codes,
    read_coded_tables,
    row_bytes,
    unpack_codes,
    write_coded_tables,
)

bits_lists = st.lists(st.integers(0, 8), min_size=1, max_size=12)


@settings(max_examples=40, deadline=None)
@given(bits_lists, st.integers(0, 10**6))
def test_packed_without_gaps(bits: list[int], seed: int):
    rng = np.random.default_rng(seed)
    width = np.array(bits, dtype=np.uint8)
    codes = np.stack([rng.integers(0, 1 << b, 5) for b in bits], axis=1).astype(np.uint8)
    packed = pack_codes(codes, width)
    assert packed.shape == (5, -(-sum(bits) // 8))
    for row, own in zip(packed, codes, strict=True):
        whole = 0  # the same by one big integer
        for code, b in zip(own[::-1].tolist(), bits[::-1], strict=True):
            whole = (whole << b) | code
        assert bytes(row) == whole.to_bytes(len(row), "little")
    assert np.array_equal(unpack_codes(packed, width), codes)


def grids_of(values: np.ndarray, weights: np.ndarray):
    return best_grids(cells_of(lambda: iter([(values, weights)]), len(values)))


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 9), st.integers(0, 10**6))
def test_one_bit_is_the_best_of_all_cuts(rows: int, seed: int):
    rng = np.random.default_rng(seed)
    values = rng.standard_normal((rows, 2)).astype(np.float32)
    weights = rng.integers(1, 9, rows).astype(np.float64)
    found = grids_of(values, weights).error[1]
    for column in range(2):
        x = values[:, column].astype(np.float64)
        losses = []
        for sides in itertools.product((False, True), repeat=rows):
            loss = 0.0
            for side in (False, True):
                own = np.array(sides) == side
                if own.any():
                    mean = np.average(x[own], weights=weights[own])
                    loss += (weights[own] * (x[own] - mean) ** 2).sum()
            losses.append(loss)
        assert found[column] == pytest.approx(min(losses), abs=1e-6)


@settings(max_examples=10, deadline=None)
@given(st.integers(1, 60), st.integers(0, 10**6), st.sampled_from([1.0, 1e-6, 1e4]))
def test_more_bits_lose_less_and_never_more_than_the_whole_span(rows: int, seed: int, unit: float):
    rng = np.random.default_rng(seed)
    values = (rng.standard_t(3, (rows, 3)) * unit).astype(np.float32)
    weights = rng.zipf(1.5, rows).clip(max=1000).astype(np.float64)
    grids = grids_of(values, weights)
    assert (np.diff(grids.error, axis=0) <= 0).all()
    mean = np.average(values.astype(np.float64), axis=0, weights=weights)
    spread = (weights[:, None] * (values - mean) ** 2).sum(axis=0)
    assert np.allclose(grids.error[0], spread, rtol=1e-4)
    for bits in range(1, 9):
        low, step = values.min(axis=0), np.ptp(values, axis=0).astype(np.float64) / (2**bits - 1)
        read = np.rint((values - low) / np.where(step > 0, step, 1)) * step + low
        assert (
            grids.error[bits]
            <= (weights[:, None] * (values - read) ** 2).sum(0) * 1.001 + 1e-9 * unit**2
        ).all()


def test_near_lloyds_optimum_for_a_normal_distribution():
    # Max (1960), uniform quantisers of a unit normal: the least mean squared errors.
    known = {1: 0.3634, 2: 0.1188, 3: 0.03744, 4: 0.01154, 5: 0.003495}
    x = torch.distributions.Normal(0, 1).icdf(
        (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    )
    grids = grids_of(x.numpy().astype(np.float32)[:, None], np.ones(len(x)))
    for bits, error in known.items():
        assert grids.error[bits, 0] / len(x) == pytest.approx(error, rel=0.01)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 3), st.integers(0, 40))
def test_the_budget_is_never_exceeded_and_nothing_affordable_is_left(
    seed: int, blocks: int, limit: int
):
    rng = np.random.default_rng(seed)
    costs = [
        CodeCost(
            int(rng.integers(1, 6)), np.sort(rng.random((9, int(rng.integers(1, 4)))), axis=0)[::-1]
        )
        for _ in range(blocks)
    ]
    found = allocate(costs, limit)
    used = sum(c.rows * row_bytes(b) for c, b in zip(costs, found, strict=True))
    assert used <= limit

    def best(cost: CodeCost, whole: int) -> float:
        columns = range(cost.error.shape[1])
        spreads = itertools.product(range(9), repeat=len(columns))
        return min(
            sum(cost.error[b, c] for b, c in zip(s, columns, strict=True))
            for s in spreads
            if sum(s) <= 8 * whole
        )

    for cost, bits in zip(costs, found, strict=True):
        whole = row_bytes(bits)
        own = sum(cost.error[b, c] for c, b in enumerate(bits))
        assert own == pytest.approx(best(cost, whole))  # no other spread of these bytes is better
        if used + cost.rows <= limit:
            assert best(cost, whole + 1) >= own - 1e-12


def test_bits_follow_variances():
    # By hand: errors 4**-bits * variance; variances 4**6, 4**4, 4**2, 1 want two more bits each.
    error = np.array([[4.0 ** (6 - 2 * c - bits) for c in range(4)] for bits in range(9)])
    (found,) = allocate([CodeCost(10, error)], 10 * 2)
    assert found.tolist() == [7, 5, 3, 1]
    # A block of rarer rows gets its bits later.
    often, rare = allocate([CodeCost(10, error), CodeCost(10, error / 4**4)], 10 * 3)
    assert (row_bytes(often), row_bytes(rare)) == (2, 1)


ROWS, DIM = 400, 8


def tables(seed: int = 0) -> tuple[dict[str, torch.Tensor], dict[str, RowCounts]]:
    rng = np.random.default_rng(seed)
    mix = np.linalg.qr(rng.standard_normal((DIM, DIM)))[0]
    made = {
        "user": rng.standard_normal((ROWS, DIM)) * 0.6 ** np.arange(DIM) @ mix,
        "item": rng.standard_normal((50, DIM)),
    }
    n = {"user": rng.zipf(1.4, ROWS).clip(max=5000), "item": np.sort(rng.integers(0, 9, 50))[::-1]}
    return (
        {k: torch.from_numpy(v.astype(np.float32)) for k, v in made.items()},
        {k: RowCounts.from_rows(v.astype(np.int64)) for k, v in n.items()},
    )


@settings(max_examples=12, deadline=None)
@given(st.integers(2600, 9000), st.integers(1, 5), st.booleans(), st.integers(0, 100))
def test_bytes_are_as_counted_and_errors_bounded(limit: int, blocks: int, turned: bool, seed: int):
    full, n = tables(seed)
    bases = {k: principal_basis(t, width=6) for k, t in full.items()} if turned else {}
    coded = encode_tables(full, n, limit=limit, bases=bases, rank_blocks=blocks)
    assert coded_bytes(coded) <= limit
    assert coded["item"].id_map is None
    assert (coded["user"].id_map is not None) == (blocks > 1)
    for name, table in coded.items():
        arrays = [table.axes, table.id_map]
        arrays += [a for b in table.blocks for a in (b.bits, b.scale, b.offset, b.data)]
        assert table.nbytes == sum(a.nbytes for a in arrays if a is not None)
        order = np.arange(n[name].rows) if table.id_map is None else n[name].order
        read = table.coordinates(order)
        exact = full[name].numpy()[order]
        exact = bases[name].coordinates(torch.from_numpy(exact)).numpy() if turned else exact
        assert [b.first_rank for b in table.blocks] == rank_edges(n[name], blocks)[:-1]
        for block in table.blocks:
            own = slice(block.first_rank, block.first_rank + block.rows)
            last = 2.0**block.bits - 1
            clipped = np.clip(exact[own], block.offset, block.offset + last * block.scale)
            assert (np.abs(read[own] - clipped) <= block.scale / 2 * 1.001 + 1e-6).all()


def test_more_bytes_more_blocks_and_own_axes_lose_less():
    full, n = tables()
    weight = {
        k: torch.from_numpy(
            n[k].at_ranks(
                np.argsort(n[k].order) if n[k].order is not None else np.arange(n[k].rows)
            )
        )
        for k in full
    }

    def loss(limit: int, blocks: int = 1, turned: bool = True) -> float:
        bases = {k: principal_basis(t, weight[k]) for k, t in full.items()} if turned else {}
        extra = sum(4 * b.axes.numel() for b in bases.values()) + blocks * 2 * 9 * DIM
        coded = encode_tables(
            full,
            n,
            limit=limit + extra + (4 * ROWS if blocks > 1 else 0),
            bases=bases,
            rank_blocks=blocks,
        )
        read = CodedEmbedding(coded)
        return sum(
            float(((read.table(k) - t).square().sum(1) * weight[k]).sum()) for k, t in full.items()
        )

    losses = [loss(rows * 450) for rows in (0, 1, 2, 4, 6, 8)]
    assert all(a > b for a, b in itertools.pairwise(losses))
    assert loss(900, blocks=4) < loss(900)
    assert loss(900) < loss(900, turned=False)
    assert loss(8 * 450) < 0.001 * losses[0]


@pytest.mark.parametrize("turned", [False, True])
def test_torch_reads_what_numpy_reads_from_the_file(tmp_path: Path, turned: bool):
    full, n = tables(3)
    bases = {"user": principal_basis(full["user"], width=5)} if turned else {}
    coded = encode_tables(full, n, limit=4500, bases=bases, rank_blocks=3)
    path = write_coded_tables(coded, tmp_path / "codes.safetensors")
    found = read_coded_tables(path)
    module = CodedEmbedding(coded)
    ids = np.array([3, 0, 49, 3, 17])
    for name, table in coded.items():
        assert np.array_equal(found[name].read(ids), table.read(ids))
        assert found[name].nbytes == table.nbytes
        assert torch.allclose(
            module.lookup(name, torch.from_numpy(ids)), torch.from_numpy(table.read(ids)), atol=1e-5
        )
        assert torch.allclose(
            module.table(name), torch.from_numpy(table.read(np.arange(table.rows))), atol=1e-5
        )
    assert found["user"].read([]).shape == (0, DIM)
    whole = path.read_bytes()
    for place in range(0, len(whole), len(whole) // 40):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        with pytest.raises(CodeFileError):
            read_coded_tables(path)


def test_by_hand():
    # Two columns of 3 and 1 bits: codes 5 and 1 are 0b1101.
    block = CodedBlock(
        0,
        np.array([3, 1, 0], dtype=np.uint8),
        np.array([0.5, 2.0, 9.0], dtype=np.float32),
        np.array([-1.0, 0.0, 0.25], dtype=np.float32),
        np.array([[0b1101], [0b0010]], dtype=np.uint8),
    )
    table = CodedTable("t", 4, (block,))
    assert table.read([0, 1]).tolist() == [[1.5, 2.0, 0.25, 0.0], [0.0, 0.0, 0.25, 0.0]]
    assert table.nbytes == 2 + 3 * 9


def test_errors_say_what_came():
    full, n = tables()
    with pytest.raises(InfeasibleBudgetError, match="take 144 bytes before any code") as caught:
        encode_tables(full, n, limit=100)
    encode_tables(full, n, limit=caught.value.smallest)
    with pytest.raises(InvalidInputError, match="expected counts"):
        encode_tables(full, {"user": n["user"]}, limit=9000)
    with pytest.raises(InvalidInputError, match="expected axes of 8 columns, got 3"):
        encode_tables(full, n, limit=9000, bases={"user": principal_basis(torch.randn(9, 3))})
    with pytest.raises(InvalidInputError, match="rank_blocks"):
        encode_tables(full, n, limit=9000, rank_blocks=0)
    broken = {**full, "item": full["item"] / 0}
    with pytest.raises(InvalidInputError, match="those at 0 to 49"):
        encode_tables(broken, n, limit=9000)
    coded = encode_tables(full, n, limit=9000)
    for read in (
        coded["item"].read,
        lambda ids: CodedEmbedding(coded).lookup("item", torch.tensor(ids)),
    ):
        with pytest.raises(InvalidInputError, match="from 0 to 49"):
            read([50])
