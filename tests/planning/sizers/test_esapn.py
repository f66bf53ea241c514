"""ESAPN: growth, the baseline, REINFORCE and what policies learn, by hand."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from fitting_workbench import FittingWorkbench

from bet_torchrec.errors import InfeasibleBudgetError, InvalidInputError
from bet_torchrec.planning import Budget, RowCounts, TableSpec
from bet_torchrec.planning.sizers import ESAPN, SizingProblem
from bet_torchrec.planning.sizers.esapn.growing import GrowingRows
from bet_torchrec.planning.sizers.esapn.policy import Policy, Rewards, reinforce
from bet_torchrec.planning.sizers.esapn.settings import Run, by_id, mean_by_row

TABLES = (TableSpec("user", 6, 4), TableSpec("item", 5, 2))


def targets():
    generator = torch.Generator().manual_seed(0)
    return {t.name: torch.rand(t.num_embeddings, t.embedding_dim, generator=generator) / 2
            for t in TABLES}  # fmt: skip


def problem(budget, *, steps=20, bench=None, seed=5):
    return SizingProblem(
        tables=TABLES,
        counts=[RowCounts.from_rows(range(t.num_embeddings, 0, -1)) for t in TABLES],
        budget=budget,
        widths=(0, 1, 2, 4),
        seed=seed,
        workbench=bench or FittingWorkbench(targets(), steps=steps),
    )


def grown(**settings):
    rows = GrowingRows(
        {"t": 3}, (1, 2), init_std=0.5, generator=torch.Generator().manual_seed(0), **settings
    ).eval()
    with torch.no_grad():
        rows.values["t"][:, 0] = torch.tensor([1.0, 2.0, 3.0])
        rows.growing[0]["t"].copy_(torch.tensor([[2.0, -1.0]]))
        rows.reading[0]["t"].copy_(torch.tensor([[1.0, 0.0]]))
        rows.reading[1]["t"].copy_(torch.tensor([[0.0, 1.0], [1.0, 0.0]]))
    return rows


def test_rows_grow_by_a_map_and_are_read_by_their_size():
    rows = grown()
    scale = 0.5 / (1 + rows.norm.eps) ** 0.5
    assert torch.allclose(
        rows.table("t"), torch.tanh(scale * torch.tensor([[1.0, 0], [2, 0], [3, 0]]))
    )
    rows.grow("t", torch.tensor([2, 0]))
    assert rows.values["t"].tolist() == [[2, -1], [2, 0], [6, -3]]
    assert rows.levels["t"].tolist() == [1, 0, 1]
    assert rows.entries() == 5
    read = torch.tanh(scale * torch.tensor([[-1.0, 2], [2, 0], [-3, 6]]))
    assert torch.allclose(rows.table("t"), read)
    assert torch.allclose(rows.lookup("t", torch.tensor([2, 1])), read[[2, 1]])
    rows.grow("t", torch.tensor([0]))  # the largest: stays
    assert rows.entries() == 5


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_what_is_tried_is_what_growth_would_be(share):
    rows = grown()
    kept = torch.atanh(rows.table("t"))
    with rows.trying({"t": torch.tensor([0.0, share, 0.0])}):
        tried = torch.atanh(rows.table("t"))
    assert torch.allclose(torch.atanh(rows.table("t")), kept)  # nothing is left of it
    rows.grow("t", torch.tensor([1]))
    whole = torch.atanh(rows.table("t"))
    assert torch.allclose(tried[1], (1 - share) * kept[1] + share * whole[1], atol=1e-5)
    assert torch.allclose(tried[[0, 2]], kept[[0, 2]])


def test_the_baseline_is_the_mean_of_the_last_five():
    rewards = Rewards(2)
    ids = torch.tensor([1])
    given = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.9]
    found = [rewards.advantage(ids, torch.tensor([g])).item() for g in given]
    by_hand = [0, 0.1, 0.15, 0.2, 0.25, 0.3, 0.9 - (0.2 + 0.3 + 0.4 + 0.5 + 0.6) / 5]
    assert found == pytest.approx(by_hand)
    assert rewards.advantage(torch.tensor([0]), torch.tensor([1.0])).item() == 0  # another row's


def test_reinforce_by_hand():
    logits = torch.zeros(2, 2, requires_grad=True)
    reinforce(logits, torch.tensor([1, 0]), torch.tensor([2.0, -4.0])).backward()
    # d -A log pi(a) / d logits = -A (1[a] - pi), a mean over two
    assert logits.grad.tolist() == [[0.5, -0.5], [1.0, -1.0]]


def test_errors_are_means_over_a_row_s_examples():
    errors, ids = torch.tensor([0.1, 0.5, 0.3]), torch.tensor([7, 4, 7, 4])
    found = mean_by_row(errors, ids, torch.tensor([0, 1, 2, 2]), torch.tensor([4, 7]))
    assert found.tolist() == pytest.approx([0.4, 0.2])


def test_counts_by_id():
    assert by_id(RowCounts.from_rows([2, 9, 4])).tolist() == [2, 9, 4]
    assert by_id(RowCounts.from_rows([9, 4, 2])).tolist() == [9, 4, 2]


def test_a_policy_learns_who_should_grow():
    """Rewarded for growing rows of count 100 and for keeping those of count 1."""
    policy = Policy(3, torch.Generator().manual_seed(0))
    optimizer = torch.optim.Adam(policy.parameters(), lr=1e-2)
    counts, levels = torch.tensor([1, 100] * 8), torch.zeros(16, dtype=torch.int64)
    generator = torch.Generator().manual_seed(1)
    for _ in range(60):
        logits = policy(counts, levels)
        actions = torch.multinomial(logits.detach().softmax(-1), 1, generator=generator)[:, 0]
        advantages = ((actions == 1) == (counts == 100)).float() * 2 - 1
        optimizer.zero_grad()
        reinforce(logits, actions, advantages).backward()
        optimizer.step()
    grow = policy(counts, levels).softmax(-1)[:, 1]
    assert grow[0] < 0.2
    assert grow[1] > 0.8


def test_growth_stops_at_the_room_the_likeliest_first():
    run = Run(ESAPN(sizes=(1, 2, 4)), problem(Budget.parameters(99)), 14)
    chances = torch.tensor([0.9, 0.6, 0.95, 0.2, 0.7, 0.8])
    run._logits = lambda name, rows: torch.stack([torch.zeros(6), torch.logit(chances[rows])], 1)
    run.task.rows_of = lambda batch: {"user": (torch.arange(6), torch.arange(6))}
    run.learn_model(0)
    assert run.rows.levels["user"].tolist() == [1, 0, 1, 0, 0, 1]  # 11 rows and 3 steps
    assert run.rows.entries() == 14
    run.learn_model(1)
    assert run.rows.entries() == 14


@pytest.mark.parametrize("selection", ["hard", "soft"])
def test_a_search_is_deterministic_and_within_budget(selection):
    sizer = ESAPN(sizes=(1, 2, 4), selection=selection)
    plan = sizer(problem(Budget.parameters(20)))
    assert plan.cost() == 20
    assert sizer(problem(Budget.parameters(20))) == plan
    assert plan.sizer == "esapn"


def test_the_published_end_is_what_it_is():
    own = ESAPN(sizes=(1, 2, 4), budgeted=False, policy_rate=1e-2)
    plan = own(problem(Budget.parameters(34)))
    assert plan.metadata["grown to"] == f"{plan.cost()} entries"
    assert 11 <= plan.cost() <= 34
    with pytest.raises(InfeasibleBudgetError, match="esapn needs at least"):
        own(problem(Budget.parameters(plan.cost() - 1)))


def test_it_needs_a_task_that_tells_its_examples():
    bench = FittingWorkbench(targets())
    bench.task = SimpleNamespace(steps_per_epoch=1)
    with pytest.raises(InvalidInputError, match=r"a task with rows_of\(\) and errors\(\)"):
        ESAPN()(problem(Budget.parameters(20), bench=bench))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sizes": ()}, "sizes should be widths"),
        ({"sizes": (4, 2)}, "sizes should be widths"),
        ({"selection": "x"}, "'hard' or 'soft'"),
        ({"steps": 0}, "steps should be an int"),
        ({"rate": 0}, "rate should be positive"),
        ({"policy_rate": -1}, "policy_rate should be positive"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(InvalidInputError, match=message):
        ESAPN(**settings)
