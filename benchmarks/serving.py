"""Latency of serving: a plan's int8 tables against TorchRec's full ones, batch by batch.

    python benchmarks/serving.py --threads 1 --out benchmarks/results/serving.json

Every table has --rows rows, full width --dim, one id a bag; the plan halves the rows from each of
four widths to the next. All contenders take the same batches by turns, each as a new
KeyedJaggedTensor of lengths, as a request comes; ratios are medians of ratios to TorchRec's full
int8 tables, above 1 is faster. Time is the process's own on the CPU, so that others on the machine
don't count: with one thread it is the latency of an idle machine. "mapped" is a plan whose ids are
no ranks, so that every lookup reads the id map first. "through TorchRec" is what serves where there
is no C++ compiler: ids routed, TorchRec's kernels, outputs merged.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from unittest import mock

import numpy as np
import torch
from common import parser, save, setup, show
from torch import Tensor, nn
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor
from torchrec.inference.modules import quantize_embeddings

from bet_torchrec import Budget, SizePlan
from bet_torchrec.embeddings import BudgetedEmbeddingBagCollection, quantize
from bet_torchrec.embeddings.quantization import one_pass
from bet_torchrec.planning.plan import Bucket, TablePlan

FULL = "full int8, TorchRec"
PRECISIONS = ("fp16", "int4", "int2")
Serve = Callable[[KeyedJaggedTensor], Tensor]


def configs(count: int, rows: int, dim: int) -> list[EmbeddingBagConfig]:
    return [
        EmbeddingBagConfig(
            name=f"t{i}", num_embeddings=rows, embedding_dim=dim, feature_names=[f"f{i}"]
        )
        for i in range(count)
    ]


def halving_plan(count: int, rows: int, dim: int, *, mapped: bool, seed: int) -> SizePlan:
    """Half as many rows at every next width: dim, and its half, quarter and eighth."""
    each = np.maximum(1, (np.array([1, 2, 4, 8]) / 15 * rows).astype(int))
    each[-1] += rows - each.sum()
    buckets = tuple(Bucket(dim >> k, int(n), "int8") for k, n in enumerate(each))
    rng = np.random.default_rng(seed)
    tables = tuple(
        TablePlan(
            f"t{i}", rows, dim, buckets, rng.permutation(rows).astype(np.int32) if mapped else None
        )
        for i in range(count)
    )
    budget = Budget.bytes(1 << 40, purpose="inference", dtype="int8", alignment=1)
    return SizePlan(tables, budget, "halving")


def full_tables(count: int, args) -> nn.Module:
    module = EmbeddingBagCollection(configs(count, args.rows, args.dim))
    return quantize_embeddings(nn.Sequential(module), torch.qint8, inplace=True)[0]


def through_torchrec(module: nn.Module) -> Serve:
    def serve(bags: KeyedJaggedTensor) -> Tensor:
        with mock.patch.object(one_pass, "available", return_value=False):
            return module(bags).values()

    return serve


def contenders(count: int, args) -> dict[str, Serve]:
    tables = configs(count, args.rows, args.dim)
    made: dict[str, Serve] = {FULL: plain(full_tables(count, args))}
    for mapped in (False, True):
        plan = halving_plan(count, args.rows, args.dim, mapped=mapped, seed=args.seed)
        trained = BudgetedEmbeddingBagCollection(tables, plan)
        suffix = ", mapped" if mapped else ""
        for layout in ("bucketed", "prefix"):
            served = quantize(trained, layout=layout)
            made[f"{layout}{suffix}"] = plain(served)
            if not mapped:
                made[f"{layout} through TorchRec"] = through_torchrec(served)
        if not mapped:
            for precision in PRECISIONS:
                made[f"bucketed {precision}"] = plain(quantize(trained, precision=precision))
    return made


def plain(module: nn.Module) -> Serve:
    return lambda bags: module(bags).values()


def requests(count: int, batch: int, args) -> list[tuple[Tensor, Tensor]]:
    """Zipf ids, so that frequent rows are frequent: (ids, lengths)."""
    rng = np.random.default_rng(args.seed)
    weights = np.cumsum(1 / np.arange(1, args.rows + 1))
    lengths = torch.ones(count * batch, dtype=torch.int32)
    found = []
    for _ in range(args.repeats):
        drawn = np.searchsorted(weights, rng.random(count * batch) * weights[-1])
        found.append((torch.from_numpy(drawn.astype(np.int64)), lengths))
    return found


def compare(count: int, batch: int, made: dict[str, Serve], args) -> list[dict]:
    """All contenders by turns; medians of milliseconds and of ratios."""
    keys = [f"f{i}" for i in range(count)]
    offsets = torch.arange(count * batch + 1, dtype=torch.int32)
    seconds: dict[str, list[float]] = {name: [] for name in made}
    asked = requests(count, batch, args)
    for number, (ids, lengths) in enumerate([*asked[:3], *asked]):
        for name, serve in made.items():
            bags = {"offsets": offsets} if args.offsets else {"lengths": lengths}
            start = time.process_time()
            serve(KeyedJaggedTensor(keys=keys, values=ids, **bags))
            took = time.process_time() - start
            if number >= 3:  # the first three warm up
                seconds[name].append(took)
    full = np.array(seconds[FULL])
    return [
        {
            "tables": count,
            "batch": batch,
            "rows": name,
            "milliseconds": float(np.median(took)) * 1e3,
            "ratio": float(np.median(full / np.array(took))),
        }
        for name, took in seconds.items()
    ]


def main() -> None:
    p = parser(__doc__)
    p.add_argument("--rows", type=int, default=100_000)
    p.add_argument("--dim", type=int, default=64)
    p.add_argument("--tables", type=int, nargs="+", default=[26, 2])
    p.add_argument("--batches", type=int, nargs="+", default=[1, 64, 1024])
    p.add_argument("--repeats", type=int, default=101)
    p.add_argument("--offsets", action="store_true", help="requests bring offsets, not lengths")
    args = p.parse_args()
    setup(args)
    found = []
    with torch.inference_mode():
        for count in args.tables:
            made = contenders(count, args)
            for batch in args.batches:
                found += compare(count, batch, made, args)
    rows = [
        (
            *(r["tables"], f"{r['batch']:,}", r["rows"]),
            f"{r['milliseconds']:.3f}",
            f"{r['ratio']:.2f}",
        )
        for r in found
    ]
    show(
        f"Serving, {args.rows:,} rows x {args.dim} a table",
        ("tables", "batch", "served", "ms", "against full"),
        rows,
    )
    save(args, {"rows": found})


if __name__ == "__main__":
    main()
