"""Sensitivity against gradients by hand, exhaustive search, and the plan one would draw."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from bet_torchrec import Budget, RowCounts
from bet_torchrec.axes import principal_basis
from bet_torchrec.errors import InvalidInputError, MissingEvaluationError
from bet_torchrec.planning.sizers import Sensitivity, SizingProblem
from bet_torchrec.planning.sizers.sensitivity import (
    Gains,
    choose_widths,
    entry_losses,
    squared_gradients,
)
from bet_torchrec.planning.tables import TableSpec

ROWS = {"user": 4, "item": 3}


class Tables:
    """An embedding module over fixed tables."""

    def __init__(self, tables: dict[str, torch.Tensor]) -> None:
        self.tables, self.width = tables, 2

    def table(self, name: str) -> torch.Tensor:
        return self.tables[name]

    def lookup(self, name: str, ids: torch.Tensor) -> torch.Tensor:
        return self.tables[name][ids]


class TinyFM:
    """score = user . item; summed squared error; two batches."""

    def __init__(self, dim: int = 2) -> None:
        self.tables = tuple(TableSpec(name, n, dim) for name, n in ROWS.items())
        self.steps_per_epoch = 2
        self.batches = [
            (torch.tensor([0, 1, 0]), torch.tensor([1, 1, 2]), torch.tensor([1.0, 0.0, 2.0])),
            (torch.tensor([3]), torch.tensor([0]), torch.tensor([-1.0])),
        ]

    def batch(self, seed: int, step: int):
        return self.batches[step % 2]

    def loss(self, model, embedding, batch, generator=None) -> torch.Tensor:
        users, items, labels = batch
        scores = (embedding.lookup("user", users) * embedding.lookup("item", items)).sum(1)
        return model(scores - labels).square().sum()


def full_tables() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(n, 2, generator=generator) for name, n in ROWS.items()}


def by_hand(full: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Of each example alone: d loss / d user = 2 (u . i - y) i, squared and added up."""
    sums = {name: torch.zeros(n, 2) for name, n in ROWS.items()}
    for users, items, labels in TinyFM().batches:
        for u, i, y in zip(users.tolist(), items.tolist(), labels.tolist(), strict=True):
            user, item = full["user"][u], full["item"][i]
            error = 2 * (float(user @ item) - y)
            sums["user"][u] += (error * item) ** 2
            sums["item"][i] += (error * user) ** 2
    return sums


def test_squared_gradients_are_each_examples_own():
    full, model = full_tables(), nn.Dropout(0.5)
    found = squared_gradients(TinyFM(), model, Tables(full), batches=2)
    for name, wanted in by_hand(full).items():
        assert torch.allclose(found[name], wanted, rtol=1e-4, atol=1e-6)
    assert found["user"][2].tolist() == [0, 0]  # nobody asked for it
    assert model.training  # dropout was off, and is on again


def test_squared_gradients_in_other_axes_are_those_of_coordinates():
    full = full_tables()
    bases = {"user": principal_basis(full["user"])}
    found = squared_gradients(TinyFM(), nn.Identity(), Tables(full), batches=1, bases=bases)
    wanted = torch.zeros(4, 2)
    for u, i, y in ((0, 1, 1.0), (1, 1, 0.0), (0, 2, 2.0)):
        coordinates = bases["user"].coordinates(full["user"][u : u + 1])[0].requires_grad_()
        loss = (coordinates @ bases["user"].axes @ full["item"][i] - y).square()
        wanted[u] += torch.autograd.grad(loss, coordinates)[0].square()
    assert torch.allclose(found["user"], wanted, rtol=1e-4, atol=1e-6)


def test_whole_tables_that_are_read_give_the_batchs_gradient():
    class Graph(TinyFM):
        def loss(self, model, embedding, batch, generator=None):
            users, items, labels = batch
            scores = embedding.table("user") @ embedding.table("item").T
            return (scores[users, items] - labels).square().sum()

    full = full_tables()
    found = squared_gradients(Graph(), nn.Identity(), Tables(full), batches=1)
    leaves = {name: table.clone().requires_grad_() for name, table in full.items()}
    task = Graph()
    task.loss(None, Tables(leaves), task.batch(0, 0)).backward()
    for name, leaf in leaves.items():
        assert leaf.grad is not None
        assert torch.allclose(found[name], leaf.grad.square(), rtol=1e-4)


def test_an_entrys_expected_loss():
    rows, squares = torch.tensor([[2.0, 3.0, 1.0]]), torch.tensor([[4.0, 0.5]])
    assert entry_losses(rows, squares).tolist() == [[8.0, 2.25]]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 4), st.booleans(), st.floats(0, 1))
