"""What a sizer is asked, what it may use, and what it answers: the seam between the wings.

A sizer that must train something never imports a backbone or a training loop. It is handed a
``Workbench``, or the user's own ``evaluate``, inside the problem.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from ...errors import InvalidInputError, MissingEvaluationError
from ...outcome import Outcome
from ..budget import BITS, Budget, MemoryModel
from ..counts import RowCounts
from ..feasible import allowed_widths, require_feasible
from ..fit import FitSpace
from ..plan import Bucket, SizePlan, TablePlan
from ..tables import TableSpec, table_specs

if TYPE_CHECKING:
    from ...models.protocol import EmbeddingModule
    from ...tasks.task import Task

Evaluate = Callable[[SizePlan], float]


class Trained(Protocol):
    """A trained model with its tables.

    model, embedding: as they ended. outcome: how training went.
    """

    @property
    def model(self) -> torch.nn.Module: ...
    @property
    def embedding(self) -> EmbeddingModule: ...
    @property
    def outcome(self) -> Outcome: ...

    def full_tables(self) -> Mapping[str, torch.Tensor]:
        """Copies of the tables by name, rows x embedding_dim each, zero-padded."""


class Sized(Protocol):
    """What a sizer decided, with an account of its own; SizePlan is one.

    A method whose rows share parameters (codebooks, projections, factors) returns its own.
    """

    def cost(self) -> int:
        """What it costs, exactly, in the budget's ``cost_unit``."""

    def build(self, seed: int) -> EmbeddingModule:
        """Its tables as a module that trains, freshly drawn."""


class Workbench(Protocol):
    """Trains and evaluates the task's model for a sizer. Quality: higher is better.

    On several ranks all of them make the same calls in the same order, and get the same answers.
    """

    @property
    def task(self) -> Task:
        """What is learnt."""

    def identity(self) -> Mapping[str, Any]:
        """What the answers depend on (task, settings, seed), JSON-serialisable."""

    def full(self) -> Trained:
        """The model with full tables, trained once and kept."""

    def fit(
        self,
        embedding: EmbeddingModule,
        *,
        settings: Any = None,
        warm: Trained | None = None,
        seed: int | None = None,
        extra_loss: Callable[[], torch.Tensor] | None = None,
        groups: Callable[..., Any] | None = None,
        on_step: Callable[[int], None] | None = None,
        floor: float | None = None,
    ) -> Trained:
        """Train the task's model over any embedding module, in place.

        Args:
            settings: of the training; None is the one from scratch. warm: whose model's weights
                to start from (the tables are ``embedding``'s own affair). seed: None is the
                workbench's. extra_loss: added to the task's at every step. groups: makes the
                optimizer from the weights. on_step: called after every step with their number.
            floor: as in ``fine_tune``.
        """

    def fine_tune(
        self, plan: SizePlan, *, epochs: int | None = None, floor: float | None = None
    ) -> Outcome:
        """A brief training from the full tables' rows, cut to the plan's sizes.

        Args:
            epochs: None for the workbench's own; 0 evaluates the bare cut rows. floor: a quality
                under which nobody cares, so that a hopeless one may stop early ("pruned").
        """

    def train(
        self,
        plan: SizePlan,
        *,
        seed: int | None = None,
        start: Literal["scratch", "full"] = "scratch",
    ) -> Outcome:
        """A full training: from scratch, or from the full tables' rows, cut."""


class Sizer(Protocol):
    """A method that turns a problem into a plan: a frozen dataclass of hyper-parameters.

    A sizer that cannot do without ``evaluate`` or a workbench says so by a class attribute
    ``needs_evaluation = True``.
    """

    def __call__(self, problem: SizingProblem) -> SizePlan: ...


@dataclass(frozen=True, eq=False, kw_only=True)
class SizingProblem:
    """Tables, counts and a budget: what a sizer needs to know.

    counts: one a table, in the tables' order. widths: ascending, may start with 0.
    evaluate, workbench: ways to try a plan, or None. run_dir: where a sizer may keep its state;
    resume: whether to take up what is there. progress: whether to show it.

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
    workbench: Workbench | None = None
    run_dir: Path | None = None
    resume: bool = False
    progress: bool = field(default=False)

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
        require_feasible(self.tables, self.mapped, self.budget, self.widths)

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
        """What the id maps of the tables take, whatever the sizes are."""
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
        return FitSpace(
            widths=torch.tensor(self.widths, dtype=torch.int64),
            rows=torch.tensor([table.num_embeddings for table in self.tables], dtype=torch.int64),
            depth=torch.tensor([len(self.table_widths(t)) for t in range(len(self.tables))]),
            costs=torch.from_numpy(np.stack(costs)),
            limit=self.row_limit if limit is None else limit,
            table_alignment=self.memory.table_alignment,
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

    def fitness(
        self, plan: SizePlan, *, epochs: int | None = None, floor: float | None = None
    ) -> float:
        """How good a plan is (Eq. 12): evaluate(plan), or its fine-tuned share of full quality.

        Args:
            epochs, floor: as in ``Workbench.fine_tune``, floor as a fitness; ``evaluate`` takes
                neither.

        Raises:
            MissingEvaluationError: there is no way to try a plan.
            InvalidInputError: the answer is no finite number.
        """
        self.require_evaluation("that asked for a fitness")
        if self.evaluate is not None:
            return finite(self.evaluate(plan), "evaluate")
        assert self.workbench is not None
        full = finite(self.workbench.full_quality(), "full_quality")
        if full <= 0:
            raise InvalidInputError(
                f"full_quality should be above 0, got {full}; the full model has learnt nothing"
            )
        quality = self.workbench.fine_tune(
            plan, epochs=epochs, floor=None if floor is None else floor * full
        )
        return finite(quality, "fine_tune") / full


def finite(value: Any, what: str) -> float:
    """A number that a search can compare; raises InvalidInputError for anything else."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise InvalidInputError(
            f"{what} should return a finite number, higher is better, got {value!r}; "
            "give a diverged model your worst value"
        )
    return number
