"""Tables with bases from plan to plan, against numpy on the full tables."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from bases_cases import KINDS, PLANS, drawn_bases, ours, with_bases
from masked_cases import PLAN, SIZES, TABLES, VALUES, bags, plan_of
from torchrec import EmbeddingBagCollection

from bet_torchrec.axes import Basis
from bet_torchrec.embeddings import BudgetedEmbeddingBagCollection, migrate
from bet_torchrec.errors import InvalidInputError

rng = np.random.default_rng(3)
OTHER = plan_of(
    TABLES,
    {
        "user": rng.choice([0, 2, 4, 12], 40),
        "item": np.repeat([5, 4, 0], [7, 9, 7]),
        "gone": np.full(6, 2),
        "tag": rng.choice([1, 3], 9),
    },
)


def cut(rows: np.ndarray, axes: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Rows by their first coordinates in orthonormal axes."""
    kept = (rows @ axes.T) * (np.arange(len(axes)) < sizes[:, None])
    return kept @ axes


def close(found, wanted):
    torch.testing.assert_close(found, torch.as_tensor(wanted).float(), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("layout", ["bucketed", "prefix"])
@pytest.mark.parametrize("chunk", [7, 65536])
def test_from_full_tables_to_principal_axes(layout, chunk):
    plain = EmbeddingBagCollection(tables=[*TABLES])
    for name, bag in plain.embedding_bags.items():
        bag.weight.data.copy_(VALUES[name])
    counts = {"user": rng.integers(1, 9, 40), "tag": np.zeros(9)}
    target = BudgetedEmbeddingBagCollection(TABLES, PLANS[0], layout=layout)
    migrate(plain, target, counts=counts, chunk_rows=chunk)
    loaded = ours(PLANS[0], bases={}, layout=layout)
    loaded.load_full_tables(VALUES, counts=counts)
    for name, table in target.full_tables().items():
        close(table, loaded.full_tables()[name])
        if name != "gone":
            close(target.table_bases()[name].axes, loaded.table_bases()[name].axes)


def test_back_to_plain_rows():
    source = ours(PLANS[1])
    rows = source.full_tables()
    target = migrate(source, OTHER, rest="zeros")
    for name, table in target.full_tables().items():
        sizes = OTHER.sizes(name)
        mask = np.arange(table.shape[1]) < sizes[:, None]
        close(table, rows[name].numpy() * mask)
    # where the source dropped a row, the target's own initial values stay
    target = BudgetedEmbeddingBagCollection(TABLES, OTHER)
    before = target.full_tables()["user"]
    migrate(source, target)
    gone = (SIZES["user"] == 0) & (OTHER.sizes("user") > 0)
    assert gone.any()
    assert torch.equal(target.full_tables()["user"][gone], before[gone])


@pytest.mark.parametrize("layout", ["bucketed", "prefix"])
def test_between_bases_axes_and_coordinates_come_along(layout):
    source = ours(PLANS[2])
    bases, stored = source.table_bases(), {}
    for name, table in source.full_tables().items():
        stored[name] = bases[name].coordinates(table).numpy() if name in bases else None
    target = migrate(source, with_bases(KINDS[2], OTHER), layout=layout, rest="zeros")
    for name, basis in target.table_bases().items():
        if name == "gone":  # had nothing to come along
            continue
        shared = min(basis.width, bases[name].width)
        assert torch.equal(basis.axes[:shared], bases[name].axes[:shared])
        kept = stored[name][:, :shared] * (
            np.arange(shared) < np.minimum(OTHER.sizes(name), SIZES[name])[:, None]
        )
        close(target.full_tables()[name], kept @ basis.axes[:shared].numpy())


def test_more_axes_are_orthonormal_to_those_that_came():
    small = Basis(torch.linalg.qr(torch.randn(8, 8)).Q[:3])
    large = small.resized(6)
    assert torch.equal(large.axes[:3], small.axes)
    torch.testing.assert_close(large.axes @ large.axes.T, torch.eye(6), atol=1e-5, rtol=0)
    assert small.resized(2).width == 2
    with pytest.raises(InvalidInputError, match="at most 8 columns, got 9"):
        small.resized(9)


def test_turned_anew():
    source = ours(PLANS[0])
    rows = source.full_tables()
    counts = {"user": rng.integers(1, 9, 40)}
    target = migrate(
        source, with_bases(KINDS[0], OTHER), axes="principal", counts=counts, rest="zeros"
    )
    weighted = rows["user"].double() * torch.from_numpy(counts["user"]).sqrt()[:, None]
    right = torch.linalg.svd(weighted).Vh.numpy()
    sizes = OTHER.sizes("user")
    close(target.full_tables()["user"], cut(rows["user"].double().numpy(), right, sizes))


def stepped(module, optimizer, steps=3):
    for step in range(steps):
        optimizer.zero_grad()
        module(bags(step)).values().square().sum().backward()
        optimizer.step()


@pytest.mark.parametrize("make", [torch.optim.Adam, torch.optim.Adagrad])
def test_training_goes_on_as_if_nothing_had_happened(make):
    # The same sizes and bases in another layout: coordinates, axes and all state come along.
    source, twin = ours(PLANS[1]), ours(PLANS[1])
    optimizer, other = make(source.parameters(), lr=0.01), make(twin.parameters(), lr=0.01)
    stepped(source, optimizer)
    stepped(twin, other)
    target = BudgetedEmbeddingBagCollection(TABLES, PLANS[1], layout="prefix")
    after = make(target.parameters(), lr=0.01)
    migrate(source, target, optimizer=optimizer, target_optimizer=after)
    stepped(target, after)
    stepped(twin, other)
    for name, table in twin.full_tables().items():
        torch.testing.assert_close(target.full_tables()[name], table, atol=1e-5, rtol=1e-4)


def test_turned_tables_start_their_state_anew():
    source = ours(PLANS[0])
    optimizer = torch.optim.Adagrad(source.parameters(), lr=0.01)
    stepped(source, optimizer)
    target = BudgetedEmbeddingBagCollection(TABLES, PLAN)
    after = torch.optim.Adagrad(target.parameters(), lr=0.01, initial_accumulator_value=0.5)
    migrate(source, target, optimizer=optimizer, target_optimizer=after)
    assert not any(after.state[weight]["sum"].any() for weight in target.parameters())


def test_what_does_not_fit_is_named():
    wide = drawn_bases(PLANS[0])["user"]
    narrow = [t for t in TABLES if t.name == "user"]
    import dataclasses

    other = [dataclasses.replace(narrow[0], embedding_dim=16)]
    source = ours(PLANS[0])
    plan = plan_of(other, {"user": np.full(40, 3)})
    with pytest.raises(InvalidInputError, match="one embedding_dim, got 12 and 16"):
        migrate(
            BudgetedEmbeddingBagCollection(narrow, PLANS[0]).load_full_tables(
                {"user": VALUES["user"]}, bases={"user": wide}
            ),
            BudgetedEmbeddingBagCollection(other, plan),
        )
    with pytest.raises(InvalidInputError, match="axes 'kept' or 'principal'"):
        migrate(source, OTHER, axes="own")
