"""A DLRM trained on sharded tables of full width: torchrun --nproc-per-node 2 dlrm_plain.py"""

from __future__ import annotations

import numpy as np
import torch
import torch.distributed as dist
import torchrec
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from torchrec.datasets.utils import Batch
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist
from torchrec.models.dlrm import DLRM, DLRMTrain
from torchrec.optim.optimizers import in_backward_optimizer_filter

ROWS = [1460, 583, 3000, 2000, 305, 24, 2500, 633, 3, 1930]
EXAMPLES, BATCH, DENSE, DIM = 4096, 256, 13, 16


def main() -> list[float]:
    rank, world = dist.get_rank(), dist.get_world_size()
    rng = np.random.default_rng(0)
    ids = np.stack([(rows * rng.random(EXAMPLES) ** 3).astype(int) for rows in ROWS], axis=1)
    dense = rng.standard_normal((EXAMPLES, DENSE)).astype(np.float32)
    clicks = (dense[:, 0] + (ids[:, 0] < 50) > 0.8).astype(np.float32)

    tables = [
        torchrec.EmbeddingBagConfig(
            name=f"t{i}", num_embeddings=rows, embedding_dim=DIM, feature_names=[f"f{i}"]
        )
        for i, rows in enumerate(ROWS)
    ]
    ebc = torchrec.EmbeddingBagCollection(tables, device=torch.device("meta"))
    model = DLRMTrain(DLRM(ebc, DENSE, [32, DIM], [32, 1]))
    fused = {"optimizer": EmbOptimType.EXACT_ROWWISE_ADAGRAD, "learning_rate": 0.1}
    sharder = EmbeddingBagCollectionSharder(fused_params=fused)
    model = torchrec.distributed.DistributedModelParallel(
        model, device=torch.device("cpu"), sharders=[sharder]
    )
    dense_weights = [p for _, p in in_backward_optimizer_filter(model.named_parameters())]
    optimizer = torch.optim.Adagrad(dense_weights, lr=0.05)
    pipeline = TrainPipelineSparseDist(model, optimizer, torch.device("cpu"))

    def batches():
        for first in range(0, EXAMPLES, BATCH):
            own = slice(first + rank * BATCH // world, first + (rank + 1) * BATCH // world)
            yield Batch(
                torch.from_numpy(dense[own]),
                torchrec.KeyedJaggedTensor(
                    keys=[f"f{i}" for i in range(len(ROWS))],
                    values=torch.from_numpy(ids[own].T.copy().reshape(-1)),
                    lengths=torch.ones(ids[own].size, dtype=torch.int64),
                ),
                torch.from_numpy(clicks[own]),
            )

    stream, losses = batches(), []
    for _ in range(EXAMPLES // BATCH):
        loss, _, _ = pipeline.progress(stream)
        losses.append(loss.item())
    return losses


if __name__ == "__main__":
    dist.init_process_group("gloo")
    print(main())  # noqa: T201
    dist.destroy_process_group()
