"""From interactions to served bytes: LightGCN on Gowalla, where a full fp32 row takes 256 bytes.

    python examples/gowalla_lightgcn.py                        # a short preset, some minutes
    python examples/gowalla_lightgcn.py --epochs 100 --probes 50 --dim 128

Looks for Gowalla in $BET_TORCHREC_DATA, and uses the built-in generator where it is not there.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import torch
from torchrec import EmbeddingBagConfig

from bet_torchrec import BET, Budget, BudgetPlanner, generate, load
from bet_torchrec.data import DataNotFoundError, random_split
from bet_torchrec.embeddings import BudgetedEmbeddingBagCollection, quantize
from bet_torchrec.evaluation import evaluate
from bet_torchrec.models import BipartiteGraph, LightGCN
from bet_torchrec.tasks import RankingTask
from bet_torchrec.training import TrainingWorkbench, fast, fit
from bet_torchrec.training.collection_tables import CollectionTables


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="gowalla", help="a known data set's name, or a file")
    parser.add_argument("--out", type=Path, default=Path("gowalla_lightgcn"))
    parser.add_argument("--bytes-per-row", type=int, default=12)
    parser.add_argument("--dim", type=int, default=64, help="of a full row")
    parser.add_argument("--epochs", type=int, default=20, help="of each full training")
    parser.add_argument("--probes", type=int, default=10)
    args = parser.parse_args()
    try:
        data = load(args.data, download=False)
    except DataNotFoundError:
        print(f"{args.data} was not found (set BET_TORCHREC_DATA): using the built-in generator")
        data = generate()
    split = random_split(data, seed=0).by_rank()  # ids in rank order need no id maps
    rows = data.num_users + data.num_items

    # Plan: how wide each row is, and in how many bits each table is served.
    recipe = fast("lightgcn")
    training = replace(recipe.training, max_epochs=args.epochs, validate_every=10**9)
    tuning = replace(recipe.fine_tuning, max_epochs=3)
    task = RankingTask(split, "lightgcn", embedding_dim=args.dim, bpr=recipe.bpr)
    bench = TrainingWorkbench(task, training=training, fine_tuning=tuning)
    budget = Budget.bytes(
        args.bytes_per_row * rows, purpose="inference", dtype=("int8", "int4"), alignment=1
    )
    planner = BudgetPlanner(
        budget=budget, widths=(0, 4, 8, 16, 32, 64), sizer=BET(iterations=args.probes, finalists=0)
    )
    plan = planner.plan(bench.tables, bench.counts(), workbench=bench)
    print(plan.summary())
    plan.save(args.out / "plan.safetensors")

    # Train the plan, as real TorchRec tables.
    collections, served = {}, {}
    for table in bench.tables:
        name, n = table.name, table.num_embeddings
        config = EmbeddingBagConfig(name=name, num_embeddings=n, embedding_dim=args.dim)
        collections[name] = BudgetedEmbeddingBagCollection([config], plan)
    tables = CollectionTables(collections).draw(training.init_std, torch.Generator())
    backbone = LightGCN(BipartiteGraph(split.train.csr()))
    fit(task, backbone, tables, training, seed=0, progress=True)

    # Serve it.
    for name, collection in collections.items():
        served[name] = quantize(collection)
        served[name].save(args.out / f"{name}.safetensors")
    scores = backbone.scores(CollectionTables(served))
    size = sum(sum(module.allocated_bytes().values()) for module in served.values())
    full = bench.full().evaluate().mean()["recall@20"]
    print(f"full tables: {4 * args.dim * rows:,} bytes, recall@20 {full:.4f}")
    print(f"the plan: {size:,} bytes, recall@20 {evaluate(scores, split).mean()['recall@20']:.4f}")


if __name__ == "__main__":
    main()
