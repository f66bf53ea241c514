"""TorchRec's own DLRM and DeepFM over 26 tables of unlike sizes, plain and under a budget."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor
from torchrec.datasets.utils import Batch
from torchrec.models.deepfm import SimpleDeepFMNN
from torchrec.models.dlrm import DLRM, DLRM_DCN, DLRM_Projection, DLRMTrain

from bet_torchrec import Budget, BudgetPlanner, MixedRandom, SizePlan

DIM, DENSE, BATCH = 16, 5, 24
ROWS = [2, 3, 4, 5, 7, 10, 11, 13, 17, 24, 24, 27, 31, 40, 60, 63, 95, 105, 110, 130]
ROWS += [152, 200, 221, 305, 400, 583]  # Criteo's cardinalities, each much smaller
TABLES = [
    EmbeddingBagConfig(
        name=f"cat_{i}", num_embeddings=rows, embedding_dim=DIM, feature_names=[f"feature_{i}"]
    )
    for i, rows in enumerate(ROWS)
]
FEATURES = [table.feature_names[0] for table in TABLES]


def counts() -> dict[str, np.ndarray]:
    """Popularity that falls with a shuffled rank."""
    rng = np.random.default_rng(7)
    return {t.name: rng.permutation(10_000 // np.arange(1, t.num_embeddings + 1)) for t in TABLES}


def make_plan(optimizer: str = "rowwise_adagrad", world_size: int = 1) -> SizePlan:
    """All 26 tables in half of their bytes of training, optimizer state and every rank's id maps
    included.
    """
    full = sum(rows * (4 * DIM + 4) for rows in ROWS)
    budget = Budget.bytes(
        full // 2, purpose="training", dtype="fp32", optimizer=optimizer, world_size=world_size
    )
    return BudgetPlanner(budget=budget, widths=(0, 4, 8, 16), sizer=MixedRandom()).plan(
        TABLES, counts()
    )


def masks(plan: SizePlan) -> dict[str, torch.Tensor]:
    """1 where a row keeps an entry."""
    return {
        t.name: (torch.arange(DIM) < torch.from_numpy(plan.sizes(t.name))[:, None]).float()
        for t in TABLES
    }


def full_tables(seed: int = 1) -> dict[str, torch.Tensor]:
    """Starting values, (rows, DIM)."""
    generator = torch.Generator().manual_seed(seed)
    return {t.name: 0.3 * torch.randn(t.num_embeddings, DIM, generator=generator) for t in TABLES}


def masked_collection(plan: SizePlan) -> EmbeddingBagCollection:
    """TorchRec's own, with full tables of which the mask is all that is ever used or trained."""
    collection = EmbeddingBagCollection(tables=TABLES)
    start = full_tables()
    for name, mask in masks(plan).items():
        weight = collection.embedding_bags[name].weight
        with torch.no_grad():
            weight.copy_(start[name] * mask)
        weight.register_hook(lambda gradient, mask=mask: gradient * mask)
    return collection


class DeepFMTrain(nn.Module):
    """What DLRMTrain is for DLRM."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.loss_fn = nn.BCELoss()  # DeepFM ends in a sigmoid

    def forward(self, batch: Batch) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        clicks = self.model(batch.dense_features, batch.sparse_features).squeeze(-1)
        loss = self.loss_fn(clicks, batch.labels.float())
        return loss, (loss.detach(), clicks.detach(), batch.labels)


def make_model(kind: str, collection: Any) -> nn.Module:
    """A training module over a collection; the same starting weights at every call."""
    torch.manual_seed(3)
    if kind == "deepfm":
        return DeepFMTrain(SimpleDeepFMNN(DENSE, collection, 12, 6))
    layers: dict[str, Any] = {
        "dense_in_features": DENSE,
        "dense_arch_layer_sizes": [12, DIM],
        "over_arch_layer_sizes": [8, 1],
    }
    if kind == "dlrm":
        return DLRMTrain(DLRM(collection, **layers))
    if kind == "dlrm_dcn":
        return DLRMTrain(DLRM_DCN(collection, dcn_num_layers=2, dcn_low_rank_dim=4, **layers))
    layers["over_arch_layer_sizes"] = [8, 1]
    return DLRMTrain(
        DLRM_Projection(
            collection,
            interaction_branch1_layer_sizes=[2 * DIM],
            interaction_branch2_layer_sizes=[2 * DIM],
            **layers,
        )
    )


def batch(step: int, rank: int = 0, world: int = 1) -> Batch:
    """A rank's part of a step's global batch, one id a feature and sometimes two or none."""
    rng = np.random.default_rng(1000 + step)
    lengths = rng.choice([0, 1, 1, 1, 2], (len(ROWS), BATCH))
    ids = [
        [rng.integers(0, rows, n) for n in bags] for rows, bags in zip(ROWS, lengths, strict=True)
    ]
    dense = torch.from_numpy(rng.standard_normal((BATCH, DENSE))).float()
    labels = torch.from_numpy(rng.integers(0, 2, BATCH))
    own = slice(rank * BATCH // world, (rank + 1) * BATCH // world)
    values = np.concatenate([bag for bags in ids for bag in bags[own]])
    sparse = KeyedJaggedTensor(
        keys=FEATURES,
        values=torch.from_numpy(values),
        lengths=torch.from_numpy(np.ascontiguousarray(lengths[:, own]).reshape(-1)),
    )
    return Batch(dense[own], sparse, labels[own])
