"""What a search costs outside its probes: CPU seconds an iteration, 26 tables, 10^8 rows in all.

    python benchmarks/search_cost.py --threads 1 --out benchmarks/results/search_cost.json

Tables of 3 to 10^7 rows as in Criteo (ten of them hold nearly all rows), up to 20,000 distinct
counts each, and a budget of 9 bytes a row in four precisions, or in parameters. A probe answers at
once, so all that is counted is planning: drawing 100 candidates, predicting, handing out the last
bytes, and writing the history. Beside the mean, how many candidates are drawn a second.
"""

from __future__ import annotations

import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from common import parser, save, setup, show

from bet_torchrec.planning import BET, Budget, RowCounts, SizePlan, TableSpec
from bet_torchrec.planning.sizers import SizingProblem
from bet_torchrec.planning.sizers.bet.search import Search

WIDTHS = (0, 1, 2, 4, 8, 16, 32, 64)


def tables() -> tuple[list[TableSpec], list[RowCounts]]:
    """26 tables of 10^8 rows with power-law counts."""
    rows = np.concatenate([np.geomspace(3, 4e5, 16), np.full(10, 0.997e7)]).astype(int)
    specs = [TableSpec(f"field_{i}", int(n), 64) for i, n in enumerate(rows)]
    return specs, [power_law(int(n)) for n in rows]


def power_law(rows: int) -> RowCounts:
    head = np.arange(1, min(rows, 20_000) + 1)
    values = np.maximum(3e7 * head**-1.2, 1).astype(np.int64)
    values, multiplicity = np.unique(values, return_counts=True)
    multiplicity[0] += rows - multiplicity.sum()
    return RowCounts.from_distinct(values, multiplicity)


def main() -> None:
    p = parser(__doc__)
    p.add_argument("--iterations", type=int, default=40)
    args = p.parse_args()
    setup(args)
    specs, counts = tables()
    rows = sum(spec.num_embeddings for spec in specs)
    budgets = {
        "parameters": Budget.parameters(6 * rows),
        "bytes, four precisions": Budget.bytes(
            9 * rows, purpose="inference", dtype=("fp16", "int8", "int4", "int2"), alignment=1
        ),
    }
    result = {}
    for name, budget in budgets.items():
        noise = np.random.default_rng(args.seed)

        def evaluate(plan: SizePlan, noise: np.random.Generator = noise) -> float:
            return 0.7 + 0.01 * float(noise.standard_normal())

        with tempfile.TemporaryDirectory() as folder:
            problem = SizingProblem(
                tables=specs,
                counts=counts,
                budget=budget,
                widths=WIDTHS,
                seed=args.seed,
                evaluate=evaluate,
                run_dir=Path(folder),
            )
            search = Search(BET(iterations=args.iterations), problem)
            seconds, kinds = [], []
            for t in range(args.iterations):
                start = time.process_time()
                kinds.append(search.step(t).strategy)
                seconds.append(time.process_time() - start)
        start, drawn = time.process_time(), 0
        while time.process_time() - start < 1.0:
            search.chooser.sampler(100, np.random.default_rng(drawn))
            drawn += 100
        predicted = [s for s, k in zip(seconds, kinds, strict=True) if k == "predicted"]
        result[name] = {
            "rows": rows,
            "mean_seconds": float(np.mean(seconds)),
            "mean_seconds_with_the_predictor": float(np.mean(predicted)),
            "most_seconds": float(np.max(seconds)),
            "candidates_a_second": drawn / (time.process_time() - start),
        }
    show(
        f"CPU seconds of planning an iteration, {len(specs)} tables, {rows:,} rows",
        ["budget", "mean", "with the predictor", "most", "candidates a second"],
        [
            [
                name,
                f"{r['mean_seconds']:.3f}",
                f"{r['mean_seconds_with_the_predictor']:.3f}",
                f"{r['most_seconds']:.3f}",
                f"{r['candidates_a_second']:,.0f}",
            ]
            for name, r in result.items()
        ],
    )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    save(args, {"budgets": result, "peak_mib": round(peak)})


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
