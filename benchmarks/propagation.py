"""An epoch of LightGCN against the same epoch with torch.sparse COO products, in one process.

    export MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=17179869184  # keep freed memory
    python benchmarks/propagation.py --out benchmarks/results/propagation.json

Gowalla, 50/25/25, d 128, 3 layers, batch 10,000: everything but the product with the adjacency is
the same (sampler, fused Adam), so that the ratio is the product's.
Steps alternate between the two, so that whatever else the machine does meets both.
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from common import parser, ranked_split, save, setup, show
from torch import Tensor, nn

from bet_torchrec.models import BipartiteGraph, BPRTerms, LightGCN
from bet_torchrec.tasks.ranking import BPRSampler, bpr_loss
from bet_torchrec.training import SizedEmbedding, paper


class CooLightGCN(nn.Module):
    """LightGCN as published code writes it: layer by layer with torch.sparse.mm."""

    def __init__(self, graph: BipartiteGraph, *, layers: int = 3) -> None:
        super().__init__()
        users = torch.repeat_interleave(
            torch.arange(graph.num_users), graph.users_offsets.long().diff()
        )
        items = graph.users_columns.long() + graph.num_users
        places = torch.stack([torch.cat([users, items]), torch.cat([items, users])])
        weights = graph.users_weights.repeat(2)
        size = graph.num_users + graph.num_items
        self.matrix = torch.sparse_coo_tensor(places, weights, (size, size)).coalesce()
        self.num_users, self.layers = graph.num_users, layers

    def forward(
        self,
        embedding: SizedEmbedding,
        users: Tensor,
        positives: Tensor,
        negatives: Tensor,
        *,
        generator: torch.Generator | None = None,
    ) -> BPRTerms:
        table = torch.cat([embedding.table("user"), embedding.table("item")])
        layer, kept = table, [table]
        for _ in range(self.layers):
            layer = torch.sparse.mm(self.matrix, layer)
            kept.append(layer)
        final = torch.stack(kept, dim=1).mean(dim=1)
        rows = torch.cat([users, positives + self.num_users, negatives + self.num_users])
        user, positive, negative = F.embedding(rows, final).chunk(3)
        l2 = F.embedding(rows, table).square().sum() / 2
        return BPRTerms(margin=(user * (positive - negative)).sum(dim=1), l2=l2)


class Stepper:
    """Times single training steps of one model."""

    def __init__(self, model: nn.Module, sizes: dict, sampler: BPRSampler) -> None:
        self.model, self.sampler, self.recipe = model, sampler, paper()
        self.embedding = SizedEmbedding(sizes).draw(0.01, torch.Generator().manual_seed(0))
        self.optimizer = torch.optim.Adam(
            self.embedding.parameters(), lr=self.recipe.training.lr, fused=True
        )
        self.seconds: list[float] = []

    def step(self, number: int) -> None:
        start = time.perf_counter()
        batch = [torch.from_numpy(ids) for ids in self.sampler.batch(number)]
        bpr_loss(self.model(self.embedding, *batch), self.recipe.bpr.l2).backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.seconds.append(time.perf_counter() - start)


def main() -> None:
    p = parser(__doc__)
    p.add_argument("--data", default="gowalla")
    p.add_argument("--data-dir", type=Path, default=None)
    p.add_argument("--widths", type=int, nargs="+", default=[128, 64, 6])
    p.add_argument("--batch", type=int, default=10_000)
    p.add_argument("--steps", type=int, default=12, help="timed steps of each")
    args = p.parse_args()
    setup(args)
    split = ranked_split(args.data, args.seed, args.data_dir)
    graph = BipartiteGraph(split.train.csr())
    sampler = BPRSampler(split.train, batch_size=args.batch, seed=args.seed)
    found = []
    for width in args.widths:
        sizes = {"user": np.full(graph.num_users, width), "item": np.full(graph.num_items, width)}
        ours = Stepper(LightGCN(graph), sizes, sampler)
        theirs = Stepper(CooLightGCN(graph), sizes, sampler)
        for number in range(args.steps + 2):
            theirs.step(number)
            ours.step(number)
        # After the first two, that warm up. The same seed and steps: the same weights, nearly.
        for name, table in ours.embedding.full_tables().items():
            torch.testing.assert_close(
                table.norm(), theirs.embedding.full_tables()[name].norm(), rtol=1e-2, atol=0
            )
        fast, slow = (float(np.median(s.seconds[2:])) for s in (ours, theirs))
        epoch = sampler.steps_per_epoch
        found.append(
            {
                "width": width,
                "bag_step_ms": fast * 1e3,
                "coo_step_ms": slow * 1e3,
                "bag_epoch_s": fast * epoch,
                "coo_epoch_s": slow * epoch,
                "ratio": slow / fast,
            }
        )
    show(
        f"LightGCN on {args.data}, epochs of {sampler.steps_per_epoch} steps of {args.batch:,}",
        ("width", "embedding bag, s an epoch", "torch.sparse COO, s an epoch", "ratio"),
        [
            (r["width"], f"{r['bag_epoch_s']:.2f}", f"{r['coo_epoch_s']:.2f}", f"{r['ratio']:.1f}")
            for r in found
        ],
    )
    data = {"name": args.data, "fingerprint": split.train.fingerprint()}
    save(args, {"rows": found, "settings": dataclasses.asdict(paper())}, data)


if __name__ == "__main__":
    main()
