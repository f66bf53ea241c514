"""Tables in axes of their own against plain products, by hand and through training."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bet_torchrec.axes import Basis, principal_basis
from bet_torchrec.errors import InvalidInputError
from bet_torchrec.training import SizedEmbedding, TensorTables
from bet_torchrec.training.turned_embedding import TurnedEmbedding, orthonormal_basis

ROWS, DIM = {"user": 9, "item": 6}, 5


def full_tables(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {k: torch.randn(n, DIM, generator=generator) for k, n in ROWS.items()}


def turned(sizes: dict[str, np.ndarray], *, train: bool = False) -> TurnedEmbedding:
    full = full_tables()
    bases = {k: principal_basis(t) for k, t in full.items()}
    inner = SizedEmbedding(sizes)
    inner.load_prefix({k: bases[k].coordinates(t) for k, t in full.items()})
    return TurnedEmbedding(inner, bases, train=train)


def test_full_sizes_read_as_the_full_tables():
    module = turned({k: np.full(n, DIM) for k, n in ROWS.items()})
    for name, table in full_tables().items():
        assert torch.allclose(module.table(name), table, atol=1e-5)
        ids = torch.tensor([3, 0, 3])
        assert torch.allclose(module.lookup(name, ids), table[ids], atol=1e-5)
    assert module.width == DIM
    assert not [name for name, _ in module.named_parameters() if name.startswith("axes")]
    assert module.full_tables(7)["user"].shape == (9, 7)
    assert torch.equal(module.full_tables(7)["user"][:, DIM:], torch.zeros(9, 2))


@pytest.mark.parametrize("train", [False, True])
def test_training_is_that_of_the_plain_product(train: bool):
    sizes = {"user": np.array([3, 0, 1, 2, 3, 3, 1, 1, 0]), "item": np.full(6, 2)}
    module = turned(sizes, train=train)
    start = module.bases()
    coordinates = {
        k: start[k].coordinates(t).clone().requires_grad_() for k, t in full_tables().items()
    }
    axes = {k: b.axes.clone().requires_grad_(train) for k, b in start.items()}
    mask = {k: (torch.arange(DIM) < torch.from_numpy(v)[:, None]).float() for k, v in sizes.items()}
    target = full_tables(1)
    ids = torch.tensor([4, 0, 4, 2])

    def loss(table, lookup) -> torch.Tensor:
        whole = (table("user") - target["user"]).square().sum()
        return whole + (lookup("item", ids) * target["item"][ids]).tanh().sum()

    def plain(name: str) -> torch.Tensor:
        return (coordinates[name] * mask[name]) @ axes[name]

    ours = torch.optim.SGD(module.parameters(), lr=0.05)
    theirs = torch.optim.SGD([*coordinates.values(), *(axes.values() if train else ())], lr=0.05)
    for _ in range(4):
        for optimizer, table, lookup in (
            (ours, module.table, module.lookup),
            (theirs, plain, lambda name, ids: plain(name)[ids]),
        ):
            optimizer.zero_grad()
            loss(table, lookup).backward()
            optimizer.step()
    for name in ROWS:
        assert torch.allclose(module.table(name), plain(name), atol=1e-5)
        kept = torch.equal(module.bases()[name].axes, start[name].axes)
        assert kept is not train


def test_saved_with_the_model():
    module, other = (
        turned({k: np.full(n, 2) for k, n in ROWS.items()}, train=t) for t in (True, False)
    )
    with torch.no_grad():
        module.axes("user").add_(1)
    other.load_state_dict(module.state_dict())
    assert torch.equal(other.table("user"), module.table("user"))


def test_a_table_without_axes_is_read_as_it_is():
    inner = TensorTables({"user": torch.ones(4, 2), "item": torch.ones(3, 2)})
    module = TurnedEmbedding(inner, {"user": Basis(torch.tensor([[1.0, 2, 3], [4, 5, 6]]))})
    assert module.table("user")[0].tolist() == [5, 7, 9]
    assert module.lookup("item", torch.tensor([1])).tolist() == [[1, 1, 0]]


def test_narrower_tables_are_padded_to_the_widest():
    inner = SizedEmbedding({"user": np.full(4, 2), "item": np.array([1, 3, 0]), "tag": [1, 1]})
    for values in inner.values.values():
        torch.nn.init.ones_(values)
    bases = {"user": Basis(torch.ones(2, 5)), "item": Basis(torch.ones(3, 4))}
    module = TurnedEmbedding(inner, bases, train=["item"])
    assert module.width == 5
    assert module.table("user")[0].tolist() == [2] * 5
    assert module.table("item")[1].tolist() == [3, 3, 3, 3, 0]
    assert module.table("tag")[0].tolist() == [1, 0, 0, 0, 0]
    assert module.num_weights() == (8 + 4 + 2) + (10 + 12)
    assert [n for n, _ in module.named_parameters() if n.startswith("axes")] == ["axes_1"]
    assert set(module.full_tables()) == {"user", "item", "tag"}
    with pytest.raises(InvalidInputError, match="at least 5, got 4"):
        module.full_tables(4)


@pytest.mark.parametrize(("width", "dim"), [(2, 5), (5, 5), (8, 5)])
def test_a_drawn_basis_is_orthonormal(width: int, dim: int):
    axes = orthonormal_basis(width, dim, torch.Generator().manual_seed(0)).axes
    assert axes.shape == (width, dim)
    gram = axes @ axes.T if width <= dim else axes.T @ axes
    assert torch.allclose(gram, torch.eye(min(width, dim)), atol=1e-5)
