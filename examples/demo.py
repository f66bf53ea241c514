"""Plan a recommender's tables at 95 % sparsity, and see whether it was worth it.

    make demo            or            python examples/demo.py --out demo_out

On Gowalla if it is found, else on a synthetic set: pre-trains LightGCN, searches with a short
preset, trains equal sizes and the found plan alike, and writes a table and two pictures.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from pathlib import Path

from bet_torchrec import (
    BET,
    Budget,
    BudgetPlanner,
    EqualSizes,
    Interactions,
    SizePlan,
    generate,
    load,
)
from bet_torchrec.cli.inspect import draw, read_probes
from bet_torchrec.data import DataNotFoundError, random_split
from bet_torchrec.evaluation import Metrics, paired_t_test
from bet_torchrec.tasks import RankingTask
from bet_torchrec.training import ProbeCheck, Trained, TrainingWorkbench, fast

SPARSITY = 0.95
WIDTHS = (0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
# A preset for minutes: the library's fast recipe cut to some 440 steps with a steeper decay, few
# and brief probes, and the fittest wins without retraining finalists.
STEPS, PROBE_STEPS = 440, 33
RECIPE = fast("lightgcn")
SEARCH = BET(iterations=30, candidates=200, finalists=0, stop_hopeless=True)
COLUMNS = ("recall@5", "ndcg@5", "recall@20", "ndcg@20")
NOTES = """seconds: of training, and of the search before it.
bytes: of the tables that are trained. LightGCN serves propagated rows, dense whatever the table's
sizes: serving from these bytes needs the graph and the propagation, or a dense cache."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("demo_out"), help="folder for results")
    parser.add_argument("--data-dir", type=Path, help="default: $BET_TORCHREC_DATA")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    began = time.perf_counter()

    data = find_data(args.data_dir)
    split = random_split(data, ratios=(0.5, 0.25, 0.25), seed=args.seed).by_rank()
    task = RankingTask(split, "lightgcn", bpr=RECIPE.bpr)
    epoch = task.steps_per_epoch
    bench = TrainingWorkbench(
        task,
        training=dataclasses.replace(RECIPE.training, lr_decay=0.6, max_epochs=-(-STEPS // epoch)),
        fine_tuning=dataclasses.replace(RECIPE.fine_tuning, max_epochs=-(-PROBE_STEPS // epoch)),
        check=ProbeCheck(),
        seed=args.seed,
        progress=True,
    )
    print(f"{data.name}: {data.num_users:,} users, {data.num_items:,} items, {len(data):,} pairs")
    say(began, "pre-training LightGCN on full tables, 128 wide")
    full = bench.full()

    say(began, f"searching for sizes at {SPARSITY:.0%} sparsity, {SEARCH.iterations} probes")
    history = args.out / "history.jsonl"
    history.unlink(missing_ok=True)  # each run searches anew
    budget = Budget.sparsity(SPARSITY)
    planner = BudgetPlanner(budget=budget, widths=WIDTHS, sizer=SEARCH, seed=args.seed)
    searching = time.perf_counter()
    plan = planner.plan(bench.tables, bench.counts(), workbench=bench, run_dir=args.out)
    searching = time.perf_counter() - searching
    plan.save(args.out / "plan.safetensors")
    equal = dataclasses.replace(planner, sizer=EqualSizes()).plan(bench.tables, bench.counts())

    say(began, "training equal sizes and the plan found, alike and from scratch")
    models = {"equal sizes": bench.train_model(equal), "BET": bench.train_model(plan)}
    tested = {name: model.evaluate() for name, model in models.items()}
    p = paired_t_test(tested["BET"], tested["equal sizes"], "recall", 20)

    print(f"\n{plan.summary()}\n")
    header = ["", "parameters", "bytes (fp32)", *COLUMNS, "p-value", "seconds"]
    rows = [row("full tables", full, full.evaluate(), None)]
    rows += [row("equal sizes", models["equal sizes"], tested["equal sizes"], equal)]
    rows += [row("BET", models["BET"], tested["BET"], plan, p.p, searching)]
    table = markdown([header, *rows])
    print(table)
    print(f"BET against equal sizes: {p}")
    print(NOTES)
    (args.out / "table.md").write_text(table, encoding="utf-8")
    pictures = draw(plan, read_probes(history), args.out, references={"equal sizes": equal})
    say(began, f"done; {', '.join(str(path) for path in pictures)}")


def find_data(data_dir: Path | None) -> Interactions:
    """Gowalla where it lies on this machine, else something like it in small."""
    try:
        return load("gowalla", data_dir=data_dir, download=False)
    except DataNotFoundError:
        print("Gowalla was not found (set BET_TORCHREC_DATA): using the built-in generator")
        return generate(num_users=8_000, num_items=10_000, interactions=300_000, seed=0)


def row(
    name: str,
    model: Trained,
    metrics: Metrics,
    plan: SizePlan | None,
    p: float | None = None,
    searching: float = 0.0,
) -> list[str]:
    """One line of the table. Bytes: fp32 weights of the tables, unaligned, ids in rank order."""
    weights = model.embedding.num_weights()
    mean = metrics.mean()
    seconds = f"{model.outcome.seconds:.0f}" + (f" + {searching:.0f}" if searching else "")
    return [
        name,
        f"{weights:,}",
        f"{4 * weights:,}",
        *(f"{mean[column]:.4f}" for column in COLUMNS),
        "" if p is None else f"{p:.2g}",
        seconds,
    ]


def markdown(rows: list[list[str]]) -> str:
    wide = [max(len(line[i]) for line in rows) for i in range(len(rows[0]))]
    lines = ["| " + " | ".join(c.rjust(w) for c, w in zip(r, wide, strict=True)) for r in rows]
    lines.insert(1, "|" + "|".join("-" * (w + 1) + ":" for w in wide))
    return "".join(line + " |\n" for line in lines).replace(": |", ":|")


def say(began: float, what: str) -> None:
    print(f"[{time.perf_counter() - began:5.0f} s] {what}", flush=True)


if __name__ == "__main__":
    main()
