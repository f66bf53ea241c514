"""BudgetPlanner: from tables, counts and a budget to a plan, in TorchRec's idiom."""

from __future__ import annotations

import operator
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..errors import InvalidInputError
from ..team import Alone, Team
from .advice import DEFAULT_WIDTHS, advice, widths_for
from .bases import with_bases
from .budget import Budget
from .collective import plan_together
from .counts import RowCounts
from .feasible import require_useful
from .plan import SizePlan
from .sizers import BET, Evaluate, Sized, Sizer, SizingProblem, Train, Workbench
from .tables import BasisKind, Table, TableSpec, table_specs

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


@dataclass(frozen=True, kw_only=True)
class BudgetPlanner:
    """Plans the sizes of all rows of any number of tables within one budget.

    budget: what everything may cost together.
    widths: the widths a table may have, 0 among them if rows may be dropped; a table uses those
        up to its embedding_dim. "auto" is 4, 8, ... 128 and the widest table's own, and where the
        budget is small 0, 1 and 2 too. "any" is 1 to the largest embedding_dim, as in the paper.
        Few widths make fast tables; ``SizePlan.coarsen`` brings any plan down to few.
    basis: None sizes rows by their own first columns, as in the paper. "fixed" or "trained" keeps
        the tables where it pays (``with_bases``) as coordinates in axes of their own, so that a
        row's prefix is worth most; the budget pays for the axes. Or one of these by table name.
    sizer: the method; None is ``BET()``, which needs an evaluation.
    seed: of everything random.
    """

    budget: Budget
    widths: Sequence[int] | Literal["auto", "any"] = "auto"
    sizer: Sizer | None = None
    seed: int = 0
    basis: BasisKind | Mapping[str, BasisKind | None] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.budget, Budget):
            raise InvalidInputError(
                "budget should be a Budget, as Budget.bytes(...), Budget.parameters(n) or "
                f"Budget.sparsity(s), got {self.budget!r}"
            )
        object.__setattr__(self, "widths", _checked_widths(self.widths))
        if self.sizer is not None and (isinstance(self.sizer, type) or not callable(self.sizer)):
            raise InvalidInputError(
                f"sizer should be an object such as BET() or EqualSizes(), got {self.sizer!r}"
            )
        if isinstance(self.seed, bool) or not hasattr(self.seed, "__index__") or self.seed < 0:
            raise InvalidInputError(f"seed should be an int, 0 or more, got {self.seed!r}")
        object.__setattr__(self, "seed", operator.index(self.seed))

    def plan(
        self,
        tables: Iterable[Table],
        counts: Mapping[str, Any],
        evaluate: Evaluate | None = None,
        *,
        train: Train | None = None,
        identity: str | None = None,
        workbench: Workbench | None = None,
        run_dir: str | Path | None = None,
        resume: str | Path | None = None,
        progress: bool = True,
    ) -> SizePlan:
        """Decide.

        Args:
            tables: anything with name, num_embeddings, embedding_dim: TableSpec,
                EmbeddingBagConfig.
            counts: by table name, one integer a row in id order (array, tensor, sequence), or
                RowCounts.
            evaluate: plan -> quality, higher is better: the user's own brief fine-tune.
            train: (plan, seed) -> quality: the user's own full training, from scratch, for sizers
                that retrain their best few.
            identity: what evaluate and train depend on (model, data, version), in words: a search
                is then resumed with the same only.
            workbench: instead of evaluate, for sizers that want more than that.
            run_dir: where a search keeps its history. resume: the run_dir of an earlier,
                interrupted call, to continue to the plan that it would have given.

        Raises:
            InvalidInputError: tables, counts or paths are not what they should be.
            InfeasibleBudgetError: no plan fits; says the smallest budget that one would.
            MissingEvaluationError: the sizer tries plans and was given no way to.
        """
        problem = self.problem(
            tables,
            counts,
            evaluate,
            train=train,
            identity=identity,
            workbench=workbench,
            run_dir=run_dir,
            resume=resume,
            progress=progress,
        )
        return self._checked(self._sizer(problem)(problem), problem)

    def collective_plan(
        self,
        tables: Iterable[Table],
        counts: Mapping[str, Any],
        evaluate: Evaluate | None = None,
        pg: ProcessGroup | None = None,
        *,
        train: Train | None = None,
        identity: str | None = None,
        workbench: Workbench | None = None,
        run_dir: str | Path | None = None,
        resume: str | Path | None = None,
        progress: bool = True,
    ) -> SizePlan:
        """Decide on all ranks of a process group: every rank calls this and gets the same plan.

        The counts are to be global, the same on every rank. The sizer runs on all ranks over the
        same decisions; ``evaluate`` and ``train`` run on every rank, plan by plan, may train a
        distributed model, and their values are averaged over the ranks. run_dir and resume are
        read and written by the first rank alone.

        Args:
            pg: None for the default group. Others as in ``plan``.

        Raises:
            CollectiveError: the ranks disagree about the problem, or another rank failed. An
                error on one rank is raised on all: there as it was, elsewhere as this.
        """
        return plan_together(
            lambda team: self.problem(
                tables,
                counts,
                evaluate,
                train=train,
                identity=identity,
                workbench=workbench,
                run_dir=run_dir,
                resume=resume,
                progress=progress,
                team=team,
            ),
            lambda problem: self._checked(self._sizer(problem)(problem), problem),
            pg,
            method=_method(BET() if self.sizer is None else self.sizer),
        )

    def problem(
        self,
        tables: Iterable[Table],
        counts: Mapping[str, Any],
        evaluate: Evaluate | None = None,
        *,
        train: Train | None = None,
        identity: str | None = None,
        workbench: Workbench | None = None,
        run_dir: str | Path | None = None,
        resume: str | Path | None = None,
        progress: bool = False,
        team: Team | None = None,
    ) -> SizingProblem:
        """The checked problem that a sizer is handed; for calling one by oneself. See ``plan``."""
        specs = with_bases(table_specs(tables), self.basis, self.budget)
        if evaluate is not None and not callable(evaluate):
            raise InvalidInputError(f"evaluate should be a function of a plan, got {evaluate!r}")
        if train is not None and (not callable(train) or evaluate is None):
            raise InvalidInputError(
                "train should be a function of a plan and a seed, beside evaluate, got "
                f"{train!r} beside {evaluate!r}"
            )
        team = team or Alone()
        widths = self.widths
        if widths == "auto":
            widths = widths_for(specs, self.budget)
        elif widths == "any":
            widths = range(1, max(spec.embedding_dim for spec in specs) + 1)
        return SizingProblem(
            tables=specs,
            counts=_checked_counts(specs, counts),
            budget=self.budget,
            widths=tuple(widths),
            seed=self.seed,
            evaluate=evaluate,
            train=train,
            workbench=workbench,
            identity=None if identity is None else str(identity),
            run_dir=_checked_run_dir(run_dir, resume, here=team.rank == 0),
            resume=resume is not None,
            progress=progress,
            team=team,
        )

    def _sizer(self, problem: SizingProblem) -> Sizer:
        if problem.team.rank == 0:
            for sentence in advice(
                problem.tables, problem.budget, problem.widths, problem.id_map_cost
            ):
                warnings.warn(sentence, stacklevel=3)
        sizer = BET() if self.sizer is None else self.sizer
        if getattr(sizer, "needs_evaluation", False):
            problem.require_evaluation(type(sizer).__name__)
        return sizer

    @staticmethod
    def _checked(plan: SizePlan | Sized, problem: SizingProblem) -> SizePlan:
        """Any sizer, a user's too, answers the question that was asked."""
        if not isinstance(plan, SizePlan):
            raise InvalidInputError(
                f"a sizer should return a SizePlan, got {type(plan).__name__}; one whose rows "
                "share parameters is called by itself: sizer(planner.problem(...)).build(seed)"
            )
        planned = tuple(TableSpec.of(table) for table in plan.tables)
        if planned != problem.tables or plan.budget != problem.budget:
            raise InvalidInputError(
                f"a sizer should plan {problem.tables} for {problem.budget}, "
                f"got a plan of {planned} for {plan.budget}"
            )
        require_useful(
            plan.parameters(), problem.tables, problem.mapped, problem.budget, problem.widths
        )
        return plan


