"""Four tables under one budget: NCF on Yelp2018, whose dense layer and GMF have two tables each.

    python examples/yelp_ncf.py                # equal sizes, a short preset, minutes
    python examples/yelp_ncf.py --sizer bet    # a search by brief fine-tunes; mr: random sizes

Looks for Yelp2018 in $BET_TORCHREC_DATA, and uses the built-in generator where it is not there.
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
from bet_torchrec.models import NCF
from bet_torchrec.planning import SIZERS
from bet_torchrec.tasks import RankingTask
from bet_torchrec.training import TrainingWorkbench, fast, fit
from bet_torchrec.training.collection_tables import CollectionTables


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="yelp2018", help="a known data set's name, or a file")
    parser.add_argument("--out", type=Path, default=Path("yelp_ncf"))
    parser.add_argument("--sizer", choices=SIZERS, default="es")
    parser.add_argument("--sparsity", type=float, default=0.8)
    parser.add_argument("--dim", type=int, default=64, help="of a full row")
    parser.add_argument("--epochs", type=int, default=8, help="of each full training")
    args = parser.parse_args()
    try:
        data = load(args.data, download=False)
    except DataNotFoundError:
        print(f"{args.data} was not found (set BET_TORCHREC_DATA): using the built-in generator")
        data = generate()
    split = random_split(data, seed=0).by_rank()

    # Plan: NCF's tables are "user", "item", "user_gmf" and "item_gmf".
    recipe = fast("ncf")
    training = replace(recipe.training, max_epochs=args.epochs, validate_every=10**9)
    task = RankingTask(split, "ncf", embedding_dim=args.dim, bpr=recipe.bpr)
    bench = TrainingWorkbench(task, training=training, fine_tuning=recipe.fine_tuning)
    sizer = BET(iterations=8, finalists=2) if args.sizer == "bet" else SIZERS[args.sizer]()
    budget = Budget.sparsity(args.sparsity)
    planner = BudgetPlanner(budget=budget, widths=(0, 4, 8, 16, 32, 64), sizer=sizer)
    plan = planner.plan(bench.tables, bench.counts(), workbench=bench)
    print(plan.summary())
    plan.save(args.out / "plan.safetensors")

    # Train the plan, as real TorchRec tables.
    collections = {}
    for table in bench.tables:
        name, n = table.name, table.num_embeddings
        config = EmbeddingBagConfig(name=name, num_embeddings=n, embedding_dim=args.dim)
        collections[name] = BudgetedEmbeddingBagCollection([config], plan)
    tables = CollectionTables(collections).draw(training.init_std, torch.Generator())
    backbone = NCF(data.num_users, data.num_items, dim=args.dim)
    fit(task, backbone, tables, training, seed=0, progress=True)

    # Serve it in int8, whatever the plan counted.
    served = {name: quantize(module, precision="int8") for name, module in collections.items()}
    for name, module in served.items():
        module.save(args.out / f"{name}.safetensors")
    users = range(0, data.num_users, max(1, data.num_users // 4_000))  # some, for a quick answer
    for what, rows in (("trained", tables), ("int8", CollectionTables(served))):
        metrics = evaluate(backbone.scores(rows), split, users=users)
        print(f"{what}: recall@20 {metrics.mean()['recall@20']:.4f}")
    size = sum(sum(module.allocated_bytes().values()) for module in served.values())
    full = sum(4 * table.parameters for table in bench.tables)
    print(f"served in {size:,} bytes, where full tables in fp32 take {full:,}")


if __name__ == "__main__":
    main()
