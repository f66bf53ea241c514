"""What a sizer is asked: tables, counts, a budget, and the ways to try a plan."""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ...errors import InvalidInputError, MissingEvaluationError
from ...outcome import Outcome
from ...team import Alone, Team
from ..budget import BITS, Budget, MemoryModel
from ..counts import RowCounts
from ..feasible import allowed_widths, require_feasible
from ..fit import FitSpace
from ..plan import Bucket, SizePlan, TablePlan
from ..tables import TableSpec, table_specs
from .workbench import Evaluate, Start, Train, Workbench

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False, kw_only=True)
class SizingProblem:
    """Tables, counts and a budget: what a sizer needs to know.

    tables: one with a basis is planned as coordinates in axes of its own, and pays for them.
    counts: one a table, in the tables' order. widths: ascending, may start with 0.
    evaluate, workbench: ways to try a plan, or None; train: beside evaluate, a full training.
    identity: what evaluate and train depend on, in the user's words; a workbench has its own.
    run_dir: where a sizer may keep its state; resume: whether to take up what is there.
    progress: whether to show it.
    team: the ranks that all run the sizer at once. Anything that the ranks could decide
    differently is decided on the first (``team.first``); evaluate's values are averaged.

    Raises:
        InvalidInputError: counts or widths do not fit the tables.
        InfeasibleBudgetError: not even the smallest plan fits.
    """

    tables: tuple[TableSpec, ...]
    counts: tuple[RowCounts, ...]
    budget: Budget
    widths: tuple[int, ...]
    seed: int = 0
    evaluate: Evaluate | None = None
    train: Train | None = None
    workbench: Workbench | None = None
    identity: str | None = None
    run_dir: Path | None = None
    resume: bool = False
    progress: bool = False
    team: Team = field(default_factory=Alone)

    def __post_init__(self) -> None:
        object.__setattr__(self, "tables", table_specs(self.tables))
        object.__setattr__(self, "counts", tuple(self.counts))
        object.__setattr__(self, "widths", tuple(int(width) for width in self.widths))
        if list(self.widths) != sorted(set(self.widths)):
            raise InvalidInputError(f"widths should rise strictly, got {self.widths}")
        if len(self.counts) != len(self.tables):
            raise InvalidInputError(
                f"counts should be one a table, got {len(self.counts)} for {len(self.tables)}"
            )
        for table, counts in zip(self.tables, self.counts, strict=True):
            if counts.rows != table.num_embeddings:
                raise InvalidInputError(
                    f"table {table.name!r}: counts should cover num_embeddings = "
                    f"{table.num_embeddings} rows, got {counts.rows}"
                )
        require_feasible(self.tables, self.budget, self.widths)

    @property
    def precisions(self) -> tuple[str, ...]:
        """The precisions that a table may have; indices into them are what a fit speaks of."""
        return self.budget.dtypes

    @property
    def bits(self) -> tuple[int, ...]:
        """Bits a weight of each of ``precisions``."""
        return tuple(BITS[precision] for precision in self.precisions)

    def fingerprint(self) -> str:
        """16 hex digits of tables, counts, budget and widths: what the answer depends on."""
        counts = [counts.fingerprint() for counts in self.counts]
        text = repr((self.tables, counts, self.budget, self.widths))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def memory(self) -> MemoryModel:
        """What the budget counts by."""
        return MemoryModel.for_budget(self.budget)

    @cached_property
    def limit(self) -> int:
        """The whole budget, in ``budget.cost_unit``; id maps are to be paid from it."""
        return self.budget.limit(self.tables)

    @property
    def mapped(self) -> tuple[bool, ...]:
        """A table, whether its ids are no ranks and so need an id map."""
        return tuple(counts.order is not None for counts in self.counts)

    @property
    def id_map_cost(self) -> int:
        """What the id maps of the tables take; one whose rows all share a width needs none."""
        mapped = (counts.rows for counts in self.counts if counts.order is not None)
        return sum(self.memory.id_map_cost(rows) for rows in mapped)

    @property
    def row_limit(self) -> int:
        """What all rows may cost together: the limit less the id maps."""
        return self.limit - self.id_map_cost

    def table_widths(self, table: int) -> tuple[int, ...]:
        """The widths that table number ``table`` may use, ascending."""
        return allowed_widths(self.tables[table], self.widths)

    @cached_property
    def space(self) -> FitSpace:
        """What ``planning.fit`` chooses from; its precisions are ``budget.dtypes``."""
        return self.fit_space()

    def fit_space(
        self, *, precisions: Sequence[str] | None = None, limit: int | None = None
    ) -> FitSpace:
        """The space of these precisions (all of the budget's) and row limit (``row_limit``)."""
        costs = [self.memory.row_costs(self.widths, p) for p in precisions or self.budget.dtypes]
        rows = sum(table.num_embeddings for table in self.tables)
        # more than all tables could ever take means nothing, and may not fit 64 bits
        most = rows * int(max(cost[-1] for cost in costs)) + self.id_map_cost
        most += len(self.tables) * len(self.widths) * self.memory.table_alignment
        bases = self._bases()
        most += 0 if bases is None else int(bases.sum())
        if most >= 2**60:
            raise InvalidInputError(
                f"{rows} rows of width {self.widths[-1]} are {most} {self.budget.cost_unit}, which "
                "is beyond what costs are counted in; check num_embeddings and embedding_dim"
            )
        limit = min(self.row_limit if limit is None else limit, most)
        return FitSpace(
            widths=torch.tensor(self.widths, dtype=torch.int64),
            rows=torch.tensor([table.num_embeddings for table in self.tables], dtype=torch.int64),
            depth=torch.tensor([len(self.table_widths(t)) for t in range(len(self.tables))]),
            costs=torch.from_numpy(np.stack(costs)),
            limit=limit,
            table_alignment=self.memory.table_alignment,
            bases=bases,
        )

    def _bases(self) -> torch.Tensor | None:
        """(F, W) what a table's basis costs, by the table's widest width."""
        if all(table.basis is None for table in self.tables):
            return None
        return torch.tensor(
            [
                [self.memory.basis_cost(t.basis, width, t.embedding_dim) for width in self.widths]
                for t in self.tables
            ]
        )

    def plan(
        self,
        boundaries: Any,
        precisions: Sequence[str],
        sizer: str,
        metadata: Mapping[str, str] | None = None,
        *,
        orders: Sequence[NDArray[np.int32] | None] | None = None,
    ) -> SizePlan:
        """The plan that these boundaries describe.

        Args:
            boundaries: (tables, W) integers, boundaries[t, k] rows of table t have a size of at
                least widths[k]; the first column is all rows.
            precisions: one a table. orders: instead of the counts' own, one a table.

        Raises:
            InvalidInputError: boundaries of a wrong shape, or that rise with the width.
            PlanError: the plan is over the budget or too wide for a table.
        """
        b = np.asarray(boundaries.cpu() if isinstance(boundaries, torch.Tensor) else boundaries)
        rows = np.array([table.num_embeddings for table in self.tables])
        if b.shape != (len(rows), len(self.widths)) or b.dtype.kind not in "iu":
            raise InvalidInputError(
                f"boundaries should be {len(rows)} x {len(self.widths)} integers (tables x "
                f"widths), got {b.dtype} of {' x '.join(map(str, b.shape))}"
            )
        if (b[:, 0] != rows).any() or (b[:, 1:] > b[:, :-1]).any() or (b < 0).any():
            raise InvalidInputError(
                "boundaries should start with all rows of a table and fall with the width to 0 "
                f"or more, got {b.tolist()} for {rows.tolist()} rows"
            )
        if len(precisions) != len(rows):
            raise InvalidInputError(
                f"precisions should be one a table, {len(rows)}, got {len(precisions)}"
            )
        exact = -np.diff(b, append=0)
        if orders is None:
            orders = [counts.order for counts in self.counts]
        tables = tuple(
            TablePlan(
                name=spec.name,
                rows=spec.num_embeddings,
                embedding_dim=spec.embedding_dim,
                buckets=tuple(
                    Bucket(width, int(n), precision)
                    for width, n in zip(self.widths[::-1], exact[t, ::-1].tolist(), strict=True)
                    if n
                ),
                order=orders[t],
                counts_fingerprint=self.counts[t].fingerprint(),
                basis=spec.basis,
            )
            for t, (spec, precision) in enumerate(zip(self.tables, precisions, strict=True))
        )
        return SizePlan(tables, self.budget, sizer, self.seed, metadata or {})

    def require_evaluation(self, sizer: str) -> None:
        """Raise MissingEvaluationError if there is no way to try a plan."""
        if self.evaluate is None and self.workbench is None:
            raise MissingEvaluationError(
                f"sizer {sizer} tries plans out and should be given evaluate= (a function from a "
                "SizePlan to its validation quality) or workbench=, got neither; or use a sizer "
                "that needs none, as EqualSizes()"
            )

    @cached_property
    def full_quality(self) -> float:
        """The full model's quality, of the workbench.

        Raises:
            InvalidInputError: its training diverged, or it has learnt nothing.
        """
        assert self.workbench is not None
        bench = self.workbench
        outcome = self._asked("the full model", lambda: bench.full().outcome)
        if not outcome.ok or outcome.quality <= 0:
            raise InvalidInputError(
                f"the full model's quality should be above 0, got {outcome.quality} "
                f"({outcome.state}): it has learnt nothing; try a smaller learning rate"
            )
        return outcome.quality

    def fitness(
        self, plan: SizePlan, *, epochs: int | None = None, floor: float | None = None
    ) -> Outcome:
        """How good a plan is (Eq. 12): evaluate(plan), or its fine-tuned share of full quality.

        A search learns from outcomes that are ``ok`` alone: an evaluate that gives NaN or an
        infinity is "diverged", never an error.

        Args:
            epochs, floor: as in ``Workbench.fine_tune``, floor as a fitness; ``evaluate`` takes
                neither.

        Raises:
            MissingEvaluationError: there is no way to try a plan.
            InvalidInputError: the answer is no number.
        """
        self.require_evaluation("that asked for a fitness")
        if self.evaluate is not None:
            evaluate = self.evaluate
            return self._mean("evaluate", lambda: evaluate(plan))
        assert self.workbench is not None
        bench, full = self.workbench, self.full_quality
        least = None if floor is None else floor * full
        outcome = self._asked(
            "fine_tune", lambda: bench.fine_tune(plan, epochs=epochs, floor=least)
        )
        return replace(
            outcome,
            quality=outcome.quality / full,
            history=tuple((step, quality / full) for step, quality in outcome.history),
        )

    @property
    def starts(self) -> tuple[Start, ...]:
        """The ways to train a plan fully; none where there is only ``evaluate``."""
        if self.train is not None:
            return ("scratch",)
        return () if self.workbench is None else ("scratch", "full")

    def trained(self, plan: SizePlan, *, seed: int, start: Start) -> Outcome:
        """A full training of a plan, by ``train`` or the workbench; its quality as it is."""
        if self.train is not None:
            train = self.train
            return self._mean("train", lambda: train(plan, seed))
        assert self.workbench is not None
        bench = self.workbench
        return self._asked("train", lambda: bench.train(plan, seed=seed, start=start))

    def way_to_try(self) -> dict[str, Any]:
        """What the answers depend on, JSON-able: what a search must be resumed with again."""
        bench = None if self.workbench is None else dict(self.workbench.identity())
        own = None if self.evaluate is None and self.train is None else self.identity
        return json.loads(json.dumps({"own": own, "workbench": bench}, default=str))

    def _mean(self, what: str, work: Callable[[], Any]) -> Outcome:
        """The mean over the ranks of their numbers."""
        return _settled(self.team.mean(what, lambda: _number(work(), what)), what, self.team)

    def _asked(self, what: str, work: Callable[[], Any]) -> Outcome:
        """The workbench's answer, which is the same on all ranks: the first's is taken."""
        outcome = self.team.broadcast(self.team.together(what, work))
        if not isinstance(outcome, Outcome):
            raise InvalidInputError(
                f"a workbench's {what} should answer an Outcome, got {outcome!r}"
            )
        if outcome.ok:
            return _settled(outcome.quality, what, self.team, outcome)
        return outcome


def _settled(quality: float, what: str, team: Team, outcome: Outcome | None = None) -> Outcome:
    """An outcome with this quality; diverged where that is no finite number."""
    if math.isfinite(quality):
        return outcome or Outcome(quality=quality)
    if team.rank == 0:
        _log.warning("%s gave %s: the plan counts as diverged", what, quality)
    return Outcome.diverged()


def _number(value: Any, what: str) -> float:
    """A float, finite or not; raises InvalidInputError for anything else."""
    try:
        return float(value)
    except (TypeError, ValueError):
        raise InvalidInputError(
            f"{what} should return a number, higher is better, got {value!r}"
        ) from None
