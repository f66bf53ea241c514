"""Training steps on a plan's tables: lookup, backward and update, against what users have today.

    export MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=17179869184  # keep freed memory
    python benchmarks/lookup.py --threads 1
    python benchmarks/lookup.py --device cuda --rows 20000000

One table of --rows rows, full width 128, one id a bag; the plan halves the rows from each width to
the next. All take the same ids and gradients, by turns; ratios are to the full-width FBGEMM table,
above 1 is faster. FBGEMM's tables, ours among them, train through DistributedModelParallel in one
process, fused; "bare" is its kernel without modules. "own step" is our fused CPU step. "equal size"
is one narrow table of the plan's bytes (its output is narrow too), "E * mask" what published code
does, "masked rows" what one would write by hand.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from common import parser, save, setup, show
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation, PoolingMode
from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
    ComputeDevice,
    SplitTableBatchedEmbeddingBagsCodegen,
)
from one_process import one_process
from torch import Tensor, nn
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.types import ShardingType

from bet_torchrec import Budget, SizePlan
from bet_torchrec.embeddings import (
    BudgetedEmbeddingBagCollection,
    BudgetedEmbeddingBagCollectionSharder,
)
from bet_torchrec.embeddings.fused import FusedBudgetedEmbeddingBagCollection
from bet_torchrec.planning.plan import Bucket, TablePlan

DIM, LR = 128, 0.01
WIDTHS = {
    3: (32, 64, 128),
    4: (16, 32, 64, 128),
    6: (8, 16, 32, 64, 96, 128),
    8: (4, 8, 16, 32, 48, 64, 96, 128),
}
FUSED = {"sgd": EmbOptimType.EXACT_SGD, "rowwise_adagrad": EmbOptimType.EXACT_ROWWISE_ADAGRAD}
SLOW = 3  # steps of what is many times slower than the rest
Step = Callable[[KeyedJaggedTensor, Tensor], None]


class FullTable(EmbeddingBagCollectionSharder):
    """TorchRec's sharder; the planner may not split the one table, as it may not ours."""

    def sharding_types(self, compute_device_type: str) -> list[str]:
        return [ShardingType.TABLE_WISE.value]


def halving_plan(rows: int, widths: tuple[int, ...]) -> SizePlan:
    """Half as many rows at every next width, the most frequent ones widest."""
    shares = 0.5 ** np.arange(1, len(widths) + 1)
    each = np.maximum(1, (shares / shares.sum() * rows).astype(int))[::-1]
    each[-1] += rows - each.sum()
    buckets = tuple(Bucket(w, int(n)) for w, n in zip(widths[::-1], each, strict=True))
    return SizePlan((TablePlan("t", rows, DIM, buckets),), Budget.sparsity(0), "halving")


def config(rows: int, width: int = DIM) -> list[EmbeddingBagConfig]:
    return [
        EmbeddingBagConfig(name="t", num_embeddings=rows, embedding_dim=width, feature_names=["f"])
    ]


def fused(module: nn.Module, sharder: EmbeddingBagCollectionSharder, device: str) -> Step:
    model = DistributedModelParallel(module, device=torch.device(device), sharders=[sharder])

    def step(bags: KeyedJaggedTensor, gradient: Tensor) -> None:
        values = model(bags).values()
        values.backward(gradient[:, : values.shape[1]].contiguous())

    return step


def bare(rows: int, optimizer: str, device: str) -> Step:
    """FBGEMM's kernel over the full table, ids checked as it does by default."""
    where = (EmbeddingLocation.HOST, ComputeDevice.CPU)
    if device == "cuda":
        where = (EmbeddingLocation.DEVICE, ComputeDevice.CUDA)
    kernel = SplitTableBatchedEmbeddingBagsCodegen(
        [(rows, DIM, *where)],
        optimizer=FUSED[optimizer],
        learning_rate=LR,
        pooling_mode=PoolingMode.SUM,
    )
    for weight in kernel.split_embedding_weights():
        weight.uniform_(-0.1, 0.1)

    def step(bags: KeyedJaggedTensor, gradient: Tensor) -> None:
        kernel(bags.values(), bags.offsets()).backward(gradient)

    return step


