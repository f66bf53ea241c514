"""Does the predictor earn its place? Rank correlation with true fitness, and against random search.

    python benchmarks/predictor.py --run-dir runs/predictor --probes 60

Tries --probes random candidates (LightGCN, Gowalla, 95 % sparsity), then, over many random
divisions of them into a history and held-out candidates, trains the predictor on the history as
the paper does and by default, and correlates its predictions with the held-out candidates' true
fitness (Spearman). With --against, the best fitness after as many probes of that search's history.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from common import parser, ranked_split, save, setup, show
from scipy.stats import spearmanr

from bet_torchrec import BET, Budget, BudgetPlanner
from bet_torchrec.planning import RowCounts
from bet_torchrec.planning.sizers.bet import (
    EXPLORING_FAMILIES,
    Candidates,
    FullBatch,
    GaussianProcess,
    Probe,
    Scene,
    SingleSamples,
)
from bet_torchrec.planning.sizers.bet.history import to_candidates
from bet_torchrec.planning.sizers.bet.training import Trainer
from bet_torchrec.tasks import RankingTask
from bet_torchrec.training import TrainingWorkbench, fast

WIDTHS = tuple(range(129))
TRAINERS: dict[str, Trainer] = {
    "paper: 2 single-sample updates an iteration": SingleSamples(),
    "full batch, 50 steps": FullBatch(steps=50),
    "full batch, 200 steps": FullBatch(),
    "full batch, 200 steps, without set shares": FullBatch(set_shares=False),
    "Gaussian process (default)": GaussianProcess(),
}


def read(path: Path) -> list[Probe]:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [Probe(**{k: v for k, v in x.items() if k not in ("kind", "crc32")}) for x in lines
            if x["kind"] == "probe"]  # fmt: skip


def correlations(
    trainer: Trainer,
    counts: Sequence[RowCounts],
    candidates: Candidates,
    fitness: np.ndarray,
    sizes: Sequence[int],
    repeats: int,
) -> dict[int, tuple[float, float]]:
    """For each size of history: mean and deviation of Spearman's rho on the rest."""

    scene = Scene(counts=counts, widths=torch.tensor(WIDTHS), d_max=128)
    found = {}
    for size in sizes:
        rhos = []
        for seed in range(repeats):
            order = np.random.default_rng(seed).permutation(len(fitness))
            seen, held = order[:size], order[size:]
            predictor = trainer(scene, candidates[seen], fitness[seen].tolist(), seed)
            with torch.no_grad():
                predicted = predictor(candidates[held]).numpy()
            rho = spearmanr(predicted, fitness[held]).statistic
            rhos.append(0.0 if np.isnan(rho) else rho)
        found[size] = (float(np.mean(rhos)), float(np.std(rhos)))
    return found


def main() -> None:
    p = parser(__doc__)
    p.add_argument("--data-dir", type=Path)
    p.add_argument("--run-dir", type=Path, required=True)
    p.add_argument("--probes", type=int, default=60)
    p.add_argument("--repeats", type=int, default=10)
    p.add_argument("--against", type=Path, help="history.jsonl of a search on the same problem")
    args = p.parse_args()
    setup(args)
    split = ranked_split("gowalla", args.seed, args.data_dir)
    workbench = TrainingWorkbench(
        RankingTask(split, bpr=fast().bpr),
        training=fast().training,
        fine_tuning=fast().fine_tuning,
        run_dir=args.run_dir,
        seed=args.seed,
        progress=True,
    )
    sizer = BET(
        iterations=args.probes, strategies=("random",), mutants=0.0, anchored=False, finalists=0
    )
    planner = BudgetPlanner(
        budget=Budget.sparsity(0.95), widths=WIDTHS, sizer=sizer, seed=args.seed
    )
    where = args.run_dir / "random"
    folder = {"resume": where} if (where / "history.jsonl").exists() else {"run_dir": where}
    planner.plan(workbench.tables, workbench.counts(), workbench=workbench, **folder)
    probes = read(where / "history.jsonl")
    fitness = np.array([probe.fitness for probe in probes])
    counts = list(workbench.counts().values())
    names = [f.name for f in EXPLORING_FAMILIES]
    candidates = to_candidates(probes, torch.tensor(WIDTHS), names, ["fp32"])
    sizes = [n for n in (10, 20, 40) if n < len(probes) - 5]
    result = {
        name: correlations(trainer, counts, candidates, fitness, sizes, args.repeats)
        for name, trainer in TRAINERS.items()
    }
    show(
        f"Spearman's rho on held-out candidates, {len(probes)} probes, {args.repeats} divisions",
        ["training", *(f"history of {n}" for n in sizes)],
        [[k, *(f"{v[n][0]:.2f} ± {v[n][1]:.2f}" for n in sizes)] for k, v in result.items()],
    )
    best = {"random": np.maximum.accumulate(fitness).tolist()}
    if args.against:
        best["search"] = np.maximum.accumulate([q.fitness for q in read(args.against)]).tolist()
    marks = [n for n in (5, 10, 20, 30, 50) if all(len(b) >= n for b in best.values())]
    show(
        "Best fitness after so many probes",
        ["selection", *marks],
        [[k, *(f"{b[n - 1]:.4f}" for n in marks)] for k, b in best.items()],
    )
    save(args, {"correlations": result, "fitness": fitness.tolist(), "best": best})


if __name__ == "__main__":
    main()
