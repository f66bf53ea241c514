"""BET's hyper-parameters."""

from __future__ import annotations

import operator
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, get_args

from ....errors import InvalidInputError
from ...plan import SizePlan
from ..problem import SizingProblem
from ..workbench import Start
from .families import EXPLORING_FAMILIES, PAPER_FAMILIES, Family
from .search import Search
from .shares import Dirichlet, Informed, Shares
from .surrogate import GaussianProcess
from .training import SingleSamples, Trainer

Strategy = Literal["predicted", "random", "nearest", "local"]
PAPER_STRATEGIES: tuple[Strategy, ...] = ("predicted",) * 3 + ("random", "nearest")


@dataclass(frozen=True, kw_only=True)
class BET:
    """Searches table-level sizes by trying a few candidates and predicting the rest.

    iterations: probes (T). candidates: drawn an iteration (m), one of which is tried.
    families: of size distributions. draws: "quantiles" (closed form) or "iid" (literal).
    shares: how candidates split the budget among tables.
    alike: the share of fresh candidates in which all tables have one family, beta and precision.
    explored: probes before the predictor is first asked; random where they are no anchors.
    strategies: cycled over the iterations; I "predicted", II "random", III "nearest", and
        "local", a random mutant of the best few, without the predictor.
    trainer: the predictor and how it learns: ``GaussianProcess``, or the paper's deep set as
        ``FullBatch`` (which takes seconds an iteration with many tables) or ``SingleSamples``.
    optimism: how many standard deviations of a prediction count for a candidate, so that what is
        not known yet is tried too (an upper confidence bound); 0 takes the best expectation.
    mutants: the share of the candidates that are drawn around the best so far.
    anchored: equal sizes (exactly ``EqualSizes``, in each precision) are tried first and always
        among the finalists, so that the result cannot be worse than they are on validation; then
        what else any engineer would try, see ``anchors.py``: at first four in a row, later every
        second iteration. Fewer iterations than precisions are as many as precisions.
    tolerance: with a workbench, full tables in fewer bits that fit the budget and lose no more
        than this share of the full quality end the search; None goes on.
    probe_epochs: of a probe's fine-tuning; None leaves it to the workbench.
    stop_hopeless: lets the workbench end a probe early that cannot become a finalist.
    finalists: trained fully at the end, from every start; the best on validation wins, and the
        plan's metadata say with which "start". 0 skips it. With ``evaluate=`` they need ``train=``.
    starts: of a finalist's trainings, "scratch" and "full" (from the full tables' rows, cut).
    final_seeds: trainings of each finalist from each start; the mean decides.

    Why these defaults. On made-up tasks (benchmarks/search_value.py: 9 tables, 10 seeds, 30 probes;
    quality in thousandths above equal sizes) one deviation of optimism came to 18.4, two to 18.2,
    the bare expectation to 17.9, random search to 16.7 and local mutation to 15.7; the predictions'
    rank correlation with what was got was .6, the expectation's .1. On click models (README,
    benchmarks/clicks.py) the search is well above equal sizes at a sixteenth of the parameters, and
    hardly above random search over the same families and shares.
    """

    needs_evaluation: ClassVar[bool] = True

    iterations: int = 50
    candidates: int = 100
    families: tuple[Family, ...] = EXPLORING_FAMILIES
    draws: Literal["quantiles", "iid"] = "quantiles"
    shares: Shares = field(default_factory=Informed)
    alike: float = 0.5
    explored: int = 10
    strategies: tuple[Strategy, ...] = ("predicted",)
    trainer: Trainer = field(default_factory=GaussianProcess)
    optimism: float = 1.0
    mutants: float = 0.5
    anchored: bool = True
    tolerance: float | None = 5e-4
    probe_epochs: int | None = None
    stop_hopeless: bool = False
    finalists: int = 5
    starts: tuple[Start, ...] = ("scratch", "full")
    final_seeds: int = 1

    def __post_init__(self) -> None:
        for name, least in (("iterations", 1), ("candidates", 1), ("finalists", 0),
                            ("final_seeds", 1), ("probe_epochs", 0), ("explored", 0)):  # fmt: skip
            value = getattr(self, name)
            if not (name == "probe_epochs" and value is None):
                object.__setattr__(self, name, _whole(name, value, least))
        for name in ("mutants", "alike"):
            if not _is_share(value := getattr(self, name)):
                raise InvalidInputError(f"{name} should be a share from 0 to 1, got {value!r}")
        if not isinstance(self.optimism, (int, float)) or not 0 <= self.optimism < float("inf"):
            raise InvalidInputError(f"optimism should be 0 or more, got {self.optimism!r}")
        if self.tolerance is not None and not _is_share(self.tolerance):
            raise InvalidInputError(
                f"tolerance should be a share from 0 to 1, or None, got {self.tolerance!r}"
            )
        if self.draws not in ("quantiles", "iid"):
            raise InvalidInputError(f"draws should be 'quantiles' or 'iid', got {self.draws!r}")
        for name in ("anchored", "stop_hopeless"):
            if not isinstance(getattr(self, name), bool):
                raise InvalidInputError(
                    f"{name} should be True or False, got {getattr(self, name)!r}"
                )
        self._check_parts()

    def _check_parts(self) -> None:
        families = self._tuple("families", "at least one family, as PowerLaw()")
        if not all(hasattr(family, "survival") for family in families):
            raise InvalidInputError(f"families should be such as PowerLaw(), got {families!r}")
        names = [family.name for family in families]
        if len(set(names)) < len(names):
            raise InvalidInputError(f"families should have distinct names, got one twice: {names}")
        starts = self._tuple("starts", f"at least one of {get_args(Start)}")
        if not set(starts) <= set(get_args(Start)):
            raise InvalidInputError(f"starts should be among {get_args(Start)}, got {starts!r}")
        strategies = self._tuple("strategies", f"at least one of {get_args(Strategy)}")
        if not set(strategies) <= set(get_args(Strategy)):
            raise InvalidInputError(
                f"strategies should be among {get_args(Strategy)}, got {strategies!r}"
            )
        for name, example in (("trainer", "FullBatch()"), ("shares", "Informed()")):
            value = getattr(self, name)
            if isinstance(value, type) or not callable(value):
                raise InvalidInputError(f"{name} should be such as {example}, got {value!r}")
        if self.anchored and "flat" not in names:
            raise InvalidInputError("anchored=True tries equal sizes: add Flat() to families")

    def _tuple(self, name: str, what: str) -> tuple[Any, ...]:
        value = getattr(self, name)
        if isinstance(value, str) or not isinstance(value, (tuple, list)) or not value:
            raise InvalidInputError(f"{name} should be a tuple of {what}, got {value!r}")
        object.__setattr__(self, name, tuple(value))
        return tuple(value)

    @classmethod
    def paper(cls, **changes: Any) -> BET:
        """The published search: four families, w ~ U(0, 1), single-sample updates, no anchors, no
        mutants, T = 50, m = 100, five finalists.

        What differs from the paper all the same: sizes are rounded down to the planner's
        ``widths`` (give widths="any" for the paper's 1 to d_max) and what rounding leaves unused
        is handed out row by row, where the paper wastes it; a draw is the distribution's quantiles
        (draws="iid" draws literally); a row's frequency is the count that it is given; the
        predictor trains before every iteration that asks it, on two samples an iteration in all.
        The epochs, rates and batches of probes and trainings are the workbench's, not ours.
        """
        settings: dict[str, Any] = {
            "families": PAPER_FAMILIES,
            "shares": Dirichlet(),
            "alike": 0.0,
            "explored": 1,
            "strategies": PAPER_STRATEGIES,
            "trainer": SingleSamples(),
            "optimism": 0.0,
            "mutants": 0.0,
            "anchored": False,
            "tolerance": None,
            "starts": ("scratch",),
        }
        return cls(**{**settings, **changes})

    def __call__(self, problem: SizingProblem) -> SizePlan:
        """Search, and return the best plan found.

        Raises:
            InfeasibleBudgetError: no plan fits the budget.
            MissingEvaluationError: the problem brings nothing to evaluate a plan with.
            DivergedError: every plan that was tried, or every finalist, diverged.
            FolderInUseError: another search writes its history there.
        """
        return Search(self, problem).run()


def _whole(name: str, value: Any, least: int) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        number = least - 1
    if isinstance(value, bool) or number < least:
        raise InvalidInputError(f"{name} should be an int, {least} or more, got {value!r}")
    return number


def _is_share(value: Any) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and 0 <= value <= 1
