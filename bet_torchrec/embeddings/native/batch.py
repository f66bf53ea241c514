"""A KeyedJaggedTensor as the operators take it."""

from __future__ import annotations

from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

Batch = tuple[int, int, Tensor, "Tensor | None", "Tensor | None", "Tensor | None"]


def batch_of(features: KeyedJaggedTensor, *, weighted: bool) -> Batch:
    """(features, bags, ids, lengths, offsets, weights); nothing is computed that isn't there."""
    return (
        len(features.keys()),
        features.stride(),
        features.values(),
        features.lengths_or_none(),
        features.offsets_or_none(),
        features.weights() if weighted else None,
    )
