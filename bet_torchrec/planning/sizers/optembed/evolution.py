"""Evolution over whole numbers: mutants and crossings of the best few, whatever fits."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ....errors import InvalidInputError

Genes = NDArray[np.int64]
TRIES = 50  # of a child that does not fit, before there is one less


@dataclass(frozen=True, kw_only=True)
class Evolution:
    """generations after the first; each keeps the ``parents`` best of all so far, and has so many
    mutations (every gene drawn anew with ``chance``) and crossovers (each gene of either parent).
    population: of the first. OptEmbed's are 30, 10, 10 and 0.1.
    """

    generations: int = 30
    population: int = 20
    parents: int = 10
    mutations: int = 10
    crossovers: int = 10
    chance: float = 0.1

    def __post_init__(self) -> None:
        for name, least in (("generations", 0), ("population", 1), ("parents", 1),
                            ("mutations", 0), ("crossovers", 0)):  # fmt: skip
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise InvalidInputError(f"{name} should be an int from {least} on, got {value!r}")
        if not 0 < self.chance <= 1:
            raise InvalidInputError(f"chance should be above 0 and at most 1, got {self.chance!r}")

    def run(
        self,
        draw: Callable[[np.random.Generator], Genes],
        fits: Callable[[Genes], bool],
        quality: Callable[[Genes], float],
        first: Genes,
        rng: np.random.Generator,
    ) -> tuple[Genes, float]:
        """The best genes and their quality; each is asked for its quality once.

        Args:
            draw: genes of the first generation, and what mutations take genes from.
            fits: whether they may be tried. first: tried before all others, in any case.
        """
        known: dict[tuple[int, ...], float] = {}

        def measured(genes: Genes) -> float:
            found = quality(genes)
            return found if math.isfinite(found) else -math.inf

        def consider(make: Callable[[], Genes]) -> None:
            for _ in range(TRIES):
                child = make()
                key = tuple(child.tolist())
                if key not in known and fits(child):
                    known[key] = measured(child)
                    return

        def best(number: int) -> list[Genes]:
            ranked = sorted(known, key=lambda key: -known[key])  # ties: who came first
            return [np.array(key, dtype=np.int64) for key in ranked[:number]]

        def mutant() -> Genes:
            parent = parents[rng.integers(len(parents))]
            return np.where(rng.random(len(parent)) < self.chance, draw(rng), parent)

        def crossing() -> Genes:
            a, b = (parents[i] for i in rng.integers(len(parents), size=2))
            return np.where(rng.random(len(a)) < 0.5, a, b)

        known[tuple(first.tolist())] = measured(first)
        for _ in range(self.population - 1):
            consider(lambda: draw(rng))
        for _ in range(self.generations):
            parents = best(self.parents)
            for _ in range(self.mutations):
                consider(mutant)
            for _ in range(self.crossovers):
                consider(crossing)
        winner = best(1)[0]
        return winner, known[tuple(winner.tolist())]