def own_step(module: BudgetedEmbeddingBagCollection, optimizer: str) -> Step:
    model = FusedBudgetedEmbeddingBagCollection(module, optimizer=optimizer, lr=LR)

    def step(bags: KeyedJaggedTensor, gradient: Tensor) -> None:
        model(bags).values().backward(gradient)

    return step


def masked(rows: int, plan: SizePlan, optimizer: str, device: str, whole: bool) -> Step:
    """Plain torch: the whole table times its mask, or only the rows that are looked up."""
    table = torch.zeros(rows, DIM, device=device).uniform_(-0.1, 0.1).requires_grad_()
    sizes = torch.from_numpy(plan.sizes("t")).to(device)
    columns = torch.arange(DIM, device=device)
    mask = (columns < sizes[:, None]).float() if whole else None
    squares = torch.zeros(rows, device=device)

    def update(gradient: Tensor) -> None:
        rows_of = slice(None)
        if gradient.is_sparse:
            gradient = gradient.coalesce()
            rows_of, gradient = gradient.indices()[0], gradient.values()
        rate = torch.full((), LR, device=device)
        if optimizer == "rowwise_adagrad":
            squares[rows_of] += gradient.square().mean(dim=1)
            rate = (LR / (squares[rows_of].sqrt() + 1e-8))[:, None]
        table.data[rows_of] -= rate * gradient

    def step(bags: KeyedJaggedTensor, gradient: Tensor) -> None:
        ids = bags.values()
        if mask is not None:
            out = F.embedding(ids, table * mask)
        else:
            out = F.embedding(ids, table, sparse=True) * (columns < sizes[ids][:, None])
        out.backward(gradient)
        update(table.grad)
        table.grad = None

    return step


def batches(rows: int, batch: int, ids: str, count: int, seed: int, device: str) -> list:
    rng = np.random.default_rng(seed)
    if ids == "zipf":
        weights = np.cumsum(1 / np.arange(1, rows + 1))
    found = []
    for _ in range(count):
        if ids == "zipf":
            drawn = np.searchsorted(weights, rng.random(batch) * weights[-1])
        else:
            drawn = rng.integers(0, rows, batch)
        found.append(
            KeyedJaggedTensor(
                keys=["f"],
                values=torch.from_numpy(drawn.astype(np.int64)).to(device),
                lengths=torch.ones(batch, dtype=torch.int64, device=device),
            )
        )
    return found


