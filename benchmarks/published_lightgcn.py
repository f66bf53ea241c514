"""LightGCN on its original split with the published settings: is the backbone right?

    python benchmarks/published_lightgcn.py --epochs 5 --out benchmarks/results/published.json

d 64, 3 layers, Adam 1e-3, L2 1e-4, batches of 2,048 shuffled pairs, N(0, 0.1); training items
masked, Recall@20 on the test part. The public run has about .107 on Gowalla after 5 epochs, and
.1830 / .1554 (Recall / NDCG@20) after 1,000; Yelp2018 .0649 / .0530.
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import numpy as np
import torch
from common import parser, save, setup, show

from bet_torchrec.data import load, published_split
from bet_torchrec.evaluation import evaluate
from bet_torchrec.tasks import RankingTask
from bet_torchrec.training import SizedEmbedding, fit, published_lightgcn


def main() -> None:
    p = parser(__doc__)
    p.add_argument("--data", default="gowalla", choices=("gowalla", "yelp2018"))
    p.add_argument("--data-dir", type=Path, default=None)
    p.add_argument("--epochs", type=int, default=5)
    p.add_argument("--every", type=int, default=1, help="epochs between evaluations")
    p.add_argument("--device", default="cpu")
    args = p.parse_args()
    setup(args)
    split = published_split(load(args.data, data_dir=args.data_dir))
    recipe = published_lightgcn()
    task = RankingTask(split, embedding_dim=64, bpr=recipe.bpr, device=args.device)
    backbone = task.new_model(args.seed)
    sizes = {name: np.full(rows, 64) for name, rows in backbone.table_rows.items()}
    embedding = SizedEmbedding(sizes)
    embedding.draw(0.1, torch.Generator().manual_seed(args.seed)).to(args.device)
    steps = task.steps_per_epoch
    settings = dataclasses.replace(
        recipe.training,
        max_epochs=args.epochs,
        validate_every=steps * args.every,
        patience=10**6,
    )
    found: list[dict[str, float]] = []
    began = time.perf_counter()

    def measure() -> float:
        metrics = evaluate(backbone.scores(embedding), split, on="test", mask="train").mean()
        epoch = min(args.epochs, (len(found) + 1) * args.every)
        found.append({"epoch": epoch, "seconds": time.perf_counter() - began, **metrics})
        return metrics["recall@20"]

    fit(task, backbone, embedding, settings, seed=args.seed, validate=measure, progress=True)
    show(
        f"LightGCN, {args.data}, original split, {steps} steps an epoch",
        ("epoch", "recall@20", "ndcg@20", "seconds"),
        [
            (r["epoch"], f"{r['recall@20']:.4f}", f"{r['ndcg@20']:.4f}", f"{r['seconds']:.0f}")
            for r in found
        ],
    )
    data = {"name": args.data, "fingerprint": split.train.fingerprint()}
    save(args, found, data)


if __name__ == "__main__":
    main()
