"""What an iteration tries: an anchor that is due, or of what is drawn the most promising."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from ...budget import BITS
from ...fit import minimum_cost
from ..id_maps import spend_unneeded_maps
from ..problem import SizingProblem
from .anchors import Anchors
from .history import History, Probe, to_candidates
from .predictor import Predictor, Scene
from .sampler import Candidates, Sampler, concatenate
from .surrogate import Features

if TYPE_CHECKING:
    from .settings import BET

PARENTS = 5  # the fittest, around which mutants are drawn


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What an iteration tries: one candidate, why, and the fitness that was predicted."""

    candidate: Candidates
    strategy: str
    predicted: float | None = None


class Chooser:
    """Chooses from what the history says: a function of the problem's seed, t and the history."""

    def __init__(self, settings: BET, problem: SizingProblem) -> None:
        self._settings, self._problem = settings, problem
        self.precisions = _affordable(problem)
        self.space = problem.fit_space(precisions=self.precisions)
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
            bits=[BITS[precision] for precision in self.precisions],
        )
        self.families = [f.name for f in settings.families]
        self.anchors = (  # here and not when one is due: it may validate, on all ranks
            Anchors(problem, self.sampler, self.precisions) if settings.anchored else None
        )

    def __call__(self, t: int, history: History) -> Choice | None:
        """Iteration t's. None where all that was drawn has been tried."""
        tried = set(_contents(self.tried(history.probes))) if history.probes else set()

        def new(one: Candidates) -> bool:
            return _contents(one)[0] not in tried

        due = self.anchors.due(t) if self.anchors else None
        anchor = None if due is None else self._anchor([due], history, new)
        left = range(self.anchors.equal, len(self.anchors)) if self.anchors else ()
        return (
            anchor
            or self._drawn(t, history, new)
            or self._anchor(left, history, new)
            or self._best_without_a_table(history, new)
        )

    @property
    def _drops(self) -> bool:
        """Whether a table may be left out; else what is left over is better spent on it."""
        return int(self.space.widths[0]) == 0

    def tried(self, probes: Sequence[Probe]) -> Candidates:
        """Probes as the candidates that they were."""
        return to_candidates(probes, self.space.widths, self.families, self.precisions)

    def codes(self, probes: Sequence[Probe]) -> torch.Tensor:
        """(n, q) where probes lie: those whose codes are near are alike."""
        return Features(self._scene)(self.tried(probes))

    def _anchor(
        self, numbers: Iterable[int], history: History, new: Callable[[Candidates], bool]
    ) -> Choice | None:
        """The first of these anchors that was not tried; equal sizes always."""
        equal = history.equal_sizes()  # in the precision of the best so far
        precision = self.precisions.index(equal.precisions[0]) if equal else 0
        for number in numbers:
            assert self.anchors
            kind = self.anchors.kind(number)
            one = self.anchors.candidate(number, precision)
            # Equal sizes and tables left out are as an engineer would try them.
            if kind not in ("anchor", "subset") or (kind == "subset" and not self._drops):
                one = self._settled(one)
            if kind == "anchor" or new(one):
                return Choice(candidate=one, strategy=kind)
        return None

    def _best_without_a_table(
        self, history: History, new: Callable[[Candidates], bool]
    ) -> Choice | None:
        """The best plan with one more table left out: all that may help where everything fits."""
        if not self.anchors or not self._drops or not history.ok:
            return None
        best = self.tried(history.best())
        for t in range(len(self._problem.tables)):
            boundaries = best.boundaries.clone()
            boundaries[0, t, 1:] = 0
            less = replace(best, boundaries=boundaries)
            if boundaries[..., 1:].any() and new(less):
                return Choice(candidate=less, strategy="subset")
        return None

    def _drawn(self, t: int, history: History, new: Callable[[Candidates], bool]) -> Choice | None:
        rng = np.random.default_rng([self._problem.seed, t])
        strategy = self._settings.strategies[t % len(self._settings.strategies)]
        # of all probes: those that were given up explored too, and there may be many
        if not history.ok or len(history.probes) < self._settings.explored:
            strategy = "random"
        candidates = self._draw(strategy, history, rng)
        predictor: Predictor | None = None
        if strategy in ("random", "local"):
            order = rng.permutation(len(candidates)).tolist()
        else:
            predictor = self._settings.trainer(
                self._scene, self.tried(history.ok), history.fitness(), self._problem.seed
            )
            order = self._most_promising(strategy, predictor, candidates, history)
        # Each with its budget spent to the last byte.
        settled = (self._settled(candidates[[i]]) for i in order)
        taken = next((one for one in settled if new(one)), None)
        if taken is None or predictor is None:
            return None if taken is None else Choice(candidate=taken, strategy=strategy)
        with torch.no_grad():
            predicted = float(predictor(taken)[0])
        return Choice(candidate=taken, strategy=strategy, predicted=predicted)

    @torch.no_grad()
    def _most_promising(
        self, strategy: str, predictor: Predictor, candidates: Candidates, history: History
    ) -> list[int]:
        """Their order."""
        codes = predictor.embed(candidates)
        if strategy == "predicted":
            hope = predictor.fitness(codes) + self._settings.optimism * predictor.spread(codes)
            return [int(i) for i in hope.argsort(descending=True)]
        best = predictor.embed(self.tried(history.best()))
        return [int(i) for i in (codes - best).norm(dim=-1).argsort()]

    def _settled(self, one: Candidates) -> Candidates:
        """One candidate, its budget spent to the last byte, id maps that it doesn't need too."""
        settled = self.sampler.settled(one)
        boundaries = spend_unneeded_maps(
            self._problem, self.space, settled.boundaries[0], settled.precision[0].tolist()
        )
        return replace(settled, boundaries=boundaries[None])

    def _draw(self, strategy: str, history: History, rng: np.random.Generator) -> Candidates:
        """Drawn anew, or around the best few."""
        m, parents = self._settings.candidates, history.best(PARENTS)
        mutants = int(m * self._settings.mutants) if len(parents) == PARENTS else 0
        if strategy == "local":
            mutants = m
        parts = [self.sampler(m - mutants, rng)] if mutants < m else []
        if mutants:
            parts.append(self.sampler.around(self.tried(parents), mutants, rng))
        return concatenate(parts)


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
