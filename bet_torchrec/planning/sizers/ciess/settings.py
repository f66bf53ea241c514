"""The sizer: episodes of sizing all rows, each step a training of the recommender."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ....errors import DivergedError, InfeasibleBudgetError, InvalidInputError
from ...budget import Budget
from ...plan import SizePlan
from ..problem import SizingProblem
from ..wished import plan_of_wishes
from .td3 import TD3, TD3Settings, Transitions, walk

Try = Literal["probe", "full"]


@dataclass(frozen=True, kw_only=True)
class CIESS:
    """Continuous input embedding size search (SIGIR 2023): an actor a table, taught by TD3.

    A row's state is (its frequency, its size, quality / best quality), each scaled to [-1, 1]; its
    action is its next size. In every step all rows are sized, the recommender is tried, and each
    row is rewarded quality - penalty * ((size - 1) / d)^2, quality in shares of the full model's.
    Actions are explored by a random walk over sizes, of which the first critic takes the best.
    An episode starts at full tables. The best setting that was visited within the budget wins.

    Published: 30 episodes of 11 steps, each a training from scratch, as ``CIESS.paper()``: 330
    trainings, and settings over the budget are visited too (InfeasibleBudgetError if none was
    within it). The default is a budgeted variant of ours, at 15 probes: every action is scaled to
    the budget before it is tried, and tried by a brief fine-tune. Ours throughout: quality is that
    of the whole, where the paper gives each user its own and an item its users' mean, as a task
    tells no more; penalty, which is not published; updates a step.

    budgeted: which. episodes, steps: of the search. tried: by the problem's "probe" or by a "full"
        training. penalty: of size, in qualities. walk_steps, reach: of exploration. updates: of TD3
        a step. sample: rows a table that a step remembers, at most. td3: its settings.
    precision: of the plan's tables; None takes the first that the budget allows.
    """

    budgeted: bool = True
    episodes: int = 3
    steps: int = 5
    tried: Try = "probe"
    penalty: float = 0.5
    walk_steps: int = 5
    reach: int = 5
    updates: int = 20
    sample: int = 4096
    td3: TD3Settings = field(default_factory=TD3Settings)
    precision: str | None = None
    needs_evaluation: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for name, least in (("episodes", 1), ("steps", 1), ("walk_steps", 0), ("reach", 1),
                            ("updates", 0), ("sample", 1)):  # fmt: skip
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise InvalidInputError(f"{name} should be an int from {least} on, got {value!r}")
        if self.tried not in get_args(Try):
            raise InvalidInputError(f"tried should be 'probe' or 'full', got {self.tried!r}")
        if not 0 <= self.penalty < math.inf:
            raise InvalidInputError(f"penalty should be at least 0, got {self.penalty!r}")
        if not isinstance(self.td3, TD3Settings):
            raise InvalidInputError(f"td3 should be a TD3Settings(), got {self.td3!r}")

    @classmethod
    def paper(cls, **changes: Any) -> CIESS:
        """330 full trainings, no budget but for what is taken in the end."""
        published = {"budgeted": False, "episodes": 30, "steps": 11, "tried": "full"}
        return cls(**{**published, **changes})

    def __call__(self, problem: SizingProblem) -> SizePlan:
        """The best plan visited; deterministic under ``problem.seed``.

        Raises:
            MissingEvaluationError: the problem brings no way to try a plan.
            InfeasibleBudgetError: nothing fits, or nothing that was visited.
            DivergedError: all that was tried did.
        """
        return self.visited(problem)[0]

    def visited(self, problem: SizingProblem) -> list[SizePlan]:
        """All plans visited within the budget, the best first; raises as a call does."""
        problem.require_evaluation("CIESS")
        search = Search(self, problem)
        for _ in range(self.episodes):
            search.episode()
        return search.best()


class Search:
    """One run. What is tried is the same on all ranks: all is drawn from the seed."""

    def __init__(self, settings: CIESS, problem: SizingProblem) -> None:
        self.settings, self.problem = settings, problem
        # free to propose anything: what is over the budget is tried, but not answered
        whole = Budget.parameters(sum(table.parameters for table in problem.tables))
        self._free = problem if settings.budgeted else replace(problem, budget=whole)
        self._drawn = torch.Generator().manual_seed(problem.seed)
        self._agents, self._frequency, self._memory = {}, {}, {}
        for table, counts in zip(problem.tables, problem.counts, strict=True):
            self._agents[table.name] = TD3(table.embedding_dim, settings.td3, self._drawn)
            by_rank = counts.at_ranks(np.arange(counts.rows)).astype(np.float64)
            scaled = torch.from_numpy(2 * by_rank / max(by_rank.max(), 1) - 1).float()
            order = np.arange(counts.rows) if counts.order is None else counts.order
            frequency = torch.empty_like(scaled)
            frequency[torch.from_numpy(order.astype(np.int64))] = scaled
            self._frequency[table.name] = frequency
            self._memory[table.name] = list[Transitions]()
        self._peak = 0.0
        self._tried: dict[SizePlan, float] = {}

    def episode(self) -> None:
        """From full tables, ``steps`` times: act, try, remember, learn."""
        names = list(self._agents)
        sizes = {t.name: np.full(t.num_embeddings, t.embedding_dim) for t in self.problem.tables}
        quality = 1.0
        self._peak = max(self._peak, quality)
        for step in range(self.settings.steps):
            states = {name: self._state(name, sizes[name], quality) for name in names}
            wanted = {name: self._explore(name, states[name]) for name in names}
            plan = plan_of_wishes(
                self._free,
                wanted,
                "ciess",
                budgeted=self.settings.budgeted,
                precision=self.settings.precision if self.settings.budgeted else None,
                metadata={"tried as": str(len(self._tried))},
            )
            sizes = {name: plan.sizes(name) for name in names}
            quality = self._quality(plan)
            self._peak = max(self._peak, quality)
            last = step + 1 == self.settings.steps
            self._remember(states, sizes, quality, last)
            for name, agent in self._agents.items():
                memory = Transitions(*map(torch.cat, zip(*self._memory[name], strict=True)))
                for _ in range(self.settings.updates):
                    agent.update(memory)

    def best(self) -> list[SizePlan]:
        """What was visited within the budget, the best first."""
        ranked = sorted(self._tried, key=lambda plan: -self._tried[plan])
        ranked = [plan for plan in ranked if math.isfinite(self._tried[plan])]
        if not ranked:
            raise DivergedError(f"all {len(self._tried)} plans that CIESS tried diverged")
        if self.settings.budgeted:
            return ranked
        within: list[SizePlan] = []
        error: InfeasibleBudgetError | None = None
        for plan in ranked:
            sizes = {table.name: plan.sizes(table.name) for table in self.problem.tables}
            try:
                within.append(self._as_they_are(sizes, plan.metadata))
            except InfeasibleBudgetError as too_much:
                if error is None or too_much.smallest < error.smallest:
                    error = too_much
        if not within:
            assert error is not None
            raise error
        return within

    def _as_they_are(
        self, sizes: Mapping[str, NDArray[Any]], metadata: Mapping[str, str]
    ) -> SizePlan:
        return plan_of_wishes(
            self.problem,
            sizes,
            "ciess",
            budgeted=False,
            precision=self.settings.precision,
            metadata=metadata,
        )

    def _state(self, name: str, sizes: NDArray[Any], quality: float) -> Tensor:
        """(R, 3) in [-1, 1]."""
        agent = self._agents[name]
        size = 2 * torch.from_numpy(sizes.astype(np.float32)) / agent.d - 1
        share = torch.full_like(size, 2 * quality / max(self._peak, 1e-9) - 1).clamp(-1, 1)
        return torch.stack([self._frequency[name], size, share], 1)

    @torch.no_grad()
    def _explore(self, name: str, state: Tensor) -> NDArray[np.int64]:
        """(R,) the sizes of the walk that the first critic values most."""
        agent, s = self._agents[name], self.settings
        walked = walk(
            agent.act(state).round(),
            agent.d,
            steps=s.walk_steps,
            reach=s.reach,
            generator=self._drawn,
        )
        values = torch.stack([agent.value(state, sizes) for sizes in walked.T], 1)
        chosen = walked.gather(1, values.argmax(1, keepdim=True))[:, 0]
        return chosen.long().numpy()

    def _quality(self, plan: SizePlan) -> float:
        """In shares of the full model's; 0 of what diverged."""
        problem = self._free
        if self.settings.tried == "full" and problem.starts:
            outcome = problem.trained(plan, seed=problem.seed, start="scratch")
            full = problem.full_quality if problem.workbench is not None else 1.0
            quality = outcome.quality / full
        else:
            outcome = problem.fitness(plan)
            quality = outcome.quality
        self._tried[plan] = quality if outcome.ok else -math.inf
        return quality if outcome.ok else 0.0

    def _remember(
        self,
        states: Mapping[str, Tensor],
        sizes: Mapping[str, NDArray[Any]],
        quality: float,
        last: bool,
    ) -> None:
        for name, agent in self._agents.items():
            action = torch.from_numpy(sizes[name].astype(np.float32)).clamp(min=1)
            reward = quality - self.settings.penalty * ((action - 1) / agent.d).square()
            following = self._state(name, sizes[name], quality)
            done = torch.full_like(reward, float(last))
            kept = torch.randperm(len(action), generator=self._drawn)[: self.settings.sample]
            parts = (states[name], action, reward, following, done)
            self._memory[name].append(Transitions(*(part[kept] for part in parts)))
