"""Which probe ranks plans as full training does? Rank correlations over random plans, click models.

    python benchmarks/probe_recipes.py --data frappe --dim 16 --run-dir runs/probe_recipes

--plans random plans of one budget (BET's own candidates, anchors among them) are trained fully,
from scratch and from the full tables' rows, the better on validation counting as the truth; then
each is tried by every probe. Printed: Spearman's rank correlation of a probe's quality with the
truth over all plans and among the better half, the truth that its favourite has, and seconds.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from common import parser, save, setup, show
from scipy.stats import spearmanr

from bet_torchrec import BET, BudgetPlanner, SizePlan, TrainingWorkbench
from bet_torchrec.comparison import Cell, Share
from bet_torchrec.comparison.run import Settings
from bet_torchrec.comparison.tasks import make_entry
from bet_torchrec.planning.sizers.bet.search import Search

Probe = Callable[[SizePlan], float]


def main() -> None:
    p = parser(__doc__)
    p.add_argument("--data", default="movielens-1m-clicks")
    p.add_argument("--data-dir", type=Path)
    p.add_argument("--model", default="fm")
    p.add_argument("--dim", type=int, default=64)
    p.add_argument("--budget", default="1/64")
    p.add_argument("--plans", type=int, default=20)
    p.add_argument("--run-dir", type=Path, required=True)
    args = p.parse_args()
    setup(args)
    cell = Cell(
        data=args.data,
        model=args.model,
        dim=args.dim,
        budget=args.budget,
        method="full",
        seed=args.seed,
    )
    entry = make_entry(cell, args.data_dir)
    bench = TrainingWorkbench(
        entry.task,
        training=entry.training,
        fine_tuning=entry.fine_tuning,
        run_dir=args.run_dir,
        seed=args.seed,
    )
    plans = drawn(bench, args)
    truth = [max(bench.train(plan, start=s).quality for s in ("scratch", "full")) for plan in plans]
    better = np.argsort(truth)[len(truth) // 2 :]
    rows, result = [], {"truth": truth, "probes": {}}
    for name, probe in probes(bench).items():
        began = time.perf_counter()
        found = [probe(plan) for plan in plans]
        seconds = (time.perf_counter() - began) / len(plans)
        over_all = float(spearmanr(found, truth).statistic)
        among = float(spearmanr(np.take(found, better), np.take(truth, better)).statistic)
        favourite = truth[int(np.argmax(found))]
        rows.append([name, f"{over_all:.2f}", f"{among:.2f}", f"{favourite:.4f}", f"{seconds:.1f}"])
        result["probes"][name] = {
            "qualities": found,
            "spearman": over_all,
            "spearman_better_half": among,
            "truth_of_favourite": favourite,
            "seconds": seconds,
        }
    show(
        f"{args.model} on {args.data}, {args.budget}, {len(plans)} plans; "
        f"truth {min(truth):.4f} to {max(truth):.4f}",
        ["probe", "correlation", "better half", "its favourite's truth", "s"],
        rows,
    )
    save(args, result, entry.data)


def drawn(bench: TrainingWorkbench, args: object) -> list[SizePlan]:
    """Plans as a search would try them, without learning from any."""
    settings = Settings()
    budget = Share(args.budget).budget(bench.tables, settings.dtypes)
    widths = tuple(width for width in settings.widths if width <= args.dim)
    sizer = BET(iterations=args.plans, finalists=0, strategies=("random",), tolerance=None)
    planner = BudgetPlanner(budget=budget, widths=widths, sizer=sizer, seed=args.seed)
    problem = planner.problem(bench.tables, bench.counts(), lambda plan: 0.0)
    search = Search(sizer, problem)
    search.run()
    return search.fittest(args.plans)


def probes(bench: TrainingWorkbench) -> dict[str, Probe]:
    found: dict[str, Probe] = {}
    for start in ("prefix", "rotated"):
        own = TrainingWorkbench(
            bench.task,
            training=bench.training,
            fine_tuning=bench.fine_tuning,
            warm_start=start,
            run_dir=bench.run_dir,
            seed=bench.seed,
        )
        for epochs in (0, 1, 2):
            name = f"{start}, {epochs} epochs" if epochs else f"{start}, bare"
            found[name] = lambda plan, own=own, epochs=epochs: (
                own.fine_tune(plan, epochs=epochs).quality
            )
    for epochs in (1, 2):
        settings = dataclasses.replace(bench.fine_tuning, max_epochs=epochs)
        found[f"from scratch, {epochs} epochs"] = lambda plan, settings=settings: (
            bench.fit(bench.build(plan), settings=settings).quality
        )
    return found


if __name__ == "__main__":
    main()
