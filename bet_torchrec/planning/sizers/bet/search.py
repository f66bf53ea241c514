"""BET's search: draw candidates within the budget, predict their fitness, try one, learn.

Budgeted Embedding Table for Recommender Systems (WSDM 2024), Algorithm 1.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from tqdm.auto import tqdm

from ....errors import DivergedError
from ....files import holding
from ...plan import SizePlan
from ..problem import SizingProblem
from .choosing import Chooser
from .finals import choose_finalists, fittest_apart, retrain, warn_of_no_retraining
from .history import History, HistoryError, Probe, to_boundaries, to_buckets

if TYPE_CHECKING:
    from .settings import BET

_log = logging.getLogger(__name__)


class Search:
    """One run of BET on one problem.

    On several ranks each has one, and all do the same: what to try next is decided on the first
    rank and broadcast, and outcomes are the same everywhere.
    """

    def __init__(self, settings: BET, problem: SizingProblem) -> None:
        problem.require_evaluation("BET")
        self.settings, self.problem, self._team = settings, problem, problem.team
        self.chooser = Chooser(settings, problem)
        with ExitStack() as folder:  # two searches there would each write every probe
            self.history = self._team.together("the history", lambda: self._open(folder))
            self.history.probes, self.history.retrained = self._team.broadcast(
                (self.history.probes, self.history.retrained)
            )
            self._folder = folder.pop_all()

    def run(self) -> SizePlan:
        """Search to the end.

        Raises:
            DivergedError: no plan that was tried came to a quality.
        """
        with self._folder:
            return self._run()

    def _run(self) -> SizePlan:
        done = len(self.history.probes)
        anchors = self.chooser.anchors
        total = max(self.settings.iterations, anchors.equal if anchors else 0)
        shown = self.problem.progress and self._team.rank == 0
        with tqdm(total=total, initial=done, desc="search", disable=not shown) as bar:
            for t in range(done, total):
                if self._good_enough() is not None or self.step(t) is None:
                    break
                if best := self.history.best():
                    bar.set_postfix(best=f"{best[0].fitness:.4f}", at=best[0].iteration)
                bar.update()
        return self._finish()

    def step(self, t: int) -> Probe | None:
        """Iteration t: choose a candidate, try it, remember it. Depends on seed, t and history.

        None where all that was drawn has been tried: the budget leaves next to nothing to choose.
        """
        choose = partial(self.chooser, t, self.history)
        choice = self._team.first("choosing what to try", choose)
        if choice is None:
            _log.info("search ended: nothing was drawn that %d probes have not tried", t)
            return None
        chosen = choice.candidate
        plan = self._plan(chosen.boundaries[0], chosen.precision[0].tolist())
        start = time.perf_counter()
        outcome = self.problem.fitness(
            plan, epochs=self.settings.probe_epochs, floor=self._floor(choice.strategy)
        )
        probe = Probe(
            iteration=t,
            strategy=choice.strategy,
            state=outcome.state,
            fitness=outcome.quality if math.isfinite(outcome.quality) else None,
            predicted=choice.predicted,
            seconds=round(time.perf_counter() - start, 3),
            families=[self.chooser.families[i] for i in chosen.family[0]],
            beta=chosen.beta[0].tolist(),
            shares=chosen.shares[0].tolist(),
            precisions=[self.chooser.precisions[i] for i in chosen.precision[0]],
            buckets=to_buckets(chosen.boundaries[0], self.chooser.space.widths),
        )
        self._team.together("the history", lambda: self.history.add(probe))
        return probe

    def _floor(self, strategy: str) -> float | None:
        """The fitness that a probe has to reach: that of the last who would be a finalist."""
        places = max(self.settings.finalists, 1)
        best = self.history.best(places)
        if not self.settings.stop_hopeless or strategy == "anchor" or len(best) < places:
            return None
        return best[-1].fitness

    def _good_enough(self) -> Probe | None:
        """Full tables in fewer bits that fit the budget and lose next to nothing."""
        tolerance = self.settings.tolerance
        if tolerance is None or self.problem.evaluate is not None:
            return None
        for probe in self.history.ok:
            full = all(
                [tuple(b) for b in buckets] == [(spec.embedding_dim, spec.num_embeddings)]
                for buckets, spec in zip(probe.buckets, self.problem.tables, strict=True)
            )
            if full and probe.fitness is not None and probe.fitness >= 1 - tolerance:
                return probe
        return None

    def _report_predictions(self) -> None:
        """Say how well fitness was predicted, so that a predictor that does not help is seen."""
        rho = self.history.prediction_correlation()
        if rho is not None and self._team.rank == 0:
            _log.info("rank correlation of predicted and measured fitness: %.2f", rho)

    def _finish(self) -> SizePlan:
        """Selective retraining (Eq. 14), on validation; without a way to, the fittest wins."""
        self._report_predictions()
        if not self.history.ok:
            raise DivergedError(
                f"none of the {len(self.history.probes)} plans that were tried came to a quality: "
                "all diverged. Try a smaller learning rate, and a plan by hand: "
                "evaluate(BudgetPlanner(..., sizer=EqualSizes()).plan(tables, counts))"
            )
        if (full := self._good_enough()) is not None:
            said = (
                f"full tables in {'/'.join(sorted(set(full.precisions)))} fit the budget with "
                f"{full.fitness:.5f} of the full quality"
            )
            _log.info("search ended: %s", said)
            return self._probe_plan(full, start="full", stopped=said)
        starts = [start for start in self.problem.starts if start in self.settings.starts]
        if not self.settings.finalists or not starts:
            if self.settings.finalists and self._team.rank == 0:
                warn_of_no_retraining(self.settings.finalists)
            return self._probe_plan(self.history.best()[0])
        finalists = choose_finalists(
            self.history, self.chooser.codes(self.history.ok), self.settings.finalists
        )
        best, start, quality = retrain(
            self.problem,
            self.history,
            finalists,
            self._probe_plan,
            starts=starts,
            seeds=self.settings.final_seeds,
        )
        return self._probe_plan(best, validation_quality=f"{quality:.6g}", start=start)

    def fittest(self, number: int) -> list[SizePlan]:
        """The best of what was tried, and equal sizes in the precision that they were best in.

        None where no plan that was tried came to a quality.
        """
        if not self.history.ok:
            return []
        found = fittest_apart(self.history, self.chooser.codes(self.history.ok), number)
        equal = self.history.equal_sizes()
        if equal is not None and equal not in found:
            found.append(equal)
        return [self._probe_plan(probe) for probe in found]

    def _probe_plan(self, probe: Probe, **metadata: str) -> SizePlan:
        metadata["iteration"] = str(probe.iteration)
        if probe.fitness is not None:
            metadata["fitness"] = f"{probe.fitness:.6g}"
        if (rho := self.history.prediction_correlation()) is not None:
            metadata["prediction_correlation"] = f"{rho:.2f}"
        return self._plan_of(probe, metadata)

    def _plan_of(self, probe: Probe, metadata: dict[str, str] | None = None) -> SizePlan:
        precision = [self.chooser.precisions.index(p) for p in probe.precisions]
        return self._plan(
            to_boundaries(probe.buckets, self.chooser.space.widths), precision, metadata
        )

    def _plan(
        self,
        boundaries: torch.Tensor,
        precision: Sequence[int],
        metadata: dict[str, str] | None = None,
    ) -> SizePlan:
        return self.problem.plan(
            boundaries.numpy(),
            tuple(self.chooser.precisions[i] for i in precision),
            sizer="bet",
            metadata=metadata or {},
        )

    def _open(self, held: ExitStack) -> History:
        """The history; on other ranks than the first in memory alone. held: gets its folder."""
        folder = self.problem.run_dir if self._team.rank == 0 else None
        held.enter_context(holding(folder))
        path = None if folder is None else folder / "history.jsonl"
        history = History.open(path, self._header(), resume=self.problem.resume)
        try:
            tried = self.chooser.tried(history.probes).boundaries if history.probes else None
            for probe in history.probes:  # over the budget it is an error here, not at the end
                self._plan_of(probe)
        except (LookupError, ValueError, RuntimeError) as error:
            raise HistoryError(
                f"{path} holds sizes that this search never tries: {error}"
            ) from None
        if tried is not None and bool((tried[..., 0] != self.chooser.space.rows).any()):
            raise HistoryError(f"{path} holds sizes that are not one a row of the tables")
        return history

    def _header(self) -> dict[str, Any]:
        """What must be the same for a search to be the same search, iterations aside."""
        settings = {k: repr(v) for k, v in vars(self.settings).items() if k != "iterations"}
        header = {
            "problem": self.problem.fingerprint(),
            "seed": self.problem.seed,
            "settings": settings,
            "tried_with": self.problem.way_to_try(),
        }
        known: dict[str, Any] = json.loads(json.dumps(header))
        return known