def _method(sizer: Sizer) -> str:
    """A sizer in words that are the same in every process: no addresses."""
    if is_dataclass(sizer):
        return repr(sizer)
    kind = sizer if hasattr(sizer, "__qualname__") else type(sizer)
    return f"{kind.__module__}.{kind.__qualname__}"


def _checked_widths(widths: Any) -> tuple[int, ...] | Literal["auto", "any"]:
    if isinstance(widths, str) and widths in ("auto", "any"):
        return "any" if widths == "any" else "auto"
    try:
        found = [operator.index(width) for width in widths if not isinstance(width, bool)]
    except TypeError:
        found = []
    if isinstance(widths, str) or not found or len(found) != len(list(widths)) or min(found) < 0:
        raise InvalidInputError(
            f'widths should be "auto", "any" or distinct ints, 0 or more, as {DEFAULT_WIDTHS}, '
            f"got {widths!r}"
        )
    return tuple(sorted(set(found)))


def _checked_counts(specs: Sequence[TableSpec], counts: Mapping[str, Any]) -> tuple[RowCounts, ...]:
    if not isinstance(counts, Mapping):
        raise InvalidInputError(
            f"counts should map a table's name to its rows' counts, got {type(counts).__name__}"
        )
    names = [spec.name for spec in specs]
    missing = [name for name in names if name not in counts]
    unknown = [name for name in counts if name not in names]
    if missing or unknown:
        raise InvalidInputError(
            f"counts should have one entry a table ({', '.join(map(repr, names))}), "
            f"got none for {missing} and some for unknown {unknown}"
        )
    checked = []
    for spec in specs:
        given = counts[spec.name]
        try:
            row_counts = given if isinstance(given, RowCounts) else RowCounts.from_rows(given)
        except InvalidInputError as error:
            raise InvalidInputError(f"table {spec.name!r}: {error}") from None
        checked.append(row_counts)
    return tuple(checked)


def _checked_run_dir(run_dir: Any, resume: Any, *, here: bool) -> Path | None:
    """The folder to use; here: whether it is this rank that does."""
    if resume is None:
        return None if run_dir is None else Path(run_dir)
    if isinstance(resume, bool):
        raise InvalidInputError(f"resume should be the run_dir to continue, got {resume!r}")
    if run_dir is not None and Path(run_dir) != Path(resume):
        raise InvalidInputError(
            f"resume continues in its own folder {resume}, got run_dir {run_dir} too; leave it out"
        )
    if here and not Path(resume).is_dir():
        raise InvalidInputError(
            f"resume should be the run_dir of an earlier call, got {resume}, which is no folder"
        )
    return Path(resume)
