"""One plan on every rank of a process group.

The sizer runs on all ranks at once, because what it may hand to a workbench (extra losses,
parameter groups) does not travel. What it decides is decided on the first rank and broadcast, and
only the first keeps files, so equal decisions need no bit-equal arithmetic, and resuming needs the
first rank's file alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.distributed as dist

from ..errors import CollectiveError, InvalidInputError
from ..team import Team
from .plan import SizePlan
from .sizers.problem import SizingProblem


def plan_together(
    make_problem: Callable[[Team], SizingProblem],
    solve: Callable[[SizingProblem], SizePlan],
    pg: dist.ProcessGroup | None,
    *,
    method: str,
) -> SizePlan:
    """Make the problem and solve it, on every rank alike.

    Args:
        method: what the sizer is, in words that must be the same on every rank.

    Raises:
        CollectiveError: the ranks' problems or plans differ, or another rank failed.
    """
    if not (dist.is_available() and dist.is_initialized()):
        raise InvalidInputError(
            "collective_plan needs a process group: call torch.distributed.init_process_group "
            "first, or plan() in a single process"
        )
    team = _OneFailure(pg)
    problem = team.together("the problem", lambda: make_problem(team))
    ways = [problem.evaluate is None, problem.train is None, problem.workbench is None]
    team.agree(
        "the problem (tables, global counts, budget, widths), its seed, the sizer, or the way to "
        "evaluate",
        (problem.fingerprint(), problem.seed, method, ways),
    )
    try:
        plan = solve(problem)
    except BaseException as error:
        if not team.failed:  # the others know of it only if it came out of something collective
            team.together("planning", _raiser(error))
        raise
    team.together("planning", lambda: None)
    team.agree("the plan", plan.fingerprint())
    return plan


class _OneFailure(Team):
    """A team that goes apart after its first failure, of which all ranks have heard.

    A sizer that carries on after an error has nobody to talk to: it gets an error at once instead
    of waiting for ranks that have left.
    """

    failed = False

    def together(self, what: str, work: Callable[[], Any]) -> Any:
        if self.failed:
            raise CollectiveError(
                f"{what} comes after a call that failed on some rank; a sizer should stop there"
            )
        try:
            return super().together(what, work)
        except BaseException:
            self.failed = True
            raise


def _raiser(error: BaseException) -> Callable[[], None]:
    def work() -> None:
        raise error

    return work
