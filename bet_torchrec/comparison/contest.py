"""One task and budget that methods compete under: all of them train and choose alike."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import DivergedError
from ..planning import Budget, BudgetPlanner, SizePlan
from ..planning.sizers import FormPlan, Sizer, SizingProblem, Start
from ..training import Trained, TrainingWorkbench

Planned = SizePlan | FormPlan


@dataclass(frozen=True, kw_only=True)
class Contest:
    """bench: trains and tries plans. budget, widths: of every method.

    probes: that a search may spend. finalists: plans that a method may train fully. starts, rates:
    each is trained from each start at each learning rate; validation chooses. seed: of the search
    and of trainings. run_dir: where searches keep their history.
    """

    bench: TrainingWorkbench
    budget: Budget
    widths: tuple[int, ...]
    probes: int
    finalists: int
    starts: tuple[Start, ...]
    rates: tuple[float, ...]
    seed: int
    run_dir: Path
    spent: dict[str, float] = field(default_factory=dict)

    def planner(self, sizer: Sizer) -> BudgetPlanner:
        return BudgetPlanner(budget=self.budget, widths=self.widths, sizer=sizer, seed=self.seed)

    def plan(self, sizer: Sizer) -> Planned:
        found = sizer(self.problem(sizer))
        assert isinstance(found, (SizePlan, FormPlan))
        return found

    def problem(self, sizer: Sizer, name: str | None = None) -> SizingProblem:
        """name: of the folder of a search's history, which is resumed where it is there."""
        where = None if name is None else self.run_dir / name
        kept: dict[str, Any] = {}
        if where is not None:
            kept = {"resume": where} if (where / "history.jsonl").exists() else {"run_dir": where}
        return self.planner(sizer).problem(
            self.bench.tables,
            self.bench.counts(),
            workbench=self.bench,
            progress=self.bench.progress,
            **kept,
        )

    def final(self, plans: Sequence[Planned]) -> Final:
        """The best on validation of all plans, starts and rates.

        What has tables of its own form says itself where it may start.
        """
        began, best, trainings = time.perf_counter(), None, 0
        for plan in dict.fromkeys(plans):
            for rate in self.rates:
                bench = self.bench.at_rate(rate)
                for start in plan.starts if isinstance(plan, FormPlan) else self.starts:
                    trained = bench.train_model(plan, seed=self.seed, start=start)
                    trainings += 1
                    if trained.outcome.ok and (best is None or trained.quality > best.quality):
                        best = Final(plan, start, rate, trained)
        if best is None:
            raise DivergedError(f"all {trainings} trainings diverged: try smaller rates")
        self.spent["finals"] = time.perf_counter() - began
        self.spent["trainings"] = trainings
        return best

    def full(self) -> Trained:
        """The full model, at its best rate."""
        models = [self.bench.pretrained_at(rate).full() for rate in self.rates]
        return max(models, key=lambda model: model.quality)


@dataclass(frozen=True)
class Final:
    """What a method comes to: a plan, and how it was trained best."""

    plan: Planned
    start: Start
    rate: float
    trained: Trained

    @property
    def quality(self) -> float:
        return self.trained.quality
