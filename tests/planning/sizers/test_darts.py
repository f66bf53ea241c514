"""DartsEmb: the mixture of prefixes by hand, the turns, and what a search ends at."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fitting_workbench import FittingWorkbench

from bet_torchrec.errors import InfeasibleBudgetError, InvalidInputError
from bet_torchrec.planning import Budget, RowCounts, TableSpec
from bet_torchrec.planning.sizers import DartsEmb, SizingProblem
from bet_torchrec.planning.sizers.darts import MixedPrefixes, TakingTurns

TABLES = (TableSpec("user", 4, 4), TableSpec("item", 3, 2))


def targets():
    """Users 0 and 3 need four columns, the others none beyond the first."""
    found = {t.name: torch.zeros(t.num_embeddings, t.embedding_dim) for t in TABLES}
    found["user"][:, 0] = found["item"][:, 0] = 1.0
    found["user"][[0, 3], 1:] = 3.0
    return found


def problem(budget, *, bench=None):
    return SizingProblem(
        tables=TABLES,
        counts=[RowCounts.from_rows(range(t.num_embeddings, 0, -1)) for t in TABLES],
        budget=budget,
        widths=(0, 1, 2, 4),
        seed=5,
        workbench=bench or FittingWorkbench(targets(), steps=400),
    )


def test_a_mixture_by_hand():
    mixed = MixedPrefixes({"t": torch.full((2, 3), 10.0)}, {"t": (1, 3)})
    with torch.no_grad():
        mixed.choices["t"][1] = torch.tensor([0.0, float(np.log(3))])  # 1/4 and 3/4
    assert torch.allclose(mixed.table("t"), torch.tensor([[10, 5, 5], [10, 7.5, 7.5]]))
    assert torch.equal(mixed.lookup("t", torch.tensor([1])), mixed.table("t")[1:])
    assert mixed.expected()["t"] == pytest.approx([2, 2.5])
    assert mixed.likeliest()["t"].tolist() == [1, 3]
    mixed.table("t")[0, 2].backward()
    # d (10 p_3) / d choices = 10 p_3 (-p_1, 1 - p_3)
    assert mixed.choices["t"].grad.tolist() == [[-2.5, 2.5], [0, 0]]


def test_groups_take_turns():
    first, second = (torch.nn.Parameter(torch.ones(1)) for _ in range(2))
    optimizer = TakingTurns([{"params": [first]}, {"params": [second]}])
    moved = []
    for _ in range(4):
        before = first.item(), second.item()
        (first + second).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        moved.append((first.item() != before[0], second.item() != before[1]))
    assert moved == [(True, False), (False, True)] * 2


def test_rows_that_need_columns_get_them():
    plan = DartsEmb()(problem(Budget.parameters(13)))
    sizes = plan.sizes("user")
    assert min(sizes[[0, 3]]) > max(sizes[[1, 2]])
    assert plan.cost() == 13
    assert DartsEmb()(problem(Budget.parameters(13))) == plan


def test_the_published_end_is_what_it_is():
    own = DartsEmb(budgeted=False, options=(1, 4))
    plan = own(problem(Budget.parameters(22)))
    assert plan.sizes("user").tolist() == [4, 1, 1, 4]
    assert set(plan.sizes("item").tolist()) == {1}
    assert plan.cost() == 13
    with pytest.raises(InfeasibleBudgetError, match="at least 13 parameters"):
        own(problem(Budget.parameters(12)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"options": ()}, "options should be widths"),
        ({"options": (4, 2)}, "options should be widths"),
        ({"options": (0, 2)}, "options should be widths"),
        ({"rate": 0}, "rate should be positive"),
        ({"init_std": -1}, "init_std should be positive"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(InvalidInputError, match=message):
        DartsEmb(**settings)
