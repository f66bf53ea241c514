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
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tqdm.auto import tqdm

from ....errors import DivergedError
from ....files import holding
from ...budget import BITS
from ...fit import minimum_cost
from ...plan import SizePlan
from ..id_maps import spend_unneeded_maps
from ..problem import SizingProblem
from .anchors import Anchors
from .finals import choose_finalists, fittest_apart, retrain, warn_of_no_retraining
from .history import History, HistoryError, Probe, to_boundaries, to_buckets, to_candidates
from .predictor import Predictor, Scene
from .sampler import Candidates, Sampler, concatenate
from .surrogate import Features

if TYPE_CHECKING:
    from .settings import BET

_log = logging.getLogger(__name__)

PARENTS = 5  # the fittest, around which mutants are drawn


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What an iteration tries: one candidate, why, and the fitness that was predicted."""

    candidate: Candidates
    strategy: str
    predicted: float | None = None


class Search:
    """One run of BET on one problem.

    On several ranks each has one, and all do the same: what to try next is decided on the first
    rank and broadcast, and outcomes are the same everywhere.
    """

    def __init__(self, settings: BET, problem: SizingProblem) -> None:
        problem.require_evaluation("BET")
        self.settings, self.problem, self._team = settings, problem, problem.team
        self._precisions = _affordable(problem)
        self.space = problem.fit_space(precisions=self._precisions)
        self.sampler = Sampler(
            self.space,
            problem.counts,
            settings.families,
            settings.draws,
            settings.shares,
            settings.alike,
            exact=False,
        )
        self._scene = Scene(
            counts=problem.counts,
            widths=self.space.widths,
            d_max=max(table.embedding_dim for table in problem.tables),
            bits=[BITS[precision] for precision in self._precisions],
        )
        self._families = [f.name for f in settings.families]
        self._anchors = (  # here and not when one is due: it may validate, on all ranks
            Anchors(problem, self.sampler, self._precisions) if settings.anchored else None
        )
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
        total = max(self.settings.iterations, self._anchors.equal if self._anchors else 0)
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
        choice = self._team.first("choosing what to try", lambda: self._choose(t))
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
            families=[self._families[i] for i in chosen.family[0]],
            beta=chosen.beta[0].tolist(),
            shares=chosen.shares[0].tolist(),
            precisions=[self._precisions[i] for i in chosen.precision[0]],
            buckets=to_buckets(chosen.boundaries[0], self.space.widths),
        )
        self._team.together("the history", lambda: self.history.add(probe))
        return probe

    def _choose(self, t: int) -> Choice | None:
        due = self._anchors.due(t) if self._anchors else None
        anchor = None if due is None else self._anchor(due)
        return anchor or self._drawn(t) or self._anchor_left() or self._best_without_a_table()

    def _anchor(self, number: int) -> Choice | None:
        """An anchor, unless that was tried; equal sizes always."""
        assert self._anchors
        kind = self._anchors.kind(number)
        one = self._anchors.candidate(number, self._best_precision())
        if kind not in ("anchor", "subset"):  # these are given as an engineer would try them
            one = self._settled(one)
        return Choice(candidate=one, strategy=kind) if kind == "anchor" or self._new(one) else None

    def _anchor_left(self) -> Choice | None:
        """The first that was not tried, for when all that is drawn has been."""
        numbers = range(self._anchors.equal, len(self._anchors)) if self._anchors else ()
        return next((found for n in numbers if (found := self._anchor(n))), None)

    def _best_without_a_table(self) -> Choice | None:
        """The best plan with one more table left out: all that may help where everything fits."""
        if not self._anchors or not self.history.ok:
            return None
        best = self._tried(self.history.best())
        for t in range(len(self.problem.tables)):
            boundaries = best.boundaries.clone()
            boundaries[0, t, 1:] = 0
            less = replace(best, boundaries=boundaries)
            if boundaries[..., 1:].any() and self._new(less):
                return Choice(candidate=less, strategy="subset")
        return None

    def _drawn(self, t: int) -> Choice | None:
        rng = np.random.default_rng([self.problem.seed, t])
        strategy = self.settings.strategies[t % len(self.settings.strategies)]
        # of all probes: those that were given up explored too, and there may be many
        if not self.history.ok or len(self.history.probes) < self.settings.explored:
            strategy = "random"
        candidates = self._draw(strategy, rng)
        if strategy in ("random", "local"):
            order = rng.permutation(len(candidates)).tolist()
            taken = self._first_new(candidates, order)
            return None if taken is None else Choice(candidate=taken, strategy=strategy)
        predictor = self._trained_predictor()
        with torch.no_grad():
            if strategy == "predicted":
                hope = predictor(candidates) + self.settings.optimism * predictor.spread(candidates)
                order = hope.argsort(descending=True).tolist()
            else:
                target = predictor.embed(self._tried(self.history.best()))
                distance = (predictor.embed(candidates) - target).norm(dim=-1)
                order = distance.argsort().tolist()
            taken = self._first_new(candidates, order)
            if taken is None:
                return None
            predicted = float(predictor(taken)[0])
        return Choice(candidate=taken, strategy=strategy, predicted=predicted)

    def _first_new(self, candidates: Candidates, order: Sequence[int]) -> Candidates | None:
        """The first in this order that was not tried yet, its budget spent to the last byte."""
        settled = (self._settled(candidates[[i]]) for i in order)
        return next((each for each in settled if self._new(each)), None)

    def _new(self, one: Candidates) -> bool:
        tried = self._tried(self.history.probes) if self.history.probes else None
        return tried is None or _contents(one)[0] not in _contents(tried)

    def _settled(self, one: Candidates) -> Candidates:
        """One candidate, its budget spent to the last byte, id maps that it doesn't need too."""
        settled = self.sampler.settled(one)
        boundaries = spend_unneeded_maps(
            self.problem, self.space, settled.boundaries[0], settled.precision[0].tolist()
        )
        return replace(settled, boundaries=boundaries[None])

    def _best_precision(self) -> int:
        """That of the best equal sizes so far."""
        equal = [p for p in self.history.best(len(self.history.probes)) if p.strategy == "anchor"]
        return self._precisions.index(equal[0].precisions[0]) if equal else 0

    def _draw(self, strategy: str, rng: np.random.Generator) -> Candidates:
        """Drawn anew, or around the best few."""
        m, parents = self.settings.candidates, self.history.best(PARENTS)
        mutants = int(m * self.settings.mutants) if len(parents) == PARENTS else 0
        if strategy == "local":
            mutants = m
        parts = [self.sampler(m - mutants, rng)] if mutants < m else []
        if mutants:
            parts.append(self.sampler.around(self._tried(parents), mutants, rng))
        return concatenate(parts)

    def _trained_predictor(self) -> Predictor:
        return self.settings.trainer(
            self._scene, self._tried(self.history.ok), self.history.fitness(), self.problem.seed
        )

    def _tried(self, probes: Sequence[Probe]) -> Candidates:
        return to_candidates(probes, self.space.widths, self._families, self._precisions)

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
        finalists = choose_finalists(self.history, self._codes(), self.settings.finalists)
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
        best = fittest_apart(self.history, self._codes(), number)
        equal = [p for p in self.history.best(len(self.history.probes)) if p.strategy == "anchor"]
        return [self._probe_plan(p) for p in best + [p for p in equal[:1] if p not in best]]

    def _codes(self) -> torch.Tensor:
        """Where the probes that are ok lie."""
        return Features(self._scene)(self._tried(self.history.ok))

    def _probe_plan(self, probe: Probe, **metadata: str) -> SizePlan:
        metadata["iteration"] = str(probe.iteration)
        if probe.fitness is not None:
            metadata["fitness"] = f"{probe.fitness:.6g}"
        if (rho := self.history.prediction_correlation()) is not None:
            metadata["prediction_correlation"] = f"{rho:.2f}"
        return self._plan_of(probe, metadata)

    def _plan_of(self, probe: Probe, metadata: dict[str, str] | None = None) -> SizePlan:
        precision = [self._precisions.index(p) for p in probe.precisions]
        return self._plan(to_boundaries(probe.buckets, self.space.widths), precision, metadata)

    def _plan(
        self,
        boundaries: torch.Tensor,
        precision: Sequence[int],
        metadata: dict[str, str] | None = None,
    ) -> SizePlan:
        return self.problem.plan(
            boundaries.numpy(),
            tuple(self._precisions[i] for i in precision),
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
            tried = self._tried(history.probes).boundaries if history.probes else None
            for probe in history.probes:  # over the budget it is an error here, not at the end
                self._plan_of(probe)
        except (LookupError, ValueError, RuntimeError) as error:
            raise HistoryError(
                f"{path} holds sizes that this search never tries: {error}"
            ) from None
        if tried is not None and bool((tried[..., 0] != self.space.rows).any()):
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


def _contents(candidates: Candidates) -> list[bytes]:
    """What tells candidates apart."""
    pairs = zip(candidates.boundaries, candidates.precision, strict=True)
    return [b.numpy().tobytes() + p.numpy().tobytes() for b, p in pairs]


def _affordable(problem: SizingProblem) -> list[str]:
    """The precisions in which every row at its smallest width is within the budget."""
    space, tables = problem.space, len(problem.tables)
    each = torch.arange(len(space.costs))[:, None].expand(-1, tables)
    least = minimum_cost(space, each).tolist()  # rows that are alike need no id maps
    return [p for p, n in zip(problem.precisions, least, strict=True) if n <= problem.limit]