def test_no_choice_of_its_cost_gains_more(seed: int, blocks: int, falling: bool, share: float):
    rng = np.random.default_rng(seed)
    costs = np.array([0, 2, 3, 7])
    tables = [
        Gains(
            np.cumsum(rng.random((blocks, 4)) * rng.integers(0, 2, (blocks, 4)), axis=1),
            rng.integers(1, 5, blocks),
            depth,
            falling,
        )
        for depth in (4, 3)
    ]
    most = sum(int(t.rows.sum() * costs[t.depth - 1]) for t in tables)
    limit = int(share * most)
    found = choose_widths(tables, costs, limit)

    def legal(table: Gains):
        for levels in itertools.product(range(table.depth), repeat=blocks):
            if not table.falling or all(a >= b for a, b in itertools.pairwise(levels)):
                level = np.array(levels)
                gain = table.gain[np.arange(blocks), level].sum()
                yield int((table.rows * costs[level]).sum()), gain

    used = gained = 0
    for table, level in zip(tables, found, strict=True):
        assert (level < table.depth).all()
        if falling:
            assert (np.diff(level) <= 0).all()
        used += int((table.rows * costs[level]).sum())
        gained += table.gain[np.arange(blocks), level].sum()
    assert used <= limit
    # No other choice gains more at the cost of this one or less.
    each = [list(legal(table)) for table in tables]
    best = max((a[1] + b[1] for a, b in itertools.product(*each) if a[0] + b[0] <= used), default=0)
    assert gained == pytest.approx(best)


def problem(budget: Budget, *, ranked: bool, **more) -> SizingProblem:
    counts = np.array([9, 5, 2, 1]) if ranked else np.array([5, 1, 9, 2])
    return SizingProblem(
        tables=(TableSpec("t", 4, 2),),
        counts=(RowCounts.from_rows(counts),),
        budget=budget,
        widths=(0, 1, 2),
        **more,
    )


LOSSES = torch.tensor([[5.0, 4.0], [0.1, 0.1], [1.0, 9.0], [3.0, 0.1]])


def test_rows_of_their_own_sizes_where_an_order_is_there_anyway():
    # Of 4 entries: row 2 both (10 for two), row 0 both (9 for two); row 3's first, 3, is too late.
    sizer = Sensitivity(losses=lambda _: {"t": LOSSES})
    plan = sizer(problem(Budget.parameters(4), ranked=False))
    assert plan.sizes("t").tolist() == [2, 0, 2, 0]
    plan = sizer(problem(Budget.parameters(5), ranked=False))
    assert plan.sizes("t").tolist() == [2, 0, 2, 1]
    assert plan.sizer == "sensitivity"


def test_falling_sizes_where_ids_are_ranks():
    sizer = Sensitivity(losses=lambda _: {"t": LOSSES}, rank_blocks=100)
    plan = sizer(problem(Budget.parameters(7), ranked=True))
    assert plan["t"].order is None
    # By itself row 1 is worth nothing, but row 2 has at most as much as it: 10.2 for four entries.
    assert plan.sizes("t").tolist() == [2, 2, 2, 1]


def test_a_workbenchs_model_is_measured_once():
    full, task = full_tables(), TinyFM()
    trained = SimpleNamespace(
        model=nn.Identity(), embedding=Tables(full), full_tables=lambda: full, outcome=None
    )
    workbench = SimpleNamespace(task=task, full=lambda: trained)
    asked = SizingProblem(
        tables=task.tables,
        counts=(RowCounts.from_rows([2, 1, 0, 1]), RowCounts.from_rows([1, 2, 1])),
        budget=Budget.parameters(7),
        widths=(0, 1, 2),
        workbench=workbench,
    )
    wanted = {name: entry_losses(full[name], own) for name, own in by_hand(full).items()}
    plan = Sensitivity()(asked)
    assert plan == Sensitivity(losses=lambda _: wanted)(asked)
    assert plan.sizes("user")[2] == 0
    turned = Sensitivity(axes="principal")(asked)
    assert turned.cost() <= 7
    assert turned.metadata["axes"] == "principal"


def test_errors_say_what_came():
    with pytest.raises(MissingEvaluationError, match="workbench="):
        Sensitivity()(problem(Budget.parameters(4), ranked=True, evaluate=lambda plan: 1.0))
    with pytest.raises(InvalidInputError, match="expected losses of 4 rows of table 't'"):
        Sensitivity(losses=lambda _: {"t": LOSSES[:2]})(problem(Budget.parameters(4), ranked=True))
    for bad in ({"axes": "mine"}, {"rank_blocks": 0}):
        with pytest.raises(InvalidInputError, match="should be"):
            Sensitivity(**bad)
    with pytest.raises(InvalidInputError, match="batches"):
        squared_gradients(TinyFM(), nn.Identity(), Tables(full_tables()), batches=0)
    broken = {**full_tables(), "user": torch.full((4, 2), float("inf"))}
    with pytest.raises(InvalidInputError, match="gradients should be finite"):
        squared_gradients(TinyFM(), nn.Identity(), Tables(broken), batches=1)
