"""A DLRM of TorchRec's, its 26 tables under one budget of served bytes, from loaders to int8.

    python examples/dlrm_budget.py               # a short preset, a minute or two
    python examples/dlrm_budget.py --probes 50

Clicks are criteo-sample's in $BET_TORCHREC_DATA, or made up.
"""

import argparse
from pathlib import Path

import torch
from torchrec import EmbeddingBagConfig, KeyedJaggedTensor
from torchrec.datasets.utils import Batch
from torchrec.models.dlrm import DLRM

from bet_torchrec import BET, Budget, BudgetPlanner, TorchRecTask, TrainingWorkbench
from bet_torchrec.data import data_directory
from bet_torchrec.data.clicks import (
    ClickLog,
    ClickSplit,
    generate_clicks,
    read_criteo,
    split_random,
)
from bet_torchrec.embeddings import quantize


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--probes", type=int, default=6)
    parser.add_argument("--out", type=Path, default=Path("dlrm_budget"))
    args = parser.parse_args()
    split = clicks()
    train, validation, test = (batches(part) for part in split.parts())
    tables = [EmbeddingBagConfig(f.rows, 16, name=f.name) for f in split.fields]
    dense = len(split.train.dense_names)

    # from here
    task = TorchRecTask(
        tables,
        model=lambda ebc: DLRM(ebc, dense, [32, 16], [32, 1]),
        train=train,
        validation=validation,
        test=test,
    )
    bench = TrainingWorkbench(task, run_dir=args.out)
    full = 4 * sum(table.parameters for table in task.tables)
    budget = Budget.bytes(full // 16, purpose="inference", dtype=("int8", "int4"), alignment=1)
    sizer = BET(iterations=args.probes, finalists=1)
    planner = BudgetPlanner(budget=budget, widths=(0, 2, 4, 8, 16), sizer=sizer)
    plan = planner.plan(bench.tables, bench.counts(), workbench=bench)
    trained = bench.train_model(plan)
    model = quantize(task.deploy(trained, plan))
    # to here

    print(plan.summary())
    with torch.no_grad():
        shown = model(test[0].dense_features, test[0].sparse_features).sigmoid().flatten()[:3]
    print(f"full tables: {full:,} bytes, test {bench.full().evaluate()}")
    print(f"the plan: {plan.cost():,} bytes, test {trained.evaluate()}")
    print(f"served: clicks at {', '.join(f'{p:.3f}' for p in shown.tolist())}, ...")


def clicks() -> ClickSplit:
    path = data_directory() / "criteo-sample" / "train.txt"
    if path.is_file():
        log = read_criteo(path, integers="dense")
    else:
        print(f"{path} was not found (set BET_TORCHREC_DATA): clicks are made up")
        log = generate_clicks(8_000, fields=[3, 10, 30, 100, 300, 1_000, 3_000] * 4, dense=13)
    return split_random(log, seed=0).by_rank()[0]  # ids in rank order need no id maps


def batches(log: ClickLog, size: int = 256) -> list[Batch]:
    """As a TorchRec data loader gives them."""
    found = []
    for rows in torch.arange(len(log)).split(size):
        clicks = log.batch(rows.numpy())
        ids = clicks.ids.T.contiguous()
        features = KeyedJaggedTensor(
            list(clicks.single), ids.flatten(), lengths=torch.ones_like(ids.flatten())
        )
        found.append(Batch(clicks.dense, features, clicks.labels))
    return found


if __name__ == "__main__":
    main()
