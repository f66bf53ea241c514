"""Does predicting pay? Searches with and without a predictor, at equal probes, on made-up tasks.

    python benchmarks/search_value.py --probes 40 --out benchmarks/results/search_value_9.json

A task is drawn a seed: tables of 3 to a million rows with power-law counts, the smaller half
looked up as often as the rest; every table has its own importance and its own number of useful
dimensions, rows that are seldom seen overfit when they are wide, half of the tables tell partly
the same as another, fewer bits cost a little, and every probe has noise. That is what is known to
matter in click models, not a click model. All searches try the same anchors first. The figure is
the true quality of the plan with the best (noisy) probe, in thousandths above equal sizes, mean
over the seeds; in brackets in how many of the seeds it is above the same search at random.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

import numpy as np
import torch
from common import parser, save, setup, show
from numpy.typing import NDArray

from bet_torchrec.planning import BET, Budget, EqualSizes, RowCounts, SizePlan, TableSpec
from bet_torchrec.planning.sizers import SizingProblem
from bet_torchrec.planning.sizers.bet import Dirichlet, FullBatch, GaussianProcess
from bet_torchrec.planning.sizers.bet.search import Search
from bet_torchrec.planning.sizers.bet.settings import PAPER_STRATEGIES

WIDTHS = (0, 1, 2, 4, 8, 16, 32)
NOISE = 3e-4
COST_OF_BITS = {"int8": 0.001, "int4": 0.01}
DEEP, GP = FullBatch(), GaussianProcess()
SEARCHES: Mapping[str, BET] = {
    "random": BET(strategies=("random",), mutants=0.0),
    "random, shares ~ Dirichlet(1)": BET(strategies=("random",), mutants=0.0, shares=Dirichlet()),
    "local mutation": BET(strategies=("local",)),
    "deep set, paper's turns": BET(trainer=DEEP, strategies=PAPER_STRATEGIES),
    "process, paper's turns": BET(trainer=GP, strategies=PAPER_STRATEGIES),
    "process, expectation": BET(trainer=GP, optimism=0.0),
    "process, optimism 1": BET(trainer=GP),
    "process, optimism 2": BET(trainer=GP, optimism=2.0),
    "process, no shapes alike": BET(trainer=GP, alike=0.0),
    "process, 80 % mutants": BET(trainer=GP, mutants=0.8),
    "process and local in turns": BET(trainer=GP, strategies=("predicted", "local")),
}


class Landscape:
    """A task's quality as a function of the plan. Made from a seed."""

    def __init__(self, tables: int, seed: int) -> None:
        rng = np.random.default_rng([seed, 5])
        rows = np.geomspace(3, 1e6, tables).astype(int)
        self.specs = [TableSpec(f"t{i}", int(n), 32) for i, n in enumerate(rows)]
        self.counts = [_power_law(int(n), 2_000_000, rng) for n in rows]
        self._upto = [_lookups_upto(counts) for counts in self.counts]
        self.importance = rng.lognormal(0.0, 1.0, tables)
        self.importance *= 0.1 / self.importance.sum()
        self.useful = np.exp(rng.uniform(np.log(1.0), np.log(10.0), tables))
        self.overfits = rng.uniform(0.0, 0.5, tables)
        self.twin = rng.permutation(tables)
        self.shared = np.where(rng.random(tables) < 0.5, rng.uniform(0.2, 0.8, tables), 0.0)
        self._noise = np.random.default_rng([seed, 6])

    def quality(self, plan: SizePlan) -> float:
        """Without noise."""
        gains = np.array([self._gain(t, plan) for t in range(len(self.specs))])
        # of what two tables both tell, only the better one's part counts
        lost = (
            self.shared * np.minimum(gains, gains[self.twin]) * (self.twin != np.arange(len(gains)))
        )
        return 0.78 + float(self.importance @ (gains - 0.5 * lost))

    def noisy(self, plan: SizePlan) -> float:
        return self.quality(plan) + NOISE * float(self._noise.standard_normal())

    def _gain(self, t: int, plan: SizePlan) -> float:
        counts, ends = self.counts[t], plan.tables[t].ends
        gain, before = 0.0, 0
        for bucket, end in zip(plan.tables[t].buckets, ends.tolist(), strict=True):
            at = np.interp([before, end], *self._upto[t])
            lookups, before = float(at[1] - at[0]) / max(counts.total, 1), end
            if bucket.width:
                kept = 1 - np.exp(-bucket.width / self.useful[t])
                seen = lookups * counts.total / bucket.rows  # examples a row
                kept -= self.overfits[t] * bucket.width / 32 / (1 + seen / 5)
                gain += lookups * kept * (1 - COST_OF_BITS[bucket.precision])
        return gain


