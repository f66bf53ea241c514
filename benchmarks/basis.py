"""What bases cost a training step: 26 tables x 64 wide, with, without, and at full width.

    python benchmarks/basis.py --threads 1 --repeats 5 --batch 1024 --rows 20000 \
        --out benchmarks/results/basis.json

Tables of --rows rows each, one Zipf-distributed id a bag, row-wise Adagrad by our fused CPU step.
A plan of average width w has 20 % of the rows at 2w, 40 % at w and 40 % at w/2, the most frequent
widest, so its bases have 2w axes. Full width is the same tables with every row 64 wide. "Tables" is
lookup, backward and update alone; "DLRM" a whole step of TorchRec's DLRM (dense layers 512-256-64,
over arch 512-256-1, SGD). Contenders take turns on the same batches; CPU time, medians, and medians
of ratios within a turn.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch
from common import parser, save, setup, show
from torch import Tensor, nn
from torchrec import EmbeddingBagConfig, KeyedJaggedTensor
from torchrec.models.dlrm import DLRM

from bet_torchrec import Budget, SizePlan
from bet_torchrec.embeddings import BudgetedEmbeddingBagCollection
from bet_torchrec.embeddings.fused import FusedBudgetedEmbeddingBagCollection
from bet_torchrec.planning.plan import Bucket, TablePlan

TABLES, DIM, DENSE, LR = 26, 64, 13, 0.01
Step = Callable[[KeyedJaggedTensor, Tensor, Tensor], None]


def plan_of(rows: int, average: int, basis: str | None) -> SizePlan:
    """See above; an average of DIM is full width."""
    shares = [(2 * average, 0.2), (average, 0.4), (average // 2, 0.4)]
    if average == DIM:
        shares = [(DIM, 1.0)]
    buckets = tuple(Bucket(width, round(share * rows)) for width, share in shares)
    names = [f"t{i}" for i in range(TABLES)]
    tables = tuple(TablePlan(name, rows, DIM, buckets, basis=basis) for name in names)
    return SizePlan(tables, Budget.parameters(10**12), "by hand")


def fused(plan: SizePlan) -> FusedBudgetedEmbeddingBagCollection:
    configs = [
        EmbeddingBagConfig(
            name=t.name, num_embeddings=t.rows, embedding_dim=DIM, feature_names=[f"f_{t.name}"]
        )
        for t in plan.tables
    ]
    module = BudgetedEmbeddingBagCollection(configs, plan)
    return FusedBudgetedEmbeddingBagCollection(module, optimizer="rowwise_adagrad", lr=LR)


def alone(tables: FusedBudgetedEmbeddingBagCollection) -> Step:
    axes = list(tables.module.bases.parameters())
    optimizer = torch.optim.SGD(axes, lr=LR) if axes else None

    def step(bags: KeyedJaggedTensor, dense: Tensor, gradient: Tensor) -> None:
        tables(bags).values().backward(gradient)
        if optimizer is not None:
            optimizer.step()
            optimizer.zero_grad()

    return step


def whole(tables: FusedBudgetedEmbeddingBagCollection) -> Step:
    torch.manual_seed(0)
    model = DLRM(
        embedding_bag_collection=tables,
        dense_in_features=DENSE,
        dense_arch_layer_sizes=[512, 256, DIM],
        over_arch_layer_sizes=[512, 256, 1],
    )
    own = {id(weight) for weight in tables.parameters()} - {
        id(weight) for weight in tables.module.bases.parameters()
    }
    optimizer = torch.optim.SGD([p for p in model.parameters() if id(p) not in own], lr=LR)
    loss = nn.BCEWithLogitsLoss()

    def step(bags: KeyedJaggedTensor, dense: Tensor, gradient: Tensor) -> None:
        optimizer.zero_grad()
        logits = model(dense, bags).squeeze(1)
        loss(logits, (dense[:, 0] > 0).float()).backward()
        optimizer.step()

    return step


def batches(rows: int, batch: int, count: int, seed: int) -> list[tuple[KeyedJaggedTensor, Tensor]]:
    rng = np.random.default_rng(seed)
    weights = np.cumsum(1 / np.arange(1, rows + 1))
    found = []
    for _ in range(count):
        ids = np.searchsorted(weights, rng.random(TABLES * batch) * weights[-1])
        bags = KeyedJaggedTensor(
            keys=[f"f_t{i}" for i in range(TABLES)],
            values=torch.from_numpy(ids.clip(max=rows - 1)),
            lengths=torch.ones(TABLES * batch, dtype=torch.int64),
        )
        found.append((bags, torch.from_numpy(rng.standard_normal((batch, DENSE))).float()))
    return found


def main() -> None:
    p = parser(__doc__)
    p.add_argument("--rows", type=int, default=50_000)
    p.add_argument("--batch", type=int, default=2048)
    p.add_argument("--repeats", type=int, default=15)
    args = p.parse_args()
    setup(args)
    drawn = batches(args.rows, args.batch, args.repeats, args.seed)
    gradient = torch.randn(args.batch, TABLES * DIM)
    rows = []
    for what, wrap in (("tables", alone), ("DLRM", whole)):
        made = {("full width", None): wrap(fused(plan_of(args.rows, DIM, None)))}
        for average in (8, 16, 32):
            for basis in (None, "fixed", "trained"):
                made[(str(average), basis)] = wrap(fused(plan_of(args.rows, average, basis)))
        rows += compare(made, what, drawn, gradient)
    header = ("step", "average width", "basis", "ms CPU", "full / this", "basis' share of the step")
    shown = [
        (
            *(r["step"], r["average"], r["basis"] or "none", f"{r['milliseconds']:.1f}"),
            *(f"{r['full_over_this']:.2f}", f"{r['share']:.1%}" if r["basis"] else ""),
        )
        for r in rows
    ]
    show(f"{TABLES} tables of {args.rows:,} x {DIM}, {args.batch} examples", header, shown)
    save(args, {"rows": rows})


def compare(
    made: dict[tuple[str, str | None], Step], what: str, drawn: list, gradient: Tensor
) -> list[dict]:
    """All by turns; a basis' share is what it adds to the step of the same plan without it."""
    seconds: dict[tuple[str, str | None], list[float]] = {key: [] for key in made}
    for number, (bags, dense) in enumerate([*drawn[:2], *drawn]):
        for key, step in made.items():
            start = time.process_time()
            step(bags, dense, gradient)
            if number >= 2:  # the first two warm up
                seconds[key].append(time.process_time() - start)
    took = {key: np.array(own) for key, own in seconds.items()}
    full = took[("full width", None)]
    return [
        {
            "step": what,
            "average": average,
            "basis": basis,
            "milliseconds": float(np.median(own)) * 1e3,
            "full_over_this": float(np.median(full / own)),
            "share": float(np.median(1 - took[(average, None)] / own)),
        }
        for (average, basis), own in took.items()
    ]


if __name__ == "__main__":
    main()
