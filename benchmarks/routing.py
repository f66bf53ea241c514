"""Routing a large batch: the memory it takes at most, and its time.

    python benchmarks/routing.py --threads 1 --out benchmarks/results/routing.json

--features features of --batch ids, one a bag, each feature with a table of its own whose plan
halves the rows from each of four widths to the next. Every case runs in a process of its own: the
peak is of resident memory over what was there before, in multiples of the ids' bytes; milliseconds
are a median. "through torch" is what routes where there is no C++ compiler, and on a GPU.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import numpy as np
import torch
from common import parser, save, setup, show
from meter import Meter
from torchrec import EmbeddingBagConfig, KeyedJaggedTensor

from bet_torchrec import Budget, SizePlan
from bet_torchrec.embeddings import BudgetedEmbeddingBagCollection, routing
from bet_torchrec.planning.plan import Bucket, TablePlan

DIM = 64


def module(args, layout: str, mapped: bool) -> BudgetedEmbeddingBagCollection:
    each = (np.array([1, 2, 4, 8]) / 15 * args.rows).astype(int)
    each[-1] += args.rows - each.sum()
    buckets = tuple(Bucket(DIM >> k, int(n)) for k, n in enumerate(each))
    rng = np.random.default_rng(args.seed)
    plans, configs = [], []
    for i in range(args.features):
        order = rng.permutation(args.rows).astype(np.int32) if mapped else None
        plans.append(TablePlan(f"t{i}", args.rows, DIM, buckets, order))
        configs.append(
            EmbeddingBagConfig(
                name=f"t{i}", num_embeddings=args.rows, embedding_dim=DIM, feature_names=[f"f{i}"]
            )
        )
    plan = SizePlan(tuple(plans), Budget.sparsity(0), "halving")
    return BudgetedEmbeddingBagCollection(configs, plan, layout=layout, device="meta")


def batch(args, seed: int) -> KeyedJaggedTensor:
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, args.rows, args.features * args.batch)
    return KeyedJaggedTensor(
        keys=[f"f{i}" for i in range(args.features)],
        values=torch.from_numpy(ids),
        lengths=torch.ones(len(ids), dtype=torch.int32),
    )


def measure(args) -> dict:
    layout, ids, way = args.case.split(",")
    if way == "torch":
        routing.available = lambda: False
    router = module(args, layout, ids == "mapped").router
    router(batch(args, 1))
    meter = Meter("cpu")
    asked = batch(args, 0)
    before = meter.now()
    meter.restart()
    routed = router(asked)
    peak = meter.peak() - before
    del routed
    seconds = []
    for _ in range(args.repeats):
        start = time.perf_counter()
        router(asked)
        seconds.append(time.perf_counter() - start)
    size = asked.values().nbytes
    return {
        **{"layout": layout, "ids": ids, "way": way, "bytes of ids": size, "peak": peak},
        **{"multiple": peak / size, "milliseconds": float(np.median(seconds)) * 1e3},
    }


def fresh_process(args, case: str) -> dict:
    # Large arrays in pages of their own, which go back to the system when they are freed.
    env = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    command = [sys.executable, __file__, *sys.argv[1:], "--case", case]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{case} failed:\n{done.stderr[-3000:]}")
    found: dict = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def main() -> None:
    p = parser(__doc__)
    p.add_argument("--rows", type=int, default=100_000)
    p.add_argument("--features", type=int, default=26)
    p.add_argument("--batch", type=int, default=65_536)
    p.add_argument("--repeats", type=int, default=5)
    p.add_argument("--case", help="one case, in this process")
    args = p.parse_args()
    setup(args)
    if args.case:
        print(json.dumps(measure(args)))
        return
    cases = [
        f"{layout},{ids},{way}"
        for layout in ("bucketed", "prefix")
        for ids in ("ranked", "mapped")
        for way in ("operator", "torch")
    ]
    found = [fresh_process(args, case) for case in cases]
    rows = [
        (
            *(
                r["layout"],
                r["ids"],
                {"operator": "our operator", "torch": "through torch"}[r["way"]],
            ),
            *(f"{r['peak'] / 1e6:.0f}", f"{r['multiple']:.1f}", f"{r['milliseconds']:.0f}"),
        )
        for r in found
    ]
    show(
        f"Routing {args.features} x {args.batch:,} ids",
        ("layout", "ids", "way", "peak MB", "x ids", "ms"),
        rows,
    )
    save(args, {"rows": found})


if __name__ == "__main__":
    main()
