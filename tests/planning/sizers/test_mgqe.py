"""MGQE: the codebook's straight-through and pull by hand, who chooses among what, its account."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fitting_workbench import FittingWorkbench

from bet_torchrec.errors import InfeasibleBudgetError, InvalidInputError
from bet_torchrec.planning import Budget, RowCounts, TableSpec
from bet_torchrec.planning.sizers import MGQE, SizingProblem
from bet_torchrec.planning.sizers.mgqe import StraightThrough, nearest


def problem(budget, *, rows=100, dim=4, counts=None):
    counts = np.arange(rows, 0, -1) if counts is None else counts
    return SizingProblem(
        tables=(TableSpec("t", rows, dim),),
        counts=[RowCounts.from_rows(counts)],
        budget=budget,
        widths=(0, 1, 2, 4),
    )


def test_nearest_centroids_by_hand():
    book = torch.tensor(
        [[[0.0, 0.0], [4.0, 0.0], [1.0, 1.0]], [[9.0, 9.0], [0.0, 1.0], [0.0, 1.0]]]
    )
    rows = torch.tensor([[3.0, 0.0, 0.0, 0.0], [0.8, 0.9, 8.0, 8.0]])
    assert nearest(rows, book, torch.tensor([3, 3])).tolist() == [[1, 1], [2, 0]]
    assert nearest(rows, book, torch.tensor([1, 2])).tolist() == [[0, 0], [0, 0]]


def test_the_gradient_goes_straight_through_and_both_sides_pull():
    rows = torch.tensor([[1.0, 2.0], [3.0, 5.0]], requires_grad=True)
    book = torch.tensor([[[0.0], [2.0]], [[4.0], [7.0]]], requires_grad=True)  # S = K = 2
    codes = torch.tensor([[1, 0], [1, 1]])
    read = StraightThrough.apply(rows, book, codes, 0.5)
    assert read.tolist() == [[2, 4], [2, 7]]
    read.backward(torch.tensor([[10.0, 20.0], [30.0, 40.0]]))
    # .5 / 2 rows * (row - centroid) = [[-.25, -.5], [.25, -.5]]
    assert rows.grad.tolist() == [[9.75, 19.5], [30.25, 39.5]]
    assert book.grad.tolist() == [[[0], [10.25 + 29.75]], [[20.5], [40.5]]]


def test_without_a_pull_the_gradient_is_that_of_the_surrogate():
    rows = torch.randn(5, 4, requires_grad=True)
    book = torch.randn(2, 3, 2, requires_grad=True)
    codes = nearest(rows, book, torch.full((5,), 3))
    weight = torch.randn(5, 4)
    StraightThrough.apply(rows, book, codes, 0.0).mul(weight).sum().backward()
    found = rows.grad, book.grad
    rows.grad = book.grad = None
    centroids = torch.cat([book[s, codes[:, s]] for s in range(2)], 1)
    (centroids + rows - rows.detach()).mul(weight).sum().backward()
    assert torch.allclose(found[0], rows.grad)
    assert torch.allclose(found[1], book.grad)


def test_the_tail_chooses_among_fewer():
    counts = np.ones(100, int)
    counts[[7, 90]] = 50
    found = MGQE(head=0.02)(problem(Budget.parameters(120), counts=counts))
    assert [head.tolist() for head in found.form.heads] == [[7, 90]]
    module = found.build(0)
    with torch.no_grad():
        module.books["t"][:, : found.form.tail] = 100.0  # nobody's nearest
    codes = module.codes()["t"]
    head = torch.zeros(100, dtype=torch.bool)
    head[[7, 90]] = True
    assert (codes[head] >= found.form.tail).all()
    assert (codes[~head] < found.form.tail).all()


def test_its_account_by_hand():
    found = MGQE(head=0.5)(problem(Budget.parameters(200)))
    form = found.form
    assert (form.subspaces, form.centroids) == (4, 32)
    # 50 rows of 4 codes of 5 bits, 50 of 3 (8 of the 32): 1600 bits; 32 x 4 entries
    assert form.code_bytes() == 200
    assert found.parameters() == found.cost() == 50 + 128
    assert found.bytes() == 200 + 4 * 128
    assert found.notes["in training"] == f"{100 * 4 + 128} weights"
    shuffled = np.random.default_rng(0).permutation(100)
    unranked = MGQE(head=0.5)(problem(Budget.parameters(200), counts=shuffled))
    assert unranked.form.code_bytes() == 200 + 13  # and a bit a row: is it of the head
    in_bytes = Budget.bytes(712, purpose="inference", dtype="fp32", alignment=1)
    assert MGQE(head=0.5)(problem(in_bytes)).cost() <= 712


def test_a_small_table_is_whole_and_a_tight_budget_narrows():
    whole = MGQE()(problem(Budget.parameters(400)))
    assert whole.parameters() == 400
    assert not whole.build(0).codes()
    narrow = MGQE()(problem(Budget.parameters(8)))
    assert narrow.cost() <= 8
    assert narrow.build(0).width < 4
    with pytest.raises(InfeasibleBudgetError, match="mgqe needs at least"):
        MGQE()(problem(Budget.parameters(1)))


def test_codes_are_learnt():
    generator = torch.Generator().manual_seed(0)
    centers = torch.randn(4, 4, generator=generator)
    targets = {"t": centers[torch.arange(100) % 4]}
    module = MGQE(head=1.0)(problem(Budget.parameters(60))).build(0)
    bench = FittingWorkbench(targets, steps=400)
    before = bench.error(module).item()
    bench.fit(module)
    assert bench.error(module).item() < 0.05 * before


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"head": 1.5}, "head should be a share"),
        ({"commitment": -1}, "commitment should be at least 0"),
        ({"init_std": 0}, "init_std should be positive"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(InvalidInputError, match=message):
        MGQE(**settings)
