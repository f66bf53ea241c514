"""One plan on every rank of a process group.

The sizer runs on the group's first rank only and asks the others to evaluate with it, plan by
plan. The alternative, the same search on every rank, would need bit-equal arithmetic on all of
them and one history file a rank; here equal decisions hold by construction, and resuming a run
needs the first rank's file alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist

from ..errors import CollectiveError, InvalidInputError
from ..team import Team
from .plan import SizePlan
from .sizers.problem import SizingProblem, Workbench, finite


def plan_together(
    make_problem: Callable[[], SizingProblem],
    solve: Callable[[SizingProblem], SizePlan],
    pg: dist.ProcessGroup | None,
    *,
    method: str,
) -> SizePlan:
    """Make the problem on every rank, solve it on the first, give every rank the plan.

    Args:
        method: what the sizer is, in words that must be the same on every rank.

    Raises:
        CollectiveError: the ranks' problems differ, or another rank failed.
    """
    if not (dist.is_available() and dist.is_initialized()):
        raise InvalidInputError(
            "collective_plan needs a process group: call torch.distributed.init_process_group "
            "first, or plan() in a single process"
        )
    team = Team(pg)
    problem = team.together("the problem", make_problem)
    ways = f"evaluate {problem.evaluate is not None}, workbench {problem.workbench is not None}"
    team.agree(
        "the problem (tables, global counts, budget, widths), its seed, the sizer, or the way to "
        "evaluate",
        (problem.fingerprint(), problem.seed, method, ways),
    )
    if team.rank == 0:
        plan = _lead(team, problem, solve)
    else:
        plan = _follow(team, problem)
    team.agree("the plan", plan.fingerprint())
    return plan


def _lead(
    team: Team, problem: SizingProblem, solve: Callable[[SizingProblem], SizePlan]
) -> SizePlan:
    """The first rank: solve, every evaluation being one of all ranks."""
    caller = _Caller(team, problem)
    try:
        plan = solve(
            replace(
                problem,
                evaluate=None if problem.evaluate is None else caller.evaluate,
                workbench=None if problem.workbench is None else caller,
            )
        )
    except BaseException as error:
        # after a failed call the others have left already; anything else they wait to hear of
        if not caller.broken:
            team.broadcast(("failed", f"{type(error).__name__}: {error}", {}))
        raise
    if caller.broken:
        raise CollectiveError("the sizer made a plan although an evaluation failed on some rank")
    team.broadcast(("done", plan.to_bytes(), {}))
    return plan


def _follow(team: Team, problem: SizingProblem) -> SizePlan:
    """Any other rank: do what the first asks for until it has a plan."""
    while True:
        kind, payload, arguments = team.broadcast()
        if kind == "done":
            return SizePlan.from_bytes(payload, source="the first rank's plan")
        if kind == "failed":
            raise CollectiveError(f"rank 0 failed at planning: {payload}")
        plan = None if payload is None else SizePlan.from_bytes(payload)
        _perform(team, problem, kind, plan, arguments)


def _perform(
    team: Team,
    problem: SizingProblem,
    kind: str,
    plan: SizePlan | None,
    arguments: Mapping[str, Any],
) -> Any:
    """One step that all ranks do alike."""
    if kind == "evaluate":
        evaluate = problem.evaluate
        assert evaluate is not None
        assert plan is not None
        return team.mean(kind, lambda: finite(evaluate(plan), kind))
    action = getattr(problem.workbench, kind)
    if kind == "full_tables":
        return team.together(kind, action)
    given = () if plan is None else (plan,)
    return team.mean(kind, lambda: finite(action(*given, **arguments), kind))


@dataclass(eq=False)
class _Caller(Workbench):
    """The first rank's evaluate and workbench: each call is made on all ranks."""

    team: Team
    problem: SizingProblem
    broken: bool = False

    def _call(self, kind: str, plan: SizePlan | None = None, **arguments: Any) -> Any:
        if self.broken:  # a sizer that carries on after an error: nobody is listening any more
            raise CollectiveError(f"{kind} comes after a call that failed on some rank; stop there")
        self.team.broadcast((kind, None if plan is None else plan.to_bytes(), arguments))
        try:
            return _perform(self.team, self.problem, kind, plan, arguments)
        except BaseException:
            self.broken = True
            raise

    def evaluate(self, plan: SizePlan) -> float:
        return float(self._call("evaluate", plan))

    def full_tables(self) -> Mapping[str, torch.Tensor]:
        tables: Mapping[str, torch.Tensor] = self._call("full_tables")
        return tables

    def full_quality(self) -> float:
        return float(self._call("full_quality"))

    def fine_tune(
        self, plan: SizePlan, *, epochs: int | None = None, floor: float | None = None
    ) -> float:
        return float(self._call("fine_tune", plan, epochs=epochs, floor=floor))

    def train(self, plan: SizePlan, *, seed: int | None = None) -> float:
        return float(self._call("train", plan, seed=seed))
