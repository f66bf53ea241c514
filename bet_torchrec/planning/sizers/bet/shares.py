"""How the budget is split among tables: drawn anew, or moved between a few of them.

With two tables any split is near a uniform one. With 26 tables of 3 to 10^7 rows a uniform one is
never any good, so there shares start from what is known.

Legend: m draws, F tables.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[np.float64]

MOVES = 3  # at most, in a mutation
NOTHING = 1e-9  # a share that leaves a table at its smallest width


class Shares(Protocol):
    """Draws tables' shares of the budget."""

    def __call__(self, m: int, rows: Array, lookups: Array, rng: np.random.Generator) -> Array:
        """(m, F) shares, each row sums to 1, for tables of these rows and lookups, (F,) each."""


@dataclass(frozen=True)
class Dirichlet:
    """The paper's: all splits alike, w ~ U(0, 1) with two tables, whatever they hold."""

    def __call__(self, m: int, rows: Array, lookups: Array, rng: np.random.Generator) -> Array:
        return rng.dirichlet(np.ones(len(rows)), size=m)


@dataclass(frozen=True, kw_only=True)
class Informed:
    """Around lookups^a * rows^(1 - a), a ~ U(0, 1) a candidate, now near and now far.

    spread: the widest standard deviation of the log-normal noise; a candidate's own is
        log-uniform from a fortieth of that. leave_out: how many tables get nothing, on average.
    sensitivity: optionally one positive number a table, in the tables' order: what is known of
        how much a table's weights matter. Half of the candidates are drawn around its multiple.
    """

    spread: float = 2.0
    leave_out: float = 0.5
    sensitivity: Sequence[float] | None = None

    def __call__(self, m: int, rows: Array, lookups: Array, rng: np.random.Generator) -> Array:
        tables = len(rows)
        a = rng.random((m, 1))
        log = a * np.log(lookups + 1.0) + (1 - a) * np.log(rows)
        if self.sensitivity is not None:
            known = np.log(np.asarray(self.sensitivity, dtype=np.float64))
            log = log + np.where(rng.random((m, 1)) < 0.5, known, 0.0)
        sigma = self.spread * np.exp(rng.uniform(np.log(1 / 40), 0.0, (m, 1)))
        log = log + sigma * rng.standard_normal((m, tables))
        shares = np.exp(log - log.max(-1, keepdims=True))
        out = rng.random((m, tables)) < min(self.leave_out / tables, 0.5)
        out[out.all(-1)] = False
        shares[out] = 0.0
        shares = (shares / shares.sum(-1, keepdims=True)).clip(min=NOTHING)
        return np.asarray(shares / shares.sum(-1, keepdims=True))


def move_mass(shares: Array, room: NDArray[np.bool_], rng: np.random.Generator) -> Array:
    """Shares (m, F) with some of one table's moved to another, one to three times.

    What is taken is all of it one time in five. room: (m, F) whether a table can use any more;
    nothing moves to one that cannot.
    """
    m, tables = shares.shape
    moved = shares.copy()
    if tables == 1:
        return moved
    line, moves = np.arange(m), rng.integers(1, MOVES + 1, m)
    for i in range(MOVES):
        # a table that has more gives more often; Gumbel's trick draws one a line
        giver = (0.5 * np.log(moved + NOTHING) + rng.gumbel(size=moved.shape)).argmax(-1)
        taker = np.where(room, rng.gumbel(size=moved.shape), -np.inf)
        taker[line, giver] = -np.inf
        to = taker.argmax(-1)
        part = np.where(rng.random(m) < 0.2, 1 - NOTHING, rng.uniform(0.0, 0.7, m))
        some = np.where((i < moves) & np.isfinite(taker.max(-1)), part, 0.0) * moved[line, giver]
        moved[line, giver] -= some
        moved[line, to] += some
    return np.asarray(moved.clip(min=NOTHING))