def timed(step: Step, bags: KeyedJaggedTensor, gradient: Tensor, device: str) -> float:
    start = time.perf_counter()
    step(bags, gradient)
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def contenders(rows: int, optimizer: str, counts: list[int], device: str) -> dict[str, Step]:
    options = {"optimizer": FUSED[optimizer], "learning_rate": LR}
    table_wise = [ShardingType.TABLE_WISE.value]
    plan = halving_plan(rows, WIDTHS[4])
    equal = max(4, plan.parameters() // rows // 4 * 4)
    meta = torch.device("meta")
    made = {
        "full width": fused(
            EmbeddingBagCollection(config(rows), device=meta), FullTable(options), device
        ),
        "full width, bare": bare(rows, optimizer, device),
        f"equal size ({equal})": fused(
            EmbeddingBagCollection(config(rows, equal), device=meta), FullTable(options), device
        ),
    }
    for count in counts:
        for layout in ("bucketed", "prefix"):
            module = BudgetedEmbeddingBagCollection(
                config(rows), halving_plan(rows, WIDTHS[count]), layout=layout, device=meta
            )
            sharder = BudgetedEmbeddingBagCollectionSharder(options, sharding_types=table_wise)
            made[f"{layout}, {count} widths"] = fused(module, sharder, device)
    if device == "cpu":
        for count in counts:
            plan_ = halving_plan(rows, WIDTHS[count])
            module = BudgetedEmbeddingBagCollection(config(rows), plan_)
            made[f"own step, {count} widths"] = own_step(module, optimizer)
    made["masked rows"] = masked(rows, plan, optimizer, device, whole=False)
    made["E * mask"] = masked(rows, plan, optimizer, device, whole=True)
    return made


def moved_bytes(name: str, bags: list[KeyedJaggedTensor], rows: int, optimizer: str) -> float:
    """Bytes of rows that a step has to move: read for the lookup, read and written for the update.

    Each looked-up row is counted once a batch for the update, as often as it occurs before.
    """
    count = int(name.split(",")[1].split()[0]) if "widths" in name else None
    sizes = halving_plan(rows, WIDTHS[count]).sizes("t") if count else np.full(rows, DIM)
    total = 0.0
    for kjt in bags:
        ids = kjt.values().cpu().numpy()
        total += 4 * sizes[ids].sum() + 8 * sizes[np.unique(ids)].sum() + 8 * DIM * len(ids)
    return total / len(bags)


def main() -> None:
    p = parser(__doc__)
    p.add_argument("--rows", type=int, default=1_000_000)
    p.add_argument("--batches", type=int, nargs="+", default=[10_000, 65_536])
    p.add_argument("--widths", type=int, nargs="+", default=[3, 4, 8], choices=sorted(WIDTHS))
    p.add_argument("--optimizers", nargs="+", default=list(FUSED), choices=list(FUSED))
    p.add_argument("--repeats", type=int, default=15)
    p.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    args = p.parse_args()
    setup(args)
    found = []
    with one_process(args.device):
        for optimizer in args.optimizers:
            made = contenders(args.rows, optimizer, args.widths, args.device)
            for batch in args.batches:
                for ids in ("uniform", "zipf"):
                    found += compare(args, made, optimizer, batch, ids)
    header = ("optimizer", "batch", "ids", "tables", "lookups a second", "against full", "GB/s")
    rows = [
        (
            *(r["optimizer"], f"{r['batch']:,}", r["ids"], r["tables"]),
            *(f"{r['lookups_a_second']:,.0f}", f"{r['ratio']:.2f}"),
            f"{r['gigabytes_a_second']:.1f}",
        )
        for r in found
    ]
    show(f"Training steps, {args.rows:,} rows x {DIM}, {args.device}", header, rows)
    save(args, {"rows": found})


def compare(args, made: dict[str, Step], optimizer: str, batch: int, ids: str) -> list[dict]:
    """All contenders by turns on the same batches; medians, and medians of ratios."""
    bags = batches(args.rows, batch, ids, args.repeats, args.seed, args.device)
    gradient = torch.randn(batch, DIM, device=args.device)
    seconds: dict[str, list[float]] = {name: [] for name in made}
    for number, kjt in enumerate([*bags[:2], *bags]):
        for name, step in made.items():
            if name == "E * mask" and number >= SLOW + 2:
                continue
            took = timed(step, kjt, gradient, args.device)
            if number >= 2:  # the first two warm up
                seconds[name].append(took)
    full = np.array(seconds["full width"])
    return [
        {
            "optimizer": optimizer,
            "batch": batch,
            "ids": ids,
            "tables": name,
            "milliseconds": float(np.median(took)) * 1e3,
            "lookups_a_second": batch / float(np.median(took)),
            "ratio": float(np.median(full[: len(took)] / np.array(took))),
            "gigabytes_a_second": moved_bytes(name, bags[:3], args.rows, optimizer)
            / float(np.median(took))
            / 1e9,
        }
        for name, took in seconds.items()
    ]


if __name__ == "__main__":
    main()