def _power_law(rows: int, total: int, rng: np.random.Generator) -> RowCounts:
    weight = np.arange(1, rows + 1, dtype=float) ** -rng.uniform(0.6, 1.2)
    return RowCounts.from_rows(np.sort((total * weight / weight.sum()).astype(np.int64))[::-1])


def _lookups_upto(counts: RowCounts) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    lookups = np.cumsum(counts.values * counts.multiplicity)
    return np.concatenate([[0], counts.ends]), np.concatenate([[0], lookups])


def search(
    settings: BET, landscape: Landscape, budget: Budget, seed: int, probes: int
) -> tuple[NDArray[np.float64], float, float]:
    """True quality of the best so far after each probe; rho of the predictions; CPU a probe."""
    quality = []

    def evaluate(plan: SizePlan) -> float:
        quality.append(landscape.quality(plan))
        return landscape.noisy(plan)

    problem = SizingProblem(
        tables=landscape.specs,
        counts=landscape.counts,
        budget=budget,
        widths=WIDTHS,
        seed=seed,
        evaluate=evaluate,
    )
    start, run = time.process_time(), Search(settings, problem)
    for t in range(probes):
        run.step(t)
    seconds = (time.process_time() - start) / probes
    fitness = np.array(run.history.fitness())
    best = [quality[int(fitness[: n + 1].argmax())] for n in range(probes)]
    asked = [(p.predicted, p.fitness) for p in run.history.probes if p.predicted is not None]
    rho = _spearman(np.array(asked)) if len(asked) > 2 else float("nan")
    return np.array(best), rho, seconds


def _spearman(pairs: NDArray[np.float64]) -> float:
    ranks = pairs.argsort(0).argsort(0)
    return float(np.corrcoef(ranks.T)[0, 1])


def main() -> None:
    p = parser(__doc__)
    p.add_argument("--tables", type=int, default=9)
    p.add_argument("--seeds", type=int, default=10)
    p.add_argument("--probes", type=int, default=50)
    p.add_argument("--bytes-a-row", type=float, default=6.0)
    p.add_argument("--only", nargs="*", default=None, help="names of searches")
    args = p.parse_args()
    setup(args)
    names = [name for name in SEARCHES if not args.only or name in args.only]
    marks = [n for n in (10, 20, 30, 50, 100) if n <= args.probes]
    gains: dict[str, list[list[float]]] = {name: [] for name in names}
    rhos: dict[str, list[float]] = {name: [] for name in names}
    cpu: dict[str, list[float]] = {name: [] for name in names}
    for seed in range(args.seed, args.seed + args.seeds):
        landscape = Landscape(args.tables, seed)
        rows = sum(spec.num_embeddings for spec in landscape.specs)
        budget = Budget.bytes(
            int(args.bytes_a_row * rows), purpose="inference", dtype=("int8", "int4"), alignment=1
        )
        equal = _equal(landscape, budget)
        for name in names:
            best, rho, seconds = search(SEARCHES[name], landscape, budget, seed, args.probes)
            gains[name].append([1e3 * float(best[n - 1] - equal) for n in marks])
            rhos[name].append(rho)
            cpu[name].append(seconds)
    base = np.array(gains.get("random", next(iter(gains.values()))))
    result = {
        name: {
            "gain": dict(
                zip(map(str, marks), np.mean(gains[name], 0).round(3).tolist(), strict=True)
            ),
            "wins": dict(
                zip(map(str, marks), (np.array(gains[name]) > base).sum(0).tolist(), strict=True)
            ),
            "each": gains[name],
            "rho": float(np.nanmean(rhos[name])) if not np.isnan(rhos[name]).all() else None,
            "cpu_seconds_a_probe": float(np.mean(cpu[name])),
        }
        for name in names
    }
    show(
        f"Quality above equal sizes, thousandths, {args.tables} tables, {args.seeds} seeds",
        ["search", *(f"{n} probes" for n in marks), "rho", "CPU s a probe"],
        [
            [
                name,
                *(f"{r['gain'][str(n)]:.2f} ({r['wins'][str(n)]})" for n in marks),
                "" if r["rho"] is None else f"{r['rho']:.2f}",
                f"{r['cpu_seconds_a_probe']:.2f}",
            ]
            for name, r in result.items()
        ],
    )
    save(args, result)


def _equal(landscape: Landscape, budget: Budget) -> float:
    """The better of equal sizes in each precision."""
    problem = SizingProblem(
        tables=landscape.specs, counts=landscape.counts, budget=budget, widths=WIDTHS
    )
    plans = [EqualSizes(precision=precision)(problem) for precision in budget.dtypes]
    return max(landscape.quality(plan) for plan in plans)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
