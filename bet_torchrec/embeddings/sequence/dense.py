"""A mend: FBGEMM's dense tables on CPU pool the bags that they were told not to pool.

TorchRec's unpooled data-parallel tables are such, and so are all with dense kernels. Its own
collection is silently wrong there wherever bags have other than one id (fbgemm_gpu 1.8).
"""

from __future__ import annotations

import torch.nn.functional as F
from fbgemm_gpu.split_table_batched_embeddings_ops_common import PoolingMode
from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
    DenseTableBatchedEmbeddingBagsCodegen,
)
from torch import Tensor, nn


class UnpooledDenseTables(DenseTableBatchedEmbeddingBagsCodegen):
    """The same tables, whose forward gives a row for each id."""

    def forward(
        self,
        indices: Tensor,
        offsets: Tensor,
        per_sample_weights: Tensor | None = None,
        feature_requires_grad: Tensor | None = None,
        batch_size_per_feature_per_rank: list[list[int]] | None = None,
    ) -> Tensor:
        """indices: (ids,), feature by feature; offsets: (features * batch + 1,) -> (ids, width)."""
        features = len(self.weights_offsets)
        width = self.max_D  # of all of these tables, as they are not pooled
        starts = self.weights_offsets // width
        ends = offsets.view(-1)[:: (len(offsets) - 1) // features]
        first = starts.repeat_interleave(ends.diff(), output_size=len(indices))
        return F.embedding(indices + first, self.weights.view(-1, width)).float()


def mend_dense_tables(lookups: list[nn.Module]) -> None:
    """Have dense tables inside these lookups give a row for each id, where FBGEMM does not."""
    for module in (part for lookup in lookups for part in lookup.modules()):
        if type(module) is not DenseTableBatchedEmbeddingBagsCodegen:
            continue
        unpooled = module.pooling_mode == PoolingMode.NONE
        if unpooled and module.weights.device.type == "cpu":
            module.__class__ = UnpooledDenseTables  # its state stays what and where it is
