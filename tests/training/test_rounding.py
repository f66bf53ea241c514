"""Rounded reads against what serving reads, and their gradients by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bet_torchrec import RowCounts
from bet_torchrec.axes import principal_basis
from bet_torchrec.column_codes import CodedEmbedding, encode_tables
from bet_torchrec.errors import InvalidInputError
from bet_torchrec.evaluation.quantisation import fake_quantise_rows
from bet_torchrec.training import SizedEmbedding, TrainSettings, rounding_epochs
from bet_torchrec.training.rounding import ColumnCodes, RoundedRows, coded, rounded_rows
from bet_torchrec.training.rounding.codes import STRIDE

ROWS, DIM = {"user": 300, "item": 40}, 6


def test_the_gradient_of_codes_by_hand():
    # One column of 2 bits, scale 0.5, offset -1: levels -1, -0.5, 0, 0.5.
    values = torch.tensor([[-0.6], [0.2], [-1.4], [2.0]], requires_grad=True)
    scale = torch.tensor([0.5], requires_grad=True)
    offset = torch.tensor([-1.0], requires_grad=True)
    read = coded(values, scale, offset, torch.tensor([3.0]))
    assert read.flatten().tolist() == [-0.5, 0.0, -1.0, 0.5]
    # positions .8, 2.4, -.8, 6: codes 1, 2, then clipped to 0 and 3
    weights = torch.tensor([[1.0], [10.0], [100.0], [1000.0]])
    (read * weights).sum().backward()
    assert values.grad.flatten().tolist() == [1, 10, 0, 0]
    assert scale.grad.item() == pytest.approx((1 - 0.8) + 10 * (2 - 2.4) + 0 + 1000 * 3, rel=1e-5)
    assert offset.grad.item() == 100 + 1000


def test_a_column_without_codes_is_its_offset():
    values = torch.randn(5, 1, requires_grad=True)
    scale, offset = torch.ones(1, requires_grad=True), torch.full((1,), 0.25, requires_grad=True)
    read = coded(values, scale, offset, torch.zeros(1))
    assert torch.equal(read, torch.full((5, 1), 0.25))
    read.sum().backward()
    assert not values.grad.any()
    assert not scale.grad.any()
    assert offset.grad.item() == 5


@pytest.mark.parametrize("precision", ["fp16", "int8", "int4", "int2"])
def test_rounded_rows_read_as_served_and_pass_gradients(precision: str):
    rows = torch.randn(7, DIM, requires_grad=True)
    read = rounded_rows(rows, torch.full((7,), DIM), precision)
    assert torch.equal(read, fake_quantise_rows(rows, precision))
    given = torch.randn(7, DIM)
    read.backward(given)
    assert torch.equal(rows.grad, given)


def test_rows_of_many_precisions_read_as_the_quantised_tables():
    sizes = {"user": np.arange(ROWS["user"]) % (DIM + 1), "item": np.full(ROWS["item"], DIM)}
    inner = SizedEmbedding(sizes).draw(0.1, torch.Generator().manual_seed(0))
    names = np.array(["fp32", "int8", "int4", "int2", "fp16"])
    precisions = {"user": names[np.arange(ROWS["user"]) % 5], "item": "int4"}
    module, served = RoundedRows(inner, precisions), inner.quantised(precisions)
    few = torch.tensor([0, 3, 3, 17])  # rounds these rows alone
    many = torch.randint(0, 40, (500,))  # rounds every row once
    for name in sizes:
        assert torch.equal(module.table(name), served.table(name))
        for ids in (few, many):
            assert torch.equal(module.lookup(name, ids), served.lookup(name, ids))
    before = {name: values.clone() for name, values in inner.values.items()}
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    module.lookup("user", few).sum().backward()
    optimizer.step()
    # What is looked up moves by its gradient, twice for the row that is asked for twice.
    moved = inner.table("user") - torch.zeros(1)
    start = SizedEmbedding(sizes)
    for name, values in before.items():
        start.values[name].data.copy_(values)
    change = (moved - start.table("user")).detach()
    used = torch.arange(DIM) < torch.from_numpy(sizes["user"])[:, None]
    expected = torch.zeros(ROWS["user"])
    expected[3], expected[17] = -0.2, -0.1
    assert torch.allclose(change, expected[:, None] * used, atol=1e-7)


def coded_tables(blocks: int, *, turned: bool):
    rng = np.random.default_rng(blocks)
    full = {k: torch.from_numpy(rng.standard_normal((n, DIM), np.float32)) for k, n in ROWS.items()}
    counts = {
        k: RowCounts.from_rows(rng.zipf(1.5, n).clip(max=999).astype(np.int64))
        for k, n in ROWS.items()
    }
    bases = {k: principal_basis(t, width=4) for k, t in full.items()} if turned else {}
    forms = encode_tables(full, counts, limit=2800, bases=bases, rank_blocks=blocks)
    coordinates = {k: bases[k].coordinates(t) if turned else t for k, t in full.items()}
    return full, forms, ColumnCodes(forms, coordinates)


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("blocks", [1, 3])
def test_codes_read_as_their_tables_before_and_after_training(blocks: int, turned: bool):
    full, forms, module = coded_tables(blocks, turned=turned)
    started, ids = CodedEmbedding(forms), torch.tensor([5, 0, 39, 5])
    for name in ROWS:
        # Ties of rounding apart, what is read at first is what the codes say.
        differs = (module.table(name) - started.table(name)).abs() > 1e-4
        assert differs.float().mean() < 0.01
        assert torch.equal(module.lookup(name, ids), module.table(name)[ids])
    optimizer = torch.optim.Adam(module.parameters(), lr=2e-2)
    losses = []
    for _ in range(40):  # towards rows that the first steps and offsets can't read
        loss = sum((module.table(name) - 2 * full[name] - 1).square().mean() for name in ROWS)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < (0.8 if turned else 0.5) * losses[0]  # four of six axes reach less
    trained = module.coded()
    served = CodedEmbedding(trained)
    for name, table in trained.items():
        assert torch.equal(served.table(name), module.table(name))
        assert torch.equal(served.lookup(name, ids), module.lookup(name, ids))
        assert table.nbytes == forms[name].nbytes
        assert np.allclose(table.read(ids.numpy()), module.lookup(name, ids).detach(), atol=1e-5)
    assert any(
        (a.scale != b.scale).any()
        for a, b in zip(trained["user"].blocks, forms["user"].blocks, strict=True)
    )
    assert module.full_tables(8)["item"].shape == (ROWS["item"], 8)


def test_errors_say_what_came():
    full, forms, _ = coded_tables(1, turned=True)
    with pytest.raises(InvalidInputError, match=r"expected coordinates \(300, 4\), got \(300, 6\)"):
        ColumnCodes(forms, full)
    with pytest.raises(InvalidInputError, match="expected coordinates of tables"):
        ColumnCodes(forms, {"user": full["user"]})
    with pytest.raises(InvalidInputError, match="at least 6, got 5"):
        ColumnCodes(forms, {k: t[:, :4] for k, t in full.items()}).full_tables(5)


def test_a_step_of_adam_moves_a_coordinate_by_strides_of_its_column():
    """Adam's first step is the learning rate, whatever the gradient's size."""
    _, _, module = coded_tables(1, turned=False)
    part = module.parts[0]
    before = (part.values * part.unit).detach().clone()
    optimizer = torch.optim.Adam([part.values], lr=1e-3)
    module.table("user").square().sum().backward()
    moving = part.values.grad != 0
    optimizer.step()
    moved = ((part.values * part.unit).detach() - before).abs()
    sizes = before.square().mean(dim=0).sqrt()
    expected = (1e-3 * STRIDE * sizes).expand_as(moved)
    assert moving.any()
    torch.testing.assert_close(moved[moving], expected[moving], rtol=1e-3, atol=0)


def test_rounding_epochs_are_two_thirds_of_the_model_s_and_at_least_six():
    training = TrainSettings(lr=0.5)
    for trained, epochs in ((0, 6), (8, 6), (30, 20)):
        found = rounding_epochs(training, 100, trained=trained)
        assert found.max_epochs == epochs
        assert found.lr_decay_steps == 100
        assert found.lr * found.lr_decay**epochs == pytest.approx(0.5 / 64)
