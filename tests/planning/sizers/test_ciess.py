"""CIESS: TD3's targets and updates, the random walk, states and rewards, by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from bet_torchrec.errors import (
    DivergedError,
    InfeasibleBudgetError,
    InvalidInputError,
    MissingEvaluationError,
)
from bet_torchrec.planning import Budget, RowCounts, TableSpec
from bet_torchrec.planning.sizers import CIESS, SizingProblem
from bet_torchrec.planning.sizers.ciess.settings import Search
from bet_torchrec.planning.sizers.ciess.td3 import TD3, TD3Settings, Transitions, walk

TABLES = (TableSpec("user", 6, 8), TableSpec("item", 4, 4))


def quality(plan):
    """Best where users are wide and items narrow."""
    return float(1 + plan.sizes("user").mean() - plan.sizes("item").mean()) / 9


def problem(budget, *, evaluate=quality, seed=5):
    return SizingProblem(
        tables=TABLES,
        counts=[
            RowCounts.from_rows([4, 0, 8, 2, 2, 2]),
            RowCounts.from_rows([5, 5, 5, 5]),
        ],
        budget=budget,
        widths=tuple(range(9)),
        seed=seed,
        evaluate=evaluate,
    )


def agent(d=9, **settings):
    return TD3(d, TD3Settings(**settings), torch.Generator().manual_seed(0))


def constant(network, value):
    """A network that answers this whatever it is asked."""
    with torch.no_grad():
        for weight in network.parameters():
            weight.zero_()
        network[-1].bias.fill_(value)


def transitions(n=1, reward=1.0, done=0.0):
    state = torch.zeros(n, 3)
    return Transitions(state, torch.full((n,), 3.0), torch.full((n,), reward), state,
                       torch.full((n,), done))  # fmt: skip


def test_actions_are_sizes_from_1_to_d():
    learner = agent()
    for raw, size in ((0.0, 5.0), (99.0, 9.0), (-99.0, 1.0)):
        constant(learner.actor, raw)
        assert learner.act(torch.zeros(1, 3)).item() == pytest.approx(size)


def test_the_target_takes_the_lesser_critic_and_ends_with_the_episode():
    learner = agent(gamma=0.5)
    constant(learner.target_critics[0], 4.0)
    constant(learner.target_critics[1], 2.0)
    constant(learner.critics[0], 100.0)  # not a target's
    assert learner.target(transitions()).item() == pytest.approx(1 + 0.5 * 2)
    assert learner.target(transitions(done=1.0)).item() == 1


def test_the_target_s_action_is_smoothed_within_its_clip_and_range():
    learner = agent(d=101, gamma=1.0, noise=50.0, noise_clip=5.0)
    constant(learner.target_actor, 0.0)  # 51, scaled to 0
    with torch.no_grad():
        for critic in learner.target_critics:  # answer the action's scaled size, where positive
            constant(critic, 0.0)
            critic[0].weight[0, 3] = critic[2].weight[0, 0] = critic[4].weight[0, 0] = 1.0
    found = learner.target(transitions(n=500, reward=0.0))
    assert found.max().item() == pytest.approx(0.1)  # 5 of the 50 that are 1
    assert 0.3 < (found > 0.0999).float().mean().item() < 0.6  # mostly clipped
    assert found.min().item() == 0
    constant(learner.target_actor, 99.0)
    assert learner.target(transitions(n=500, reward=0.0)).max().item() <= 1  # never above d


def test_the_actor_and_the_targets_follow_every_second_update():
    learner = agent(tau=0.25)
    memory = transitions(n=10)
    before = [weight.clone() for weight in learner.actor.parameters()]
    targets = [weight.clone() for weight in learner.target_critics.parameters()]
    learner.update(memory)
    assert all(torch.equal(a, b) for a, b in zip(before, learner.actor.parameters(), strict=True))
    learner.update(memory)
    assert not torch.equal(before[-1], next(iter(learner.actor[-1].parameters())))
    now = zip(targets, learner.target_critics.parameters(), learner.critics.parameters(),
              strict=True)  # fmt: skip
    for old, target, source in now:
        assert torch.allclose(target, 0.75 * old + 0.25 * source, atol=1e-6)


def test_it_learns_which_size_is_rewarded():
    learner = agent(gamma=0.0, tau=0.1, batch=256)
    generator = torch.Generator().manual_seed(1)
    action = 1 + 8 * torch.rand(512, generator=generator)
    state = torch.zeros(512, 3)
    reward = -((action - 7) / 8).square()
    memory = Transitions(state, action, reward, state, torch.ones(512))
    for _ in range(150):
        learner.update(memory)
    assert learner.act(state[:1]).item() == pytest.approx(7, abs=1)


def test_a_walk_goes_near_more_often_than_far():
    start = torch.full((20000,), 50.0)
    walked = walk(start, 100, steps=2, reach=3, generator=torch.Generator().manual_seed(0))
    assert walked.shape == (20000, 3)
    moved = (walked[:, 1] - start).long()
    shares = np.bincount(moved.numpy() + 3, minlength=7) / 20000
    near = 1 / (2 * (1 + 1 / 2 + 1 / 3))
    by_hand = [near / 3, near / 2, near, 0, near, near / 2, near / 3]
    assert shares == pytest.approx(by_hand, abs=0.015)
    edge = walk(torch.tensor([1.0]), 4, steps=50, reach=5, generator=torch.Generator())
    assert 1 <= edge.min() <= edge.max() <= 4


def test_states_and_rewards_by_hand():
    search = Search(CIESS(penalty=0.5, sample=100), problem(Budget.parameters(30)))
    search._peak = 0.8
    state = search._state("user", np.array([8, 0, 4, 2, 2, 2]), 0.6)
    assert state[:3].tolist() == [[0, 1, 0.5], [-1, -1, 0.5], [1, 0, 0.5]]
    assert search._frequency["item"].tolist() == [1] * 4
    sizes = {"user": np.array([8, 0, 4, 1, 1, 1]), "item": np.array([1, 1, 1, 1])}
    states = {name: search._state(name, own, 0.6) for name, own in sizes.items()}
    search._remember(states, sizes, 0.6, last=True)
    (kept,) = search._memory["user"]
    by_action = dict(zip(kept.action.tolist(), kept.reward.tolist(), strict=True))
    assert by_action == pytest.approx(
        {8: 0.6 - 0.5 * (7 / 8) ** 2, 4: 0.6 - 0.5 * (3 / 8) ** 2, 1: 0.6}
    )
    assert kept.done.tolist() == [1] * 6


def test_every_proposal_is_within_the_budget_and_the_best_wins():
    asked = []

    def evaluate(plan):
        asked.append(plan)
        return quality(plan)

    sizer = CIESS(episodes=4, steps=3, updates=1)
    plan = sizer(problem(Budget.parameters(30), evaluate=evaluate))
    assert len(asked) == 12
    assert all(tried.cost() == 30 for tried in asked)
    assert quality(plan) == max(map(quality, asked))
    assert sizer(problem(Budget.parameters(30))) == plan


def test_the_published_search_visits_anything_and_answers_what_fits():
    sizer = CIESS.paper(episodes=2, steps=3, updates=1)
    asked = []

    def evaluate(plan):
        asked.append(plan)
        return quality(plan)

    sizer(problem(Budget.parameters(64), evaluate=evaluate))
    costs = sorted(plan.cost() for plan in asked)
    limit = costs[3]
    plan = sizer(problem(Budget.parameters(limit)))  # proposes the same
    best = max((t for t in asked if t.cost() <= limit), key=quality)
    assert costs[-1] > limit >= plan.cost()
    assert all((plan.sizes(t.name) == best.sizes(t.name)).all() for t in TABLES)
    with pytest.raises(InfeasibleBudgetError, match=f"ciess needs at least {costs[0]}"):
        sizer(problem(Budget.parameters(costs[0] - 1)))


def test_what_diverges_is_never_the_answer():
    def evaluate(plan):
        return math.nan if plan.metadata["tried as"] != "1" else 0.5

    plan = CIESS(episodes=1, steps=3, updates=1)(problem(Budget.parameters(30), evaluate=evaluate))
    assert plan.metadata["tried as"] == "1"
    with pytest.raises(DivergedError, match="all 3 plans"):
        CIESS(episodes=1, steps=3, updates=1)(
            problem(Budget.parameters(30), evaluate=lambda p: math.nan)
        )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"episodes": 0}, "episodes should be an int"),
        ({"tried": "x"}, "'probe' or 'full'"),
        ({"penalty": -1}, "penalty should be at least 0"),
        ({"td3": 3}, r"td3 should be a TD3Settings\(\)"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(InvalidInputError, match=message):
        CIESS(**settings)


@pytest.mark.parametrize("settings", [{"gamma": 2}, {"delay": 0}, {"noise": -1}, {"tau": 0}])
def test_bad_settings_of_td3_are_refused(settings):
    with pytest.raises(InvalidInputError, match="should be"):
        TD3Settings(**settings)


def test_it_needs_a_way_to_try():
    with pytest.raises(MissingEvaluationError, match="CIESS"):
        CIESS()(problem(Budget.parameters(30), evaluate=None))
