"""BET's search: draw candidates within the budget, predict their fitness, try one, learn.

Budgeted Embedding Table for Recommender Systems (WSDM 2024), Algorithm 1.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Literal

import numpy as np
import torch
from tqdm.auto import tqdm

from ...budget import BITS
from ...fit import minimum_cost
from ...plan import SizePlan
from ..problem import SizingProblem
from .families import EXPLORING_FAMILIES, PAPER_FAMILIES, Family
from .history import History, Probe, to_boundaries, to_buckets, to_candidates
from .predictor import FitnessPredictor
from .sampler import Candidates, Sampler, concatenate
from .training import FullBatch, SingleSamples, Trainer

Strategy = Literal["predicted", "random", "nearest"]
FEW_TABLES = (
    4  # with few, one can do another's work (a graph model's items); subsets of many are too many
)
PAPER_STRATEGIES: tuple[Strategy, ...] = ("predicted",) * 3 + ("random", "nearest")


@dataclass(frozen=True, kw_only=True)
class BET:
    """Searches table-level sizes by trying a few candidates and predicting the rest.

    iterations: probes (T). candidates: drawn an iteration (m), one of which is tried.
    families: of size distributions. draws: "quantiles" (closed form) or "iid" (literal).
    strategies: cycled over the iterations; I "predicted", II "random", III "nearest".
    trainer: how the predictor learns. mutants: the share of the candidates that are drawn
    around the best so far. anchored: equal sizes (in each precision) are tried first and always
    among the finalists, so the result cannot be worse than they are on validation; then, with up
    to four tables, nearly all of the budget for each subset of them, which random shares hardly
    ever reach.
    probe_epochs: of a probe's fine-tuning; None leaves it to the workbench.
    stop_hopeless: lets the workbench end a probe early that cannot reach the best few.
    finalists: trained from scratch at the end, the best on validation wins; 0 skips it.
    """

    iterations: int = 50
    candidates: int = 100
    families: tuple[Family, ...] = EXPLORING_FAMILIES
    draws: Literal["quantiles", "iid"] = "quantiles"
    strategies: tuple[Strategy, ...] = PAPER_STRATEGIES
    trainer: Trainer = field(default_factory=FullBatch)
    mutants: float = 0.5
    anchored: bool = True
    probe_epochs: int | None = None
    stop_hopeless: bool = False
    finalists: int = 5

    def __post_init__(self) -> None:
        if self.iterations < 1 or self.candidates < 1 or self.finalists < 0:
            raise ValueError(
                "BET needs iterations >= 1, candidates >= 1 and finalists >= 0, got "
                f"{self.iterations}, {self.candidates} and {self.finalists}."
            )
        if not 0 <= self.mutants <= 1:
            raise ValueError(f"mutants is a share between 0 and 1, got {self.mutants}.")
        if not self.families or not self.strategies:
            raise ValueError("BET needs at least one family and one strategy.")
        if self.anchored and "flat" not in [f.name for f in self.families]:
            raise ValueError("anchored=True tries equal sizes: add Flat() to families.")

    @classmethod
    def paper(cls, **changes: object) -> BET:
        """The published settings: four families, single-sample updates, no anchor, no mutants."""
        settings: dict[str, object] = {
            "families": PAPER_FAMILIES,
            "trainer": SingleSamples(),
            "mutants": 0.0,
            "anchored": False,
        }
        return cls(**{**settings, **changes})  # type: ignore[arg-type]

    def __call__(self, problem: SizingProblem) -> SizePlan:
        """Search, and return the best plan found.

        Raises:
            InfeasibleBudgetError: no plan fits the budget.
            MissingEvaluationError: the problem brings nothing to evaluate a plan with.
        """
        return Search(self, problem).run()


class Search:
    """One run of BET on one problem."""

    def __init__(self, settings: BET, problem: SizingProblem) -> None:
        problem.require_evaluation("BET")
        self.settings, self.problem = settings, problem
        self._precisions = _affordable(problem)
        self.space = problem.fit_space(precisions=self._precisions)
        self.sampler = Sampler(self.space, problem.counts, settings.families, settings.draws)
        self._families = [f.name for f in settings.families]
        path = None if problem.run_dir is None else problem.run_dir / "history.jsonl"
        self.history = History.open(path, self._header(), resume=problem.resume)

    def run(self) -> SizePlan:
        done = len(self.history.probes)
        total = self.settings.iterations
        bar = tqdm(total=total, initial=done, desc="search", disable=not self.problem.progress)
        with bar:
            for t in range(done, total):
                self.step(t)
                best = self.history.best()[0]
                bar.set_postfix(best=f"{best.fitness:.4f}", at=best.iteration)
                bar.update()
        return self._finish()

    def step(self, t: int) -> Probe:
        """Iteration t: choose a candidate, try it, remember it. Depends on seed, t and history."""
        rng = np.random.default_rng([self.problem.seed, t])
        chosen, strategy, predicted = self._choose(t, rng)
        plan = self._plan(chosen.boundaries[0], chosen.precision[0].tolist())
        start = time.perf_counter()
        fitness = self._try(plan)
        probe = Probe(
            iteration=t,
            strategy=strategy,
            fitness=fitness,
            predicted=predicted,
            seconds=round(time.perf_counter() - start, 3),
            families=[self._families[i] for i in chosen.family[0]],
            beta=chosen.beta[0].tolist(),
            shares=chosen.shares[0].tolist(),
            precisions=[self._precisions[i] for i in chosen.precision[0]],
            buckets=to_buckets(chosen.boundaries[0], self.space.widths),
        )
        self.history.add(probe)
        return probe

    def _choose(self, t: int, rng: np.random.Generator) -> tuple[Candidates, str, float | None]:
        if self.settings.anchored and (anchor := self._anchor(t)):
            return *anchor, None
        candidates = self._draw(rng)
        strategy = self.settings.strategies[t % len(self.settings.strategies)]
        if strategy == "random" or not self.history.probes:
            return candidates[[int(rng.integers(len(candidates)))]], "random", None
        predictor = self._trained_predictor()
        with torch.no_grad():
            predicted = predictor(candidates)
            if strategy == "predicted":
                best = int(predicted.argmax())
            else:
                target = predictor.embed(self._tried(self.history.best()))
                best = int((predictor.embed(candidates) - target).norm(dim=-1).argmin())
        return candidates[[best]], strategy, float(predicted[best])

    def _anchor(self, t: int) -> tuple[Candidates, str] | None:
        """Equal sizes in each precision; then, with few tables, among each subset of them."""
        equal, tables = len(self._precisions), len(self.problem.tables)
        if t < equal:
            return self.sampler.equal(t), "anchor"
        if tables > FEW_TABLES:
            return None
        subsets = [s for size in range(1, tables) for s in combinations(range(tables), size)]
        if t - equal >= len(subsets):
            return None
        best = max(self.history.probes[:equal], key=lambda p: p.fitness)
        precision = self._precisions.index(best.precisions[0])
        return self.sampler.among(subsets[t - equal], precision), "subset"

    def _draw(self, rng: np.random.Generator) -> Candidates:
        m = self.settings.candidates
        mutants = int(m * self.settings.mutants) if len(self.history.probes) >= 5 else 0
        parts = [self.sampler(m - mutants, rng)] if mutants < m else []
        if mutants:
            parts.append(self.sampler.around(self._tried(self.history.best(5)), mutants, rng))
        return concatenate(parts)

    def _trained_predictor(self) -> FitnessPredictor:
        probes = self.history.probes
        fitness = [p.fitness for p in probes]
        return self.settings.trainer(
            self._new_predictor, self._tried(probes), fitness, self.problem.seed
        )

    def _new_predictor(self, generator: torch.Generator) -> FitnessPredictor:
        trainer = self.settings.trainer
        return FitnessPredictor(
            self.problem.counts,
            self.space.widths,
            d_max=max(t.embedding_dim for t in self.problem.tables),
            bits=[BITS[precision] for precision in self._precisions],
            set_shares=trainer.set_shares,
            final_activation=trainer.final_activation,
            generator=generator,
        )

    def _tried(self, probes: Sequence[Probe]) -> Candidates:
        return to_candidates(list(probes), self.space.widths, self._families, self._precisions)

    def _try(self, plan: SizePlan) -> float:
        problem, best = self.problem, self.history.best(max(self.settings.finalists, 1))
        floor = best[-1].fitness if self.settings.stop_hopeless and len(best) > 1 else None
        return problem.fitness(plan, epochs=self.settings.probe_epochs, floor=floor)

    def _finish(self) -> SizePlan:
        """Selective retraining (Eq. 14), on validation; without a workbench the fittest wins."""
        finalists = self.history.best(self.settings.finalists)
        anchors = [p for p in self.history.best(len(self.history.probes)) if p.strategy == "anchor"]
        finalists += [p for p in anchors[:1] if p not in finalists]
        if self.problem.workbench is None or self.settings.finalists == 0:
            best = self.history.best()[0]
            return self._probe_plan(best, fitness=f"{best.fitness:.6g}")
        bar = tqdm(finalists, desc="retraining", disable=not self.problem.progress)
        for probe in bar:
            if probe.iteration not in self.history.retrained:
                quality = self.problem.workbench.train(self._probe_plan(probe))
                self.history.add_retrained(probe.iteration, quality)
        retrained = self.history.retrained
        best = max(finalists, key=lambda p: retrained[p.iteration])
        return self._probe_plan(
            best,
            fitness=f"{best.fitness:.6g}",
            validation_quality=f"{retrained[best.iteration]:.6g}",
        )

    def _probe_plan(self, probe: Probe, **metadata: str) -> SizePlan:
        precision = [self._precisions.index(p) for p in probe.precisions]
        metadata["iteration"] = str(probe.iteration)
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

    def _header(self) -> dict[str, object]:
        """What must be the same for a search to be the same search, iterations aside."""
        settings = {k: repr(v) for k, v in vars(self.settings).items() if k != "iterations"}
        return {
            "problem": self.problem.fingerprint(),
            "seed": self.problem.seed,
            "settings": settings,
        }


def _affordable(problem: SizingProblem) -> list[str]:
    """The precisions in which every row at its smallest width is within the budget."""
    space, tables = problem.space, len(problem.tables)
    each = torch.arange(len(space.costs))[:, None].expand(-1, tables)
    fits = (minimum_cost(space, each) <= space.limit).tolist()
    return [p for p, ok in zip(problem.precisions, fits, strict=True) if ok]
