"""What a probe costs, and what cheaper ones lose.

    python benchmarks/probes.py --run-dir runs/probes --candidates 8
    python benchmarks/probes.py --run-dir runs/probes --search   # a whole one, T = 50, m = 100

LightGCN on Gowalla at 95 % sparsity, all widths 1 to 128, as in the paper. The same random
candidates are tried with the paper's fine-tuning (10 epochs of 10,000 users) and with cheaper
ones; printed are the seconds a probe (fine-tuning and full-ranking validation), what T = 50 of
them come to, and Spearman's rank correlation with the paper's fitness.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
from common import parser, ranked_split, save, setup, show
from scipy.stats import spearmanr

from bet_torchrec import BET, Budget, BudgetPlanner
from bet_torchrec.data import Split
from bet_torchrec.planning.sizers.bet import PAPER_FAMILIES, Sampler
from bet_torchrec.tasks import RankingTask
from bet_torchrec.training import RankingRecipe, TrainingWorkbench, fast, paper

PRESETS: dict[str, tuple[RankingRecipe, int, str]] = {
    "paper: 10 epochs, 10,000 users a batch": (paper(), 10, "rotated"),
    "the same, prefixes not rotated": (paper(), 10, "prefix"),
    "fast: 6 epochs, 50,000 pairs a batch": (fast(), 6, "rotated"),
    "fast, 3 epochs": (fast(), 3, "rotated"),
    "no fine-tuning": (fast(), 0, "rotated"),
    "no fine-tuning, not rotated": (fast(), 0, "prefix"),
}


def main() -> None:
    p = parser(__doc__)
    p.add_argument("--data-dir", type=Path)
    p.add_argument("--run-dir", type=Path, required=True)
    p.add_argument("--candidates", type=int, default=8)
    p.add_argument("--search", action="store_true", help="time a whole search instead")
    args = p.parse_args()
    setup(args)
    split = ranked_split("gowalla", args.seed, args.data_dir)
    if args.search:
        whole_search(args, split)
        return
    planner = BudgetPlanner(budget=Budget.sparsity(0.95), widths="any", sizer=BET(), seed=args.seed)
    qualities: dict[str, list[float]] = {}
    seconds: dict[str, float] = {}
    for name, (recipe, epochs, warm_start) in PRESETS.items():
        bench = TrainingWorkbench(
            RankingTask(split, bpr=recipe.bpr),
            training=recipe.training,
            fine_tuning=recipe.fine_tuning,
            warm_start=warm_start,
            run_dir=args.run_dir,
            seed=args.seed,
            progress=True,
        )
        bench.full()
        problem = planner.problem(bench.tables, bench.counts())
        rng = np.random.default_rng(args.seed)
        drawn = Sampler(problem.space, problem.counts, PAPER_FAMILIES)(args.candidates, rng)
        plans = [problem.plan(b, ("fp32", "fp32"), "random") for b in drawn.boundaries]
        bench.fine_tune(plans[0], epochs=0)  # the rotation, once a search
        start = time.perf_counter()
        qualities[name] = [bench.fine_tune(plan, epochs=epochs).quality for plan in plans]
        seconds[name] = (time.perf_counter() - start) / len(plans)
    reference = next(iter(qualities.values()))
    rows = [
        [
            name,
            f"{seconds[name]:.1f}",
            f"{50 * seconds[name] / 60:.0f}",
            f"{spearmanr(found, reference).statistic:.2f}",
            f"{np.mean(found):.4f}",
        ]
        for name, found in qualities.items()
    ]
    show(
        f"Probes of {args.candidates} random candidates, LightGCN, Gowalla, 95 %",
        ["probe", "s", "min for T = 50", "rank correlation with the paper's", "mean quality"],
        rows,
    )
    save(args, {"seconds": seconds, "qualities": qualities})


def whole_search(args: argparse.Namespace, split: Split) -> None:
    """T = 50 probes of 10 epochs, each chosen among m = 100 candidates; no retraining."""
    bench = TrainingWorkbench(
        RankingTask(split, bpr=paper().bpr),
        training=fast().training,
        fine_tuning=paper().fine_tuning,
        run_dir=args.run_dir,
        seed=args.seed,
    )
    bench.full()
    sizer = BET(iterations=50, candidates=100, finalists=0)
    planner = BudgetPlanner(budget=Budget.sparsity(0.95), widths="any", sizer=sizer, seed=args.seed)
    start = time.perf_counter()
    plan = planner.plan(bench.tables, bench.counts(), workbench=bench)
    seconds = time.perf_counter() - start
    show(
        "BET, T = 50, m = 100, 10 epochs a probe, LightGCN, Gowalla, 95 %",
        ["minutes", "best fitness", "at iteration"],
        [[f"{seconds / 60:.1f}", plan.metadata["fitness"], plan.metadata["iteration"]]],
    )
    save(args, {"seconds": seconds, "plan": plan.summary()})


if __name__ == "__main__":
    main()
