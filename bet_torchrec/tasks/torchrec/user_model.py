"""A user's model around a slot, and what it says of a batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection

from ...errors import InvalidInputError
from .slots import BagSlot, SequenceSlot

if TYPE_CHECKING:
    from ...planning.plan import SizePlan
    from ...serving.column_codes import CodedTable


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


class UserModel:
    """What makes a user's model around any collection of its tables.

    make: from a collection to the model. configs: the tables', all pooled or all unpooled.
    """

    def __init__(
        self,
        make: Callable[[nn.Module], nn.Module],
        configs: Sequence[Any],
        *,
        is_weighted: bool,
        device: torch.device,
    ) -> None:
        if not callable(make) or isinstance(make, nn.Module):
            raise InvalidInputError(
                "model should be a function from a collection to the model, as lambda ebc: "
                f"DLRM(ebc, ...), got {type(make).__name__}"
            )
        kinds = {isinstance(config, EmbeddingBagConfig) for config in configs}
        if len(kinds) != 1:
            raise InvalidInputError(
                "tables should be all EmbeddingBagConfigs or all EmbeddingConfigs, at least one"
            )
        self._make, self._configs, self._pooled = make, configs, kinds.pop()
        self._is_weighted, self._device = is_weighted, device

    def slotted(self, seed: int) -> Slotted:
        """The model around a slot: it has no tables of its own."""
        slot = (
            BagSlot(self._configs, is_weighted=self._is_weighted)
            if self._pooled
            else SequenceSlot(self._configs)
        )
        return Slotted(self._made(slot, seed).to(self._device), slot)

    def _made(self, collection: nn.Module, seed: int) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = self._make(collection)
        if not any(module is collection for module in model.modules()):
            raise InvalidInputError(
                "model should return a module that holds the collection it was given, got "
                f"{type(model).__name__} without it"
            )
        return model

    def parts_of(self, model: nn.Module) -> tuple[Slotted, dict[str, Tensor]]:
        """See ``TorchRecTask.parts_of``."""
        kind = EmbeddingBagCollection if self._pooled else EmbeddingCollection
        names = {config.name for config in self._configs}
        found = [
            (path, own)
            for path, module in model.named_modules()
            if isinstance(module, kind)
            and set(own := module.embedding_bags if self._pooled else module.embeddings) == names
        ]
        if not found:
            raise InvalidInputError(
                f"model should hold an unsharded {kind.__name__} of the tables {sorted(names)}, "
                "got none"
            )
        (path, own), weights = found[0], model.state_dict()
        tables = {name: table.weight.detach().clone() for name, table in own.items()}
        rest = {k: v for k, v in weights.items() if not k.startswith(f"{path}.")}
        made = self.slotted(0)
        try:
            inner(made).load_state_dict(rest)
        except RuntimeError as error:
            raise InvalidInputError(
                f"the model's weights are not those that model= builds: {error}"
            ) from None
        return made, tables

    def around(self, collection: nn.Module, model: nn.Module) -> nn.Module:
        """See ``TorchRecTask.around``."""
        module = self._made(collection, 0)
        weights = inner(model).state_dict()
        missing, unexpected = module.load_state_dict(weights, strict=False)
        own = [name for name, found in module.named_modules() if found is collection]
        lost = [key for key in missing if not any(key.startswith(f"{name}.") for name in own)]
        if lost or unexpected:
            raise InvalidInputError(
                f"model should build the same weights every time, got {lost + unexpected} only once"
            )
        return module

    def collection(self, plan: SizePlan, **options: Any) -> Any:
        """A planned collection of the tables, its rows freshly drawn."""
        from ... import embeddings

        if not self._pooled:
            return embeddings.BudgetedEmbeddingCollection(self._configs, plan, **options)
        return embeddings.BudgetedEmbeddingBagCollection(
            self._configs, plan, is_weighted=self._is_weighted, **options
        )

    def coded(self, tables: Mapping[str, CodedTable]) -> nn.Module:
        """See ``TorchRecTask.coded``."""
        from ...embeddings.coded import CodedEmbeddingBagCollection

        if not self._pooled:
            raise InvalidInputError(
                "coded tables are served pooled, and this model's EmbeddingCollection looks up "
                "without: read rows with column_codes.CodedEmbedding instead"
            )
        return CodedEmbeddingBagCollection(self._configs, tables, is_weighted=self._is_weighted)


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
