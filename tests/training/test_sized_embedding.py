"""SizedEmbedding against the full table times a mask, to the last bit, through training."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from bet_torchrec.errors import InvalidInputError
from bet_torchrec.evaluation import fake_quantise_rows
from bet_torchrec.training import SizedEmbedding, TensorTables, sized_embedding

SIZES = {"user": np.array([3, 0, 8, 1, 3]), "item": np.array([2, 2, 5])}


def full_tables(width: int = 8) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {k: torch.randn(len(v), width, generator=generator) for k, v in SIZES.items()}


def mask(sizes: np.ndarray, width: int) -> torch.Tensor:
    return (torch.arange(width) < torch.from_numpy(np.asarray(sizes))[:, None]).float()


sizes_lists = st.lists(st.integers(0, 9), min_size=1, max_size=12)


@settings(max_examples=50, deadline=None)
@given(sizes_lists, sizes_lists)
def test_reads_are_the_masked_table(users, items):
    sizes = {"user": np.array(users), "item": np.array(items)}
    tables = {k: torch.randn(len(v), 9) for k, v in sizes.items()}
    module = SizedEmbedding(sizes).load_prefix(tables)
    assert module.width == max(1, *users, *items)
    assert module.num_weights() == sum(users) + sum(items)
    for name, table in tables.items():
        expected = table * mask(sizes[name], 9)
        assert torch.equal(module.full_tables(9)[name], expected)
        ids = torch.tensor([0, len(table) - 1, 0])
        assert torch.equal(module.lookup(name, ids), expected[ids][:, : module.width])
        assert np.array_equal(module.sizes(name), sizes[name])


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.SGD(p, lr=0.3),
        lambda p: torch.optim.Adam(p, lr=0.1),
        lambda p: torch.optim.Adagrad(p, lr=0.1),
    ],
)
def test_training_is_that_of_the_masked_table(make):
    tables = full_tables()
    module = SizedEmbedding(SIZES).load_prefix(tables)
    masks = {k: mask(v, 8) for k, v in SIZES.items()}
    oracle = {k: (t * masks[k]).clone().requires_grad_() for k, t in tables.items()}
    ours, theirs = make(list(module.parameters())), make(list(oracle.values()))
    target = {k: torch.randn_like(t) for k, t in tables.items()}

    def loss(read) -> torch.Tensor:
        users, items = read("user"), read("item")
        return (users @ items.T).tanh().sum() + sum(
            (read(k) - t).square().sum() for k, t in target.items()
        )

    for _ in range(5):
        for optimizer, read in (
            (ours, module.table),
            (theirs, lambda k: oracle[k] * masks[k]),
        ):
            optimizer.zero_grad()
            loss(read).backward()
            optimizer.step()
        for name in SIZES:
            assert torch.equal(module.table(name), oracle[name] * masks[name])


TALL = {
    "mixed": np.arange(40) % 9,
    "equal": np.full(40, 3),
    "dropped": np.zeros(40, int),
    "full": np.full(40, 8),
}


@pytest.mark.parametrize("name", TALL)
@pytest.mark.parametrize("ids", [[7], [3, 3, 39, 0, 3], [], list(range(40)), [[1, 2], [2, 9]]])
@pytest.mark.parametrize("spread", [0, 2, 100])
def test_lookups_are_those_of_the_masked_table(name, ids, spread, monkeypatch):
    """To the last bit, gradients too, whichever way the cost decides for."""
    monkeypatch.setattr(sized_embedding, "SPREAD_ROWS", spread)
    full = {key: torch.randn(40, 8) for key in TALL}
    module = SizedEmbedding(TALL).load_prefix(full)
    ids = torch.tensor(ids, dtype=torch.int64)
    oracle = full[name].clone().requires_grad_()
    masked = oracle * mask(TALL[name], 8)
    ours, theirs = module.lookup(name, ids), F.embedding(ids, masked)
    assert torch.equal(ours, theirs)
    upstream = torch.randn(ours.shape)
    (ours * upstream).sum().backward()
    (theirs * upstream).sum().backward()
    own = mask(TALL[name], 8).bool()
    assert torch.equal(module.values[name].grad, oracle.grad[own])


@pytest.mark.parametrize("name", TALL)
@pytest.mark.parametrize("spread", [0, 100])
@pytest.mark.parametrize("wrong", [-1, 40])
def test_ids_out_of_range_are_an_error(name, spread, wrong, monkeypatch):
    monkeypatch.setattr(sized_embedding, "SPREAD_ROWS", spread)
    with pytest.raises(IndexError):
        SizedEmbedding(TALL).lookup(name, torch.tensor([0, wrong]))


def test_full_sizes_read_the_parameter_itself():
    module = SizedEmbedding({"user": np.full(4, 3)})
    assert module.table("user").data_ptr() == module.values["user"].data_ptr()


def test_drawing_is_repeatable_and_normal():
    def draw(seed: int) -> torch.Tensor:
        module = SizedEmbedding({"user": np.full(300, 50)})
        return module.draw(0.1, torch.Generator().manual_seed(seed)).table("user")

    assert torch.equal(draw(0), draw(0))
    assert not torch.equal(draw(0), draw(1))
    assert draw(0).std().item() == pytest.approx(0.1, rel=0.03)


def test_quantised_reads_each_width_as_a_table_of_its_own():
    module = SizedEmbedding(SIZES).load_prefix(full_tables())
    precisions = {"user": np.array(["int8", "fp32", "int4", "int8", "fp32"]), "item": "int4"}
    read = module.quantised(precisions)
    for name, sizes in SIZES.items():
        rows = np.broadcast_to(precisions[name], sizes.shape)
        for row, (size, precision) in enumerate(zip(sizes, rows, strict=True)):
            own = module.table(name)[row : row + 1, :size]
            expected = fake_quantise_rows(own, str(precision)) if size else own
            assert torch.equal(read.table(name)[row, :size], expected[0].detach())
            assert not read.table(name)[row, size:].any()
    assert torch.equal(
        read.lookup("item", torch.tensor([2, 0])), read.table("item")[torch.tensor([2, 0])]
    )


def test_wider_reads_and_copies():
    module = SizedEmbedding(SIZES, width=11).load_prefix(full_tables())
    assert module.table("item").shape == (3, 11)
    copies = module.full_tables()
    copies["item"].zero_()
    assert module.table("item").any()


def test_state_dict_round_trip():
    module = SizedEmbedding(SIZES).load_prefix(full_tables())
    other = SizedEmbedding(SIZES)
    other.load_state_dict(module.state_dict())
    assert all(torch.equal(module.table(k), other.table(k)) for k in SIZES)


def test_all_dropped():
    module = SizedEmbedding({"user": np.zeros(3, int)})
    assert torch.equal(module.table("user"), torch.zeros(3, 1))


@pytest.mark.parametrize(
    ("sizes", "match"),
    [
        ({}, "at least one table"),
        ({"a": np.array([1.5])}, "integers"),
        ({"a": np.array([-1])}, "integers"),
        ({"a": np.array([[1]])}, "flat"),
    ],
)
def test_bad_sizes(sizes, match):
    with pytest.raises(InvalidInputError, match=match):
        SizedEmbedding(sizes)


def test_bad_arguments():
    module = SizedEmbedding(SIZES)
    with pytest.raises(InvalidInputError, match="largest size, 8"):
        SizedEmbedding(SIZES, width=4)
    with pytest.raises(InvalidInputError, match="expected tables"):
        module.load_prefix({"user": torch.ones(5, 8)})
    with pytest.raises(InvalidInputError, match="at least 8 wide"):
        module.load_prefix(full_tables(7))
    with pytest.raises(InvalidInputError, match="std"):
        module.draw(0.0)
    with pytest.raises(InvalidInputError, match="at least 8"):
        module.full_tables(4)
    with pytest.raises(InvalidInputError, match="common width"):
        TensorTables({"a": F.one_hot(torch.tensor([0, 1])).float(), "b": torch.ones(1, 3)})


@pytest.mark.parametrize("name", ["items", "values", "training", "type"])
def test_names_may_be_those_of_methods(name):
    made = SizedEmbedding({name: np.array([1, 2])}).load_prefix({name: torch.ones(2, 2)})
    assert made.lookup(name, torch.tensor([0])).tolist() == [[1, 0]]


def test_names_may_have_dots():
    sizes = {"ads.user": np.array([2, 0, 3]), "ads.item": np.array([0, 0])}
    made = SizedEmbedding(sizes).draw(0.1, torch.Generator().manual_seed(0))
    full = {"ads.user": torch.arange(9.0).view(3, 3), "ads.item": torch.ones(2, 3)}
    made.load_prefix(full)
    expected = torch.tensor([[0.0, 1, 0], [0, 0, 0], [6, 7, 8]])
    assert torch.equal(made.table("ads.user"), expected)
    assert torch.equal(made.lookup("ads.item", torch.tensor([1, 0])), torch.zeros(2, 3))
    other = SizedEmbedding(sizes)
    other.load_state_dict(made.state_dict())
    assert torch.equal(other.full_tables()["ads.user"], expected)
