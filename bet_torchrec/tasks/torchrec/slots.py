"""Any embedding module with the interface of TorchRec's collections.

A user's model is built once around a slot, and what is in the slot changes from call to call: full
tables, a plan's sizes, quantised rows, or a collection that TorchRec sharded.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchrec.modules.embedding_configs import EmbeddingBagConfig, EmbeddingConfig, PoolingType
from torchrec.modules.embedding_modules import get_embedding_names_by_table
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedJaggedTensor, KeyedTensor

from ...errors import InvalidInputError
from ...models.protocol import EmbeddingModule


@dataclass(frozen=True)
class _Output:
    """One feature of one table. key: its name in the output."""

    feature: str
    key: str


class _Slot(nn.Module):
    """What is looked up in, while a model is called."""

    def __init__(self, tables: Sequence[Any]) -> None:
        super().__init__()
        self._tables = tuple(tables)
        names = get_embedding_names_by_table([_with_features(table) for table in tables])
        self._outputs = {
            table.name: tuple(_Output(f, k) for f, k in zip(table.feature_names, keys, strict=True))
            for table, keys in zip(tables, names, strict=True)
        }
        self._held: list[Any] = []  # a list: a module in an attribute would be one of ours

    @contextmanager
    def holding(self, embedding: Any) -> Iterator[None]:
        """Look up in this embedding module, within the context."""
        self._held.append(embedding)
        try:
            yield
        finally:
            self._held.pop()

    @property
    def _embedding(self) -> Any:
        if not self._held:
            raise InvalidInputError(
                "this model was built for a search and holds no tables: deploy a plan with "
                "TorchRecTask.deploy, or call it within holding(embedding)"
            )
        return self._held[-1]

    def _rows(self, table: Any, features: KeyedJaggedTensor) -> list[tuple[str, Any, Tensor]]:
        """(key, ids, rows (N, embedding_dim)) of each of a table's features."""
        embedding: EmbeddingModule = self._embedding
        outputs = self._outputs[table.name]
        jagged = [features[output.feature] for output in outputs]
        ids = [part.values().long() for part in jagged]
        every = ids[0] if len(ids) == 1 else torch.cat(ids)
        rows = _fitted(embedding.lookup(table.name, every), table.embedding_dim)
        parts = rows.split([len(part) for part in ids])
        return [(o.key, j, r) for o, j, r in zip(outputs, jagged, parts, strict=True)]


class BagSlot(_Slot):
    """As an EmbeddingBagCollection: a KeyedJaggedTensor in, a KeyedTensor out."""

    def __init__(self, tables: Sequence[EmbeddingBagConfig], *, is_weighted: bool = False) -> None:
        super().__init__(tables)
        self._is_weighted = is_weighted

    def forward(self, features: KeyedJaggedTensor) -> KeyedTensor:
        """Pooled rows by feature, embedding_dim wide each."""
        if hasattr(self._embedding, "bags"):
            found: KeyedTensor = self._embedding.bags(features)
            return found
        keys, dims, values = [], [], []
        for table in self._tables:
            mean = table.pooling is PoolingType.MEAN
            for key, jagged, rows in self._rows(table, features):
                keys.append(key)
                dims.append(table.embedding_dim)
                values.append(pooled(rows, jagged, mean=mean, weighted=self._is_weighted))
        return KeyedTensor(keys, dims, torch.cat(values, dim=1))

    def embedding_bag_configs(self) -> list[EmbeddingBagConfig]:
        return list(self._tables)

    def is_weighted(self) -> bool:
        return self._is_weighted


class SequenceSlot(_Slot):
    """As an EmbeddingCollection: a KeyedJaggedTensor in, {feature: JaggedTensor} out."""

    def forward(self, features: KeyedJaggedTensor) -> dict[str, JaggedTensor]:
        """Rows by feature, (ids, embedding_dim) each."""
        if hasattr(self._embedding, "sequences"):
            found: dict[str, JaggedTensor] = self._embedding.sequences(features)
            return found
        return {
            key: JaggedTensor(
                values=rows, lengths=jagged.lengths(), weights=jagged.weights_or_none()
            )
            for table in self._tables
            for key, jagged, rows in self._rows(table, features)
        }

    def embedding_configs(self) -> list[EmbeddingConfig]:
        return list(self._tables)

    def embedding_dim(self) -> int:
        return int(self._tables[0].embedding_dim)

    def need_indices(self) -> bool:
        return False


def pooled(rows: Tensor, jagged: JaggedTensor, *, mean: bool, weighted: bool) -> Tensor:
    """(B, d): sums or means of each bag's rows (N, d); an empty bag reads as zeros."""
    lengths = jagged.lengths()
    if weighted:
        rows = rows * jagged.weights()[:, None].to(rows.dtype)
    if len(rows) == len(lengths) and bool((lengths == 1).all()):
        return rows
    owners = torch.repeat_interleave(torch.arange(len(lengths), device=rows.device), lengths)
    sums = rows.new_zeros(len(lengths), rows.shape[1]).index_add(0, owners, rows)
    return sums / lengths.clamp(min=1)[:, None] if mean else sums


def _fitted(rows: Tensor, dim: int) -> Tensor:
    """Cut or zero-padded to ``dim`` columns."""
    if rows.shape[1] == dim:
        return rows
    return F.pad(rows[:, :dim], (0, max(0, dim - rows.shape[1])))


def _with_features(table: Any) -> Any:
    if not table.feature_names:
        table.feature_names = [table.name]  # as TorchRec's collections do
    return table
