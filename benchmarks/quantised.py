"""What int8, int4, int2 and fp16 rows cost and change: errors, bytes a row, a trained LightGCN.

    python benchmarks/quantised.py --run-dir runs/worth --out benchmarks/results/quantised.json

Reads the plan and the trained models that `benchmarks/worth.py --sparsity 0.95` left in the run
folder (and trains what is missing), builds the TorchRec tables of the full-width model and of the
plan's, quantises them, and ranks by the rows that the quantised modules look up (test set).

Bytes are of the base tables. LightGCN's final rows are dense whatever the base rows' sizes: to
serve, it needs the graph and its propagation beside the compressed table, or a dense cache of them,
whose bytes are reported too.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
from common import parser, ranked_split, save, setup, show
from torchrec import EmbeddingBagConfig, KeyedJaggedTensor

from bet_torchrec import Budget, SizePlan
from bet_torchrec.embeddings import BudgetedEmbeddingBagCollection, quantize
from bet_torchrec.evaluation import evaluate
from bet_torchrec.planning.plan import Bucket, TablePlan
from bet_torchrec.tasks import RankingTask
from bet_torchrec.training import Trained, TrainingWorkbench, fast
from bet_torchrec.training.sized_embedding import TensorTables

PRECISIONS = ("fp32", "fp16", "int8", "int4", "int2")
METRICS = ("recall@20", "ndcg@20")


def served(plan: SizePlan, precision: str, alignment: int) -> SizePlan:
    """The same sizes under an inference budget with room for them."""
    tables = tuple(
        dataclasses.replace(
            table, buckets=tuple(dataclasses.replace(b, precision=precision) for b in table.buckets)
        )
        for table in plan.tables
    )
    budget = Budget.bytes(1 << 40, purpose="inference", dtype=precision, alignment=alignment)
    return SizePlan(tables, budget, plan.sizer)


def looked_up(module: torch.nn.Module, rows: dict[str, int]) -> dict[str, torch.Tensor]:
    """All rows, as lookups read them."""
    features = KeyedJaggedTensor(
        keys=list(rows),
        values=torch.cat([torch.arange(n) for n in rows.values()]),
        lengths=torch.cat([(torch.arange(max(rows.values())) < n).long() for n in rows.values()]),
    )
    with torch.no_grad():
        out = module(features).to_dict()
    return {name: out[name][:n] for name, n in rows.items()}


def measure(name: str, model: Trained, plan: SizePlan, split: Any) -> list[dict[str, Any]]:
    """One record a precision."""
    configs = [
        EmbeddingBagConfig(
            name=t.name,
            num_embeddings=t.rows,
            embedding_dim=t.embedding_dim,
            feature_names=[t.name],
        )
        for t in plan.tables
    ]
    module = BudgetedEmbeddingBagCollection(configs, plan)
    module.load_full_tables(model.embedding.full_tables(width=configs[0].embedding_dim))
    rows = {t.name: t.rows for t in plan.tables}
    total = sum(rows.values())
    exact, records = looked_up(module, rows), []
    largest = max(float(table.abs().max()) for table in exact.values())
    for precision in PRECISIONS:
        record: dict[str, Any] = {"model": name, "precision": precision}
        for alignment in (1, 16):
            under = served(plan, precision, alignment)
            quantised = quantize(module, under)
            allocated = sum(quantised.allocated_bytes().values())
            record[f"counted_bytes_alignment_{alignment}"] = under.cost()
            record[f"allocated_bytes_alignment_{alignment}"] = allocated
            record[f"bytes_a_row_alignment_{alignment}"] = allocated / total
        read = looked_up(quantised, rows)
        errors = {n: (read[n] - exact[n]).abs() for n in rows}
        record["max_error"] = max(float(e.max()) for e in errors.values())
        record["mean_error"] = float(sum(e.double().sum() for e in errors.values())) / max(
            1, plan.parameters()
        )
        record["largest_value"] = largest
        metrics = evaluate(model.model.scores(TensorTables(read)), split, on="test").mean()
        record |= {key: metrics[key] for key in METRICS}
        records.append(record)
    for record in records:
        record["recall@20_change"] = record["recall@20"] / records[0]["recall@20"] - 1
    return records


def main() -> None:
    p = parser(__doc__)
    p.add_argument("--data", default="gowalla")
    p.add_argument("--data-dir", type=Path)
    p.add_argument("--run-dir", type=Path, required=True)
    p.add_argument("--plan", default="plan.safetensors", help="in --run-dir")
    args = p.parse_args()
    setup(args)

    split = ranked_split(args.data, args.seed, args.data_dir)
    recipe = fast("lightgcn")
    workbench = TrainingWorkbench(
        RankingTask(split, "lightgcn", bpr=recipe.bpr),
        training=recipe.training,
        fine_tuning=recipe.fine_tuning,
        run_dir=args.run_dir,
        seed=args.seed,
        progress=True,
    )
    plan = SizePlan.load(args.run_dir / args.plan)
    whole = tuple(
        TablePlan(t.name, t.rows, t.embedding_dim, (Bucket(t.embedding_dim, t.rows),))
        for t in plan.tables
    )
    parameters = sum(t.rows * t.embedding_dim for t in plan.tables)
    full = SizePlan(whole, Budget.parameters(parameters), "full")
    few = f"{plan.sizer} plan, {plan.sparsity():.0%} sparse"
    records = measure("full width", workbench.full(), full, split)
    records += measure(few, workbench.train_model(plan, seed=args.seed), plan, split)
    show(
        f"LightGCN on {args.data}: quantised base tables, test set",
        [
            "model", "rows in", "B/row, aligned 1", "aligned 16", "counted = allocated",
            "max error", "R@20", "change",
        ],
        [
            [
                r["model"],
                r["precision"],
                f"{r['bytes_a_row_alignment_1']:.2f}",
                f"{r['bytes_a_row_alignment_16']:.2f}",
                all(r[f"counted_bytes_alignment_{a}"] == r[f"allocated_bytes_alignment_{a}"]
                    for a in (1, 16)),
                f"{r['max_error']:.2g}",
                f"{r['recall@20']:.4f}",
                f"{r['recall@20_change']:+.2%}",
            ]
            for r in records
        ],
    )  # fmt: skip
    dense = parameters * 4
    print(
        f"\nLightGCN's final rows are dense: a cache of them takes {dense} bytes in fp32, always."
    )
    result = {
        "records": records,
        "dense_cache_of_final_rows_bytes": dense,
        "note": "bytes are of the base tables; LightGCN's final rows are dense whatever their "
        "sizes, so serving needs the graph and its propagation too, or the dense cache",
    }
    save(args, result, {"name": args.data, "fingerprint": split.train.fingerprint()})


if __name__ == "__main__":
    main()
