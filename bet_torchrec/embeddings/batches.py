"""Whether a batch contradicts itself, which lookups further down would read as something else."""

from __future__ import annotations

from torchrec.sparse.jagged_tensor import KeyedJaggedTensor
from torchrec.sparse.jagged_tensor_validator import validate_keyed_jagged_tensor

from ..errors import InvalidInputError


def check_shapes(features: KeyedJaggedTensor) -> None:
    """What can be seen without waiting for the device, so that every batch is looked at.

    Raises:
        InvalidInputError: a key twice, more or fewer weights than ids, offsets of another number
            of bags than lengths.
    """
    keys, ids = features.keys(), features.values().numel()
    if len(set(keys)) != len(keys):
        twice = sorted({key for key in keys if keys.count(key) > 1})
        raise InvalidInputError(
            f"a batch should have every key once, got {', '.join(twice)} more than once"
        )
    weights = features.weights_or_none()
    if weights is not None and weights.numel() != ids:
        raise InvalidInputError(f"expected a weight for each of {ids} ids, got {weights.numel()}")
    lengths, offsets = features.lengths_or_none(), features.offsets_or_none()
    if lengths is not None and offsets is not None and offsets.numel() != lengths.numel() + 1:
        raise InvalidInputError(
            f"expected {lengths.numel() + 1} offsets for {lengths.numel()} lengths, got "
            f"{offsets.numel()}: give one of them, the other follows from it"
        )


def check_values(features: KeyedJaggedTensor) -> None:
    """Everything that TorchRec's sharded collections look at in their first batch.

    Raises:
        InvalidInputError: lengths, offsets, ids and weights contradict each other.
    """
    try:
        validate_keyed_jagged_tensor(features)
    except ValueError as error:
        raise InvalidInputError(f"a batch contradicts itself: {error}") from error
