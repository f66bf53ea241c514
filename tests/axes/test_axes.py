"""A table's own axes against the singular value decomposition, numpy's lstsq and rows by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bet_torchrec.axes import (
    Basis,
    Moments,
    lookups,
    principal_basis,
    row_blocks,
    turn_in_place,
)
from bet_torchrec.errors import InvalidInputError
from bet_torchrec.planning.counts import RowCounts

ROWS, DIM = 300, 12


def table(seed: int = 0, rows: int = ROWS, dim: int = DIM) -> torch.Tensor:
    """Rows with a falling spectrum in mixed directions."""
    rng = np.random.default_rng(seed)
    spread = rng.standard_normal((rows, dim)) * 0.7 ** np.arange(dim)
    mix = np.linalg.qr(rng.standard_normal((dim, dim)))[0]
    return torch.from_numpy((spread @ mix).astype(np.float32))


def counts(seed: int = 0, rows: int = ROWS) -> np.ndarray:
    return np.random.default_rng(seed).zipf(1.5, rows).clip(max=10**6)


def test_by_hand():
    # Two rows on the axes, the second counted nine times: it comes first.
    rows = torch.tensor([[2.0, 0.0], [0.0, -1.0]])
    basis = principal_basis(rows, [1, 9])
    assert torch.allclose(basis.axes, torch.tensor([[0.0, 1.0], [1.0, 0.0]]), atol=1e-7)
    assert basis.energy is not None
    assert torch.allclose(basis.energy, torch.tensor([0.9, 0.4], dtype=torch.float64))
    assert torch.allclose(basis.coordinates(rows), torch.tensor([[0.0, 2.0], [-1.0, 0.0]]))
    unweighted = principal_basis(rows)
    assert torch.allclose(unweighted.axes, torch.eye(2), atol=1e-7)


def test_axes_are_the_weighted_svds():
    rows, n = table(), counts()
    basis = principal_basis(rows, n)
    weighted = rows.double().numpy() * np.sqrt(n)[:, None]
    _, singular, right = np.linalg.svd(weighted, full_matrices=False)
    overlap = np.abs((right * basis.axes.numpy()).sum(axis=1))
    assert np.allclose(overlap, 1, atol=1e-5)
    assert basis.energy is not None
    assert np.allclose(basis.energy.numpy(), singular**2 / n.sum(), rtol=1e-9)
    assert (basis.axes.gather(1, basis.axes.abs().argmax(1, keepdim=True)) > 0).all()


@pytest.mark.parametrize("keep", [1, 3, 7])
def test_a_prefix_loses_what_the_energies_say_and_less_than_any_other_basis(keep: int):
    rows, n = table(1), counts(1)
    basis = principal_basis(rows, n)

    def loss(of: Basis) -> float:
        read = of.cut(keep).rows(of.cut(keep).coordinates(rows))
        return float(((rows - read).double().square().sum(1) * torch.from_numpy(n)).sum() / n.sum())

    assert basis.energy is not None
    assert loss(basis) == pytest.approx(float(basis.energy[keep:].sum()), rel=1e-4)
    rng = np.random.default_rng(5)
    for _ in range(20):
        other = np.linalg.qr(rng.standard_normal((DIM, DIM)))[0]
        assert loss(basis) <= loss(Basis(torch.from_numpy(other)))
    assert loss(basis) <= loss(principal_basis(rows))


def test_one_answer_from_tensors_arrays_maps_blocks_and_parts(tmp_path: Path):
    rows, n = table(2), counts(2)
    path = tmp_path / "rows"
    rows.numpy().tofile(path)
    mapped = np.memmap(path, dtype=np.float32, mode="r", shape=(ROWS, DIM))
    blocks = ((rows[a : a + 7], n[a : a + 7]) for a in range(0, ROWS, 7))
    left, right = Moments(DIM).add(rows[:100], n[:100]), Moments(DIM).add(rows[100:], n[100:])
    wanted = principal_basis(rows, n)
    assert wanted.energy is not None
    for found in (
        principal_basis(rows.numpy(), torch.from_numpy(n)),
        principal_basis(mapped, n.tolist()),
        principal_basis(blocks),
        principal_basis(row_blocks(rows, n, block_rows=11)),
        principal_basis(left.merge(right)),
        principal_basis(rows.numpy().T.copy().T, n),  # columns first in memory
    ):
        assert torch.allclose(found.axes, wanted.axes, atol=1e-6)
        assert found.energy is not None
        assert torch.allclose(found.energy, wanted.energy, rtol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_rows_of_other_types(dtype: torch.dtype):
    rows = table(3).to(dtype)
    found, wanted = principal_basis(rows), principal_basis(rows.float())
    assert torch.allclose(found.axes, wanted.axes, atol=1e-5)
    turned = rows.clone()
    turn_in_place(turned, found)
    assert turned.dtype == dtype
    assert torch.allclose(turned.float(), found.coordinates(rows.float()), atol=0.02)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(1, 9), st.integers(0, 10**6), st.data())
def test_turning_there_and_back(rows: int, dim: int, seed: int, data: st.DataObject):
    original = table(seed, rows, dim)
    basis = principal_basis(original)
    turned = original.clone()
    turn_in_place(turned, basis)
    assert torch.allclose(basis.rows(turned), original, atol=1e-5)
    assert torch.allclose(turned.norm(dim=1), original.norm(dim=1), atol=1e-5)
    width = data.draw(st.integers(1, dim))
    cut = original.clone()
    turn_in_place(cut, basis.cut(width))
    assert torch.equal(cut[:, width:], torch.zeros(rows, dim - width))
    assert torch.allclose(cut[:, :width], turned[:, :width], atol=1e-6)


def test_a_memory_map_is_turned_where_it_lies(tmp_path: Path):
    rows = table(4)
    rows.numpy().tofile(tmp_path / "rows")
    mapped = np.memmap(tmp_path / "rows", dtype=np.float32, mode="r+", shape=(ROWS, DIM))
    basis = principal_basis(mapped)
    turn_in_place(mapped, basis)
    mapped.flush()
    found = np.fromfile(tmp_path / "rows", dtype=np.float32).reshape(ROWS, DIM)
    assert np.allclose(found, rows.numpy() @ basis.axes.numpy().T, atol=1e-6)


def test_axes_that_are_not_orthonormal():
    rng = np.random.default_rng(0)
    for shape in ((3, 8), (8, 8), (12, 8)):  # narrow, square, wide as MLET trains
        axes = rng.standard_normal(shape).astype(np.float32)
        basis = Basis(torch.from_numpy(axes))
        rows = table(6, 20, 8)
        nearest = np.linalg.lstsq(axes.T.astype(np.float64), rows.numpy().T, rcond=None)[0].T
        assert np.allclose(basis.coordinates(rows).numpy(), nearest, atol=1e-4)
    gradient = torch.randn(5, 8)
    coordinates = torch.randn(5, 12, requires_grad=True)
    (basis.rows(coordinates) * gradient).sum().backward()
    assert coordinates.grad is not None
    assert torch.allclose(basis.gradient(gradient), coordinates.grad, atol=1e-5)


def test_counts_of_any_kind():
    plain = np.array([3, 0, 7, 1])
    for counted in (plain, plain[::-1][::-1], torch.from_numpy(plain), RowCounts.from_rows(plain)):
        found = lookups(counted)
        assert found is not None
        assert found.tolist() == [3, 0, 7, 1]
    assert lookups(None) is lookups(np.zeros(4)) is None  # nobody has looked anything up


def test_errors_say_what_came():
    rows = table()
    broken = rows.clone()
    broken[123, 4] = float("nan")
    with pytest.raises(InvalidInputError, match="rows 0 to 299 should be finite"):
        principal_basis(broken)
    broken[123, 4] = float("inf")
    with pytest.raises(InvalidInputError, match="rows 100 to 199 should be finite"):
        principal_basis(row_blocks(broken, None, block_rows=100))
    for bad in ([1.0], np.full(ROWS, -1), np.full(ROWS, np.nan)):
        with pytest.raises(InvalidInputError, match="counts should be one|weights should be"):
            principal_basis(rows, bad)
    with pytest.raises(InvalidInputError, match="above 0 for some row"):
        principal_basis(rows, np.zeros(ROWS))
    for width in (0, DIM + 1):
        with pytest.raises(InvalidInputError, match="width should be from 1 to 12"):
            principal_basis(rows, width=width)
    with pytest.raises(InvalidInputError, match="at least one block"):
        principal_basis(iter(()))
    with pytest.raises(InvalidInputError, match="the basis' 12 columns"):
        turn_in_place(rows[:, :3], principal_basis(rows))
    frozen = rows.numpy().copy()
    frozen.setflags(write=False)
    with pytest.raises(InvalidInputError, match="writable"):
        turn_in_place(frozen, principal_basis(rows))
    with pytest.raises(InvalidInputError, match="finite matrix"):
        Basis(torch.full((2, 2), float("nan")))
    with pytest.raises(InvalidInputError, match="one number an axis"):
        Basis(torch.eye(2), torch.ones(3))


def test_rows_that_count_nothing_have_no_say():
    rows, n = table(7), counts(7)
    n[::2] = 0
    found, wanted = principal_basis(rows, n), principal_basis(rows[1::2], n[1::2])
    assert torch.allclose(found.axes, wanted.axes, atol=1e-5)
