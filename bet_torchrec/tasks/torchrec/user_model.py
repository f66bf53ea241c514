"""A user's model around a slot, and what it says of a batch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import InvalidInputError
from .slots import BagSlot, SequenceSlot


def predict_clicks(model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
    """Logits and labels of a batch as TorchRec's own data sets give them."""
    if not all(hasattr(batch, n) for n in ("dense_features", "sparse_features", "labels")):
        raise InvalidInputError(
            "a batch should be TorchRec's Batch (dense_features, sparse_features, labels), got "
            f"{type(batch).__name__}: pass predict=, a function from (model, batch) to (logits, "
            "labels), or loss= and metric="
        )
    logits = model(batch.dense_features, batch.sparse_features)
    return logits.flatten(), batch.labels


@dataclass(frozen=True)
class Quality:
    """What a metric of the user's own says."""

    quality: float

    def mean(self) -> dict[str, float]:
        return {"quality": self.quality}


class Slotted(nn.Module):
    """A user's model and the slot in it."""

    def __init__(self, model: nn.Module, slot: BagSlot | SequenceSlot) -> None:
        super().__init__()
        self.model = model
        self._slot = [slot]  # a list: it is registered within the model already


def slot_of(model: nn.Module) -> BagSlot | SequenceSlot:
    """Where a model of ``TorchRecTask.new_model`` looks up."""
    slot: BagSlot | SequenceSlot = model._slot[0]  # type: ignore[index, assignment]
    return slot


def inner(model: nn.Module) -> nn.Module:
    """The user's own module."""
    found: nn.Module = model.model  # type: ignore[assignment]
    return found


@contextmanager
def evaluating(model: nn.Module, embedding: Any) -> Iterator[None]:
    """Evaluation mode over an embedding module, without gradients."""
    was_training = model.training
    model.eval()
    try:
        with slot_of(model).holding(embedding), torch.no_grad():
            yield
    finally:
        model.train(was_training)
