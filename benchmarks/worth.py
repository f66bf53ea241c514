"""Is it worth it? BET's plan against equal sizes of the same budget, trained alike.

    python benchmarks/worth.py --sparsity 0.95 --seeds 3 --run-dir runs/worth
    python benchmarks/worth.py --bytes-per-row 12.8 --run-dir runs/bytes
    python benchmarks/worth.py --backbone ncf --sparsity 0.95 --seeds 1 --run-dir runs/worth-ncf

Searches once (seed of the search: --seed), trains each plan from scratch with each seed, and
compares the users' Recall@20 on test (training and validation items masked) by a paired t-test.
Under --bytes-per-row the rivals are uniform tables of each precision with the same bytes.
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import numpy as np
from common import parser, ranked_split, save, setup, show

from bet_torchrec import BET, Budget, BudgetPlanner, EqualSizes
from bet_torchrec.evaluation import Metrics, paired_t_test
from bet_torchrec.tasks import RankingTask
from bet_torchrec.training import ProbeCheck, TrainingWorkbench, fast


def parse_widths(text: str) -> tuple[int, ...] | str:
    if "-" in text:
        low, high = text.split("-")
        return tuple(range(int(low), int(high) + 1))
    return text if text == "any" else tuple(int(w) for w in text.split(","))


def main() -> None:
    p = parser(__doc__)
    p.add_argument("--data", default="gowalla")
    p.add_argument("--data-dir", type=Path)
    p.add_argument("--run-dir", type=Path, required=True)
    p.add_argument("--backbone", default="lightgcn")
    p.add_argument("--sparsity", type=float)
    p.add_argument("--bytes-per-row", type=float)
    p.add_argument("--seeds", type=int, default=1)
    p.add_argument("--iterations", type=int, default=50)
    p.add_argument("--finalists", type=int, default=5)
    p.add_argument("--probe-epochs", type=int)
    p.add_argument("--widths", default="0-128", help='"any", a range 0-128 or a list 0,4,8')
    p.add_argument("--paper", action="store_true", help="BET.paper() instead of BET()")
    args = p.parse_args()
    setup(args)

    split = ranked_split(args.data, args.seed, args.data_dir)
    recipe = fast(args.backbone)
    workbench = TrainingWorkbench(
        RankingTask(split, args.backbone, bpr=recipe.bpr),
        training=recipe.training,
        fine_tuning=recipe.fine_tuning,
        check=ProbeCheck(),
        run_dir=args.run_dir,
        seed=args.seed,
        progress=True,
    )
    rows = sum(t.num_embeddings for t in workbench.tables)
    rivals: dict[str, EqualSizes] = {"equal sizes": EqualSizes()}
    if args.sparsity is not None:
        budget = Budget.sparsity(args.sparsity)
    else:
        precisions = ("fp32", "fp16", "int8", "int4", "int2")
        total = int(args.bytes_per_row * rows)
        budget = Budget.bytes(total, purpose="inference", dtype=precisions, alignment=1)
        rivals = {f"uniform {q}": EqualSizes(precision=q) for q in ("int8", "int4", "int2")}
    widths = parse_widths(args.widths)
    settings = {"iterations": args.iterations, "finalists": args.finalists}
    sizer = BET.paper(**settings) if args.paper else BET(**settings, stop_hopeless=True)
    if args.probe_epochs:
        sizer = dataclasses.replace(sizer, probe_epochs=args.probe_epochs)
    counts = workbench.counts()

    start = time.perf_counter()
    workbench.full()
    pretrained = time.perf_counter() - start
    start = time.perf_counter()
    plans = {
        name: BudgetPlanner(budget=budget, widths=widths, sizer=rival, seed=args.seed).plan(
            workbench.tables, counts
        )
        for name, rival in rivals.items()
    }
    where = args.run_dir / "search"
    plans["BET"] = BudgetPlanner(budget=budget, widths=widths, sizer=sizer, seed=args.seed).plan(
        workbench.tables,
        counts,
        workbench=workbench,
        **({"resume": where} if (where / "history.jsonl").exists() else {"run_dir": where}),
    )
    searched = time.perf_counter() - start
    plans["BET"].save(args.run_dir / "plan.safetensors")
    print(plans["BET"].summary())

    table, result = [], {"pretrained_s": pretrained, "searched_s": searched, "plans": {}}
    tested: dict[str, list[Metrics]] = {}
    for name, plan in plans.items():
        start = time.perf_counter()
        models = [workbench.train_model(plan, seed=args.seed + s) for s in range(args.seeds)]
        seconds = time.perf_counter() - start
        tested[name] = [model.evaluate(part="test") for model in models]
        mean = {k: np.mean([m.mean()[k] for m in tested[name]]) for k in tested[name][0].mean()}
        each = [m.mean()["recall@20"] for m in tested[name]]
        result["plans"][name] = {
            "cost": plan.cost(),
            "limit": plan.limit,
            "parameters": plan.parameters(),
            "mean": mean,
            "recall@20": each,
            "validation_quality": [m.quality for m in models],
            "seconds": seconds,
            "summary": plan.summary(),
        }
        metrics = [f"{mean[k]:.4f}" for k in ("recall@5", "ndcg@5", "recall@20", "ndcg@20")]
        table.append([name, plan.parameters(), plan.cost(), *metrics, f"{seconds:.0f}"])
    for i, name in enumerate(list(rivals)):
        pairs = zip(tested["BET"], tested[name], strict=True)
        tests = [paired_t_test(b, e, metric="recall", k=20) for b, e in pairs]
        gain = float(np.mean([t.relative_gain for t in tests]))
        worst = max(t.p for t in tests)
        result["plans"][name]["BET_gain"] = gain
        result["plans"][name]["gains"] = [t.relative_gain for t in tests]
        result["plans"][name]["p"] = [t.p for t in tests]
        table[i] += [f"{gain:+.1%}", f"{worst:.2g}"]
    table[-1] += ["", ""]
    header = ["plan", "parameters", "cost", "R@5", "N@5", "R@20", "N@20", "train s"]
    what = f"sparsity {args.sparsity}" if args.sparsity is not None else budget.describe()
    show(
        f"{args.backbone}, {args.data}, {what}, {args.seeds} seeds; "
        f"pre-training {pretrained:.0f} s, search {searched:.0f} s",
        [*header, "BET's R@20 gain", "largest p"],
        table,
    )
    save(args, result, {"name": args.data, "fingerprint": split.train.fingerprint()})


if __name__ == "__main__":
    main()
