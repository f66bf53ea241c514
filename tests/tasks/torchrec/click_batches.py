"""A small DLRM's click data, as TorchRec's own batches."""

from __future__ import annotations

import numpy as np
import torch
from torchrec import EmbeddingBagConfig, KeyedJaggedTensor
from torchrec.datasets.utils import Batch
from torchrec.models.dlrm import DLRM

ROWS = {"shop": 40, "item": 200, "day": 7}
DIM = 8


def tables() -> list[EmbeddingBagConfig]:
    return [
        EmbeddingBagConfig(
            name=f"t_{name}", num_embeddings=rows, embedding_dim=DIM, feature_names=[name]
        )
        for name, rows in ROWS.items()
    ]


def model(collection: torch.nn.Module) -> DLRM:
    return DLRM(collection, 3, [16, DIM], [16, 1])


def batches(examples: int, *, batch_size: int = 64, seed: int = 0) -> list[Batch]:
    """Clicks that follow row and dense effects, ids with heavy tails; items come as bags."""
    truth = np.random.default_rng(99)
    effects = {name: truth.normal(size=rows) for name, rows in ROWS.items()}
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(examples // batch_size):
        dense = rng.normal(size=(batch_size, 3)).astype(np.float32)
        values, lengths, score = [], [], dense[:, 0].astype(float)
        for name, rows in ROWS.items():
            bag = rng.integers(0, 4, batch_size) if name == "item" else np.ones(batch_size, int)
            ids = (rng.random(bag.sum()) ** 2 * rows).astype(np.int64)
            owners = np.repeat(np.arange(batch_size), bag)
            score = score + np.bincount(owners, effects[name][ids], minlength=batch_size)
            values.append(ids)
            lengths.append(bag)
        labels = (rng.random(batch_size) < 1 / (1 + np.exp(-2 * score))).astype(np.float32)
        features = KeyedJaggedTensor(
            keys=list(ROWS),
            values=torch.from_numpy(np.concatenate(values)),
            lengths=torch.from_numpy(np.concatenate(lengths)),
        )
        made.append(Batch(torch.from_numpy(dense), features, torch.from_numpy(labels)))
    return made
