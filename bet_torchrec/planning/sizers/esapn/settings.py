"""The sizer: rows grow by their policies while the model trains beside them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ....errors import InvalidInputError
from ...counts import RowCounts
from ...plan import SizePlan
from ..checks import check_positive
from ..forms import workbench_of
from ..problem import SizingProblem
from ..survivors import entries_as_sizes
from ..wished import plan_of_wishes
from .growing import GrowingRows
from .policy import Policy, Rewards, reinforce

Selection = Literal["hard", "soft"]


@dataclass(frozen=True, kw_only=True)
class ESAPN:
    """Embedding size adjustment by policy networks: all rows start small, policies let them grow.

    By turns: on a held-out batch the policies of the tables act on its rows, and learn (REINFORCE)
    from how much better each row's examples are predicted than the last five times; on the next
    training batch its rows grow where their policy says so, and the model takes a step. The sizes
    at the end are the plan's, trained from scratch. Its own training loop goes by the task's
    batches: "held-out" ones come from the training data in another order, as a ``Task`` gives no
    others.

    The budgeted variant (the default, ours) stops growth where the next row would be over the
    budget, and hands out what is left in the end. budgeted=False is the published method: its end
    size is what it is; InfeasibleBudgetError says so where it is more than the budget.

    sizes: to grow through; those wider than a table are left out. selection: what is read of a row
        that may grow: the sampled action's size ("hard"), or both, weighted by the policy
        ("soft": rows are kept or grown as wholes, so the mixture is of the two predictions' rows).
    steps: of both turns; None is one pass over the training data, as published. rate, policy_rate:
        Adam's, of the model and of the policies. init_std: of the entries at first.
    precision: of the plan's tables; None takes the first that the budget allows.
    """

    budgeted: bool = True
    sizes: tuple[int, ...] = (2, 4, 8, 16, 64, 128)
    selection: Selection = "hard"
    steps: int | None = None
    rate: float = 1e-3
    policy_rate: float = 1e-4
    init_std: float = 0.01
    precision: str | None = None
    needs_evaluation: ClassVar[bool] = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "sizes", tuple(self.sizes))
        whole = all(isinstance(size, int) and size >= 1 for size in self.sizes)
        if not self.sizes or not whole or list(self.sizes) != sorted(set(self.sizes)):
            raise InvalidInputError(
                f"sizes should be widths from 1 on that rise, got {self.sizes!r}"
            )
        if self.selection not in get_args(Selection):
            raise InvalidInputError(f"selection should be 'hard' or 'soft', got {self.selection!r}")
        if self.steps is not None and (not isinstance(self.steps, int) or self.steps < 1):
            raise InvalidInputError(f"steps should be an int from 1 on or None, got {self.steps!r}")
        check_positive(self, "rate", "policy_rate", "init_std")

    def __call__(self, problem: SizingProblem) -> SizePlan:
        """The plan; deterministic under ``problem.seed``.

        Raises:
            MissingEvaluationError: the problem has no workbench.
            InvalidInputError: the task tells nothing of its examples, or there are several ranks.
            InfeasibleBudgetError: nothing fits, or not what is asked for.
        """
        task = workbench_of(problem, "ESAPN").task
        if not (hasattr(task, "rows_of") and hasattr(task, "errors")):
            raise InvalidInputError(
                "ESAPN rewards rows by their examples' errors and should be given a task with "
                f"rows_of() and errors() (see tasks.TellsExamples), got {type(task).__name__}"
            )
        if problem.team.size > 1:
            raise InvalidInputError("ESAPN grows rows as its batches come: run it on one rank")
        room = entries_as_sizes(problem, self.precision) if self.budgeted else None
        run = Run(self, problem, room)
        for step in range(self.steps or task.steps_per_epoch):
            run.learn_policies(step)
            run.learn_model(step)
        grown = {name: levels.numpy() for name, levels in run.rows.levels.items()}
        sizes = np.array(run.rows.sizes)
        wanted = {
            table.name: np.minimum(sizes[grown[table.name]], table.embedding_dim)
            for table in problem.tables
        }
        return plan_of_wishes(
            problem,
            wanted,
            "esapn",
            budgeted=self.budgeted,
            precision=self.precision,
            metadata={"grown to": f"{sum(int(w.sum()) for w in wanted.values())} entries"},
        )


class Run:
    """One search. room: entries that growth may come to, or None."""

    def __init__(self, settings: ESAPN, problem: SizingProblem, room: int | None) -> None:
        assert problem.workbench is not None
        self.settings, self.seed, self.room = settings, problem.seed, room
        self.task: Any = problem.workbench.task
        widest = max(table.embedding_dim for table in problem.tables)
        sizes = [size for size in settings.sizes if size <= widest] or [widest]
        self._drawn = torch.Generator().manual_seed(problem.seed)
        rows = {table.name: table.num_embeddings for table in problem.tables}
        self.rows = GrowingRows(rows, sizes, init_std=settings.init_std, generator=self._drawn)
        self._top = {t.name: sum(s <= t.embedding_dim for s in sizes) - 1 for t in problem.tables}
        self.model = self.task.new_model(problem.seed)
        self.policies = {name: Policy(len(sizes), self._drawn) for name in rows}
        self._rewards = {name: Rewards(n) for name, n in rows.items()}
        self._counts = {
            table.name: torch.from_numpy(by_id(counts))
            for table, counts in zip(problem.tables, problem.counts, strict=True)
        }
        own = [*self.model.parameters(), *self.rows.parameters()]
        self._optimizer = torch.optim.Adam(own, lr=settings.rate)
        policies = nn.ModuleList(self.policies.values())
        self._policy_optimizer = torch.optim.Adam(policies.parameters(), lr=settings.policy_rate)

    def learn_policies(self, step: int) -> None:
        """Act on a held-out batch's rows, and learn from how its examples fare."""
        batch = self.task.batch(self.seed + 1, step)
        read = self.task.rows_of(batch)
        acted = {}
        shares = {name: torch.zeros(len(c)) for name, c in self._counts.items()}
        for name, (ids, _) in read.items():
            rows = ids.unique()
            logits = self._logits(name, rows)
            probability = logits.detach().softmax(-1)
            actions = torch.multinomial(probability, 1, generator=self._drawn)[:, 0]
            chosen = actions.float() if self.settings.selection == "hard" else probability[:, 1]
            shares[name][rows] = chosen * (self.rows.levels[name][rows] < self._top[name])
            acted[name] = rows, logits, actions
        with torch.no_grad(), self.rows.trying(shares):
            errors = self.task.errors(self.model, self.rows, batch)
        loss = errors.new_zeros(())
        for name, (rows, logits, actions) in acted.items():
            ids, examples = read[name]
            gained = 1 - mean_by_row(errors, ids, examples, rows)
            advantages = self._rewards[name].advantage(rows, gained)
            loss = loss + reinforce(logits, actions, advantages)
        self._policy_optimizer.zero_grad()
        loss.backward()
        self._policy_optimizer.step()

    def learn_model(self, step: int) -> None:
        """Let a training batch's rows grow, then train on it."""
        batch = self.task.batch(self.seed, step)
        willing = []
        for name, (ids, _) in self.task.rows_of(batch).items():
            rows = ids.unique()
            with torch.no_grad():
                probability = self._logits(name, rows).softmax(-1)[:, 1]
            levels = self.rows.levels[name][rows]
            asked = (probability > 0.5) & (levels < self._top[name])
            willing += [
                (-chance, name, row, self._step_cost(level))
                for chance, row, level in zip(
                    probability[asked].tolist(), rows[asked].tolist(), levels[asked].tolist(),
                    strict=True,
                )
            ]  # fmt: skip
        growing: dict[str, list[int]] = {}
        left = math.inf if self.room is None else self.room - self.rows.entries()
        for _, name, row, cost in sorted(willing):
            if cost > left:
                break
            left -= cost
            growing.setdefault(name, []).append(row)
        for name, ids in growing.items():
            self.rows.grow(name, torch.tensor(ids))
        loss = self.task.loss(self.model, self.rows, batch)
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()

    def _logits(self, name: str, rows: Tensor) -> Tensor:
        policy = self.policies[name].train(len(rows) > 1)  # its batch norm needs two
        found: Tensor = policy(self._counts[name][rows], self.rows.levels[name][rows])
        return found

    def _step_cost(self, level: int) -> int:
        return self.rows.sizes[level + 1] - self.rows.sizes[level]


def by_id(counts: RowCounts) -> NDArray[np.int64]:
    """(R,) counts in id order."""
    ranked = counts.at_ranks(np.arange(counts.rows)).astype(np.int64)
    if counts.order is None:
        return ranked
    found = np.empty_like(ranked)
    found[counts.order] = ranked
    return found


def mean_by_row(errors: Tensor, ids: Tensor, examples: Tensor, rows: Tensor) -> Tensor:
    """(n,) the mean error of the examples that read each of the rows (n,), sorted.

    ids, examples: (V,) which example read which row.
    """
    place = torch.searchsorted(rows, ids.contiguous())
    total = errors.new_zeros(len(rows)).index_add_(0, place, errors[examples])
    return total / torch.bincount(place, minlength=len(rows))
