"""Pooled lookups in coded tables: an EmbeddingBagCollection to serve from.

One pass decodes and pools every bag's coordinates, each column in its own bits; then each table's
pooled coordinates are multiplied by its axes, once a batch (pooling is linear).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import Proxy
from torchrec.modules.embedding_configs import EmbeddingBagConfig, PoolingType
from torchrec.modules.embedding_modules import get_embedding_names_by_table
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor, KeyedTensor

from ...errors import InvalidInputError
from ...serving.column_codes import AXIS_UNIT, CodedTable
from ..native.batch import batch_of
from ..native.build import available
from ..native.calls import IdFault
from ..routing import IdRangeError
from ..tracing import NotScriptable, as_leaf
from .memory import blocks_in, described, gathered


class CodedEmbeddingBagCollection(NotScriptable, nn.Module):
    """As an EmbeddingBagCollection of the tables, a KeyedJaggedTensor in and a KeyedTensor out.

    On the CPU, for inference only. What it holds are the codes' own bytes.

    Args:
        tables: the full tables' configs. coded: their codes, by name. is_weighted: bags have
            weights.

    Raises:
        InvalidInputError: codes of other tables, rows or dimensions.
    """

    rows: Tensor
    id_maps: Tensor | None

    def __init__(
        self,
        tables: Sequence[EmbeddingBagConfig],
        coded: Mapping[str, CodedTable],
        *,
        is_weighted: bool = False,
    ) -> None:
        super().__init__()
        _check(tables, coded)
        self.tables, self._is_weighted = tuple(tables), is_weighted
        ordered = {table.name: coded[table.name] for table in tables}
        buffer, maps, self._shapes = gathered(ordered)
        self.register_buffer("rows", buffer)
        self.register_buffer("id_maps", maps)
        distinct = {id(table.axes): table.axes for table in ordered.values()}
        distinct.pop(id(None), None)
        numbers = {key: number for number, key in enumerate(distinct)}
        for number, axes in enumerate(distinct.values()):
            self.register_buffer(f"axes_{number}", torch.from_numpy(np.array(axes)))
        self._axes = {name: numbers.get(id(table.axes)) for name, table in ordered.items()}
        keys = get_embedding_names_by_table([_with_features(table) for table in tables])
        slots = [
            (feature, table, key)
            for table, own in zip(tables, keys, strict=True)
            for feature, key in zip(table.feature_names, own, strict=True)
        ]
        self._features = [feature for feature, _, _ in slots]
        self._slot_tables = [table.name for _, table, _ in slots]
        self._keys = [key for _, _, key in slots]
        self._dims = [table.embedding_dim for _, table, _ in slots]
        means = [table.pooling is PoolingType.MEAN for _, table, _ in slots]
        self._means = means
        self._laid, self._starts, self._columns = described(
            self._shapes, list(zip(self._slot_tables, means, strict=True))
        )

    def forward(self, features: KeyedJaggedTensor) -> KeyedTensor:
        """Look up and pool; fp32."""
        if isinstance(features, Proxy):
            return as_leaf(self, features)
        pooled = self._pooled(features) if available() else self._pooled_by_numpy(features)
        tables = zip(self._slot_tables, self._columns, self._dims, strict=False)
        values = [self._turned(name, pooled, first, dim) for name, first, dim in tables]
        joined = values[0] if len(values) == 1 else torch.cat(values, dim=1)
        return KeyedTensor(self._keys, self._dims, joined)

    def _turned(self, name: str, pooled: Tensor, first: int, dim: int) -> Tensor:
        columns = pooled[:, first : first + self._shapes[name].columns]
        axes = self.axes(name)
        if axes is None:
            return F.pad(columns, (0, dim - columns.shape[1]))
        return columns @ (axes / AXIS_UNIT if axes.dtype == torch.int8 else axes)

    def _pooled(self, features: KeyedJaggedTensor) -> Tensor:
        """Coordinates (B, all tables' columns in whole eights)."""
        try:
            return torch.ops.bet_torchrec.serve(
                self.rows,
                self._starts,
                self._places(features),
                self._columns[-1],
                *batch_of(features, weighted=self._is_weighted),
                self._laid.slots,
                self._laid.tables,
                self._laid.blocks,
                self.id_maps,
            )
        except IdFault:
            self._report(features)
            raise

    def _pooled_by_numpy(self, features: KeyedJaggedTensor) -> Tensor:
        """The same where there is no C++ compiler, more slowly."""
        self._report(features)
        bags, pooled = features.stride(), []
        for feature, name, mean in zip(self._features, self._slot_tables, self._means, strict=True):
            own = features[feature]
            rows = torch.from_numpy(self.coded(name).coordinates(own.values().numpy()))
            if self._is_weighted:
                rows = rows * own.weights()[:, None]
            lengths = own.lengths()
            owners = torch.repeat_interleave(torch.arange(bags), lengths)
            sums = rows.new_zeros(bags, rows.shape[1]).index_add(0, owners, rows)
            if mean:
                sums = sums / lengths.clamp(min=1)[:, None]
            pooled.append(F.pad(sums, (0, self._shapes[name].width - rows.shape[1])))
        return torch.cat(pooled, dim=1)

    def _places(self, features: KeyedJaggedTensor) -> list[int]:
        keys = features.keys()
        try:
            return [keys.index(feature) for feature in self._features]
        except ValueError:
            raise InvalidInputError(
                f"a batch should have features {self._features}, got {keys}"
            ) from None

    def _report(self, features: KeyedJaggedTensor) -> None:
        """Raise IdRangeError for the first feature with an id out of range."""
        self._places(features)
        for feature, name in zip(self._features, self._slot_tables, strict=True):
            ids, rows = features[feature].values(), self._shapes[name].rows
            wrong = ids[(ids < 0) | (ids >= rows)]
            if len(wrong):
                raise IdRangeError(
                    f"feature {feature!r}: ids of table {name!r} should be 0 to {rows - 1}, got "
                    f"{wrong[0].item()} (and {len(wrong) - 1} more)"
                )

    def coded(self, name: str) -> CodedTable:
        """A table's codes, as views of what is held."""
        shape, axes, id_map = self._shapes[name], self.axes(name), None
        if shape.map_start is not None:
            assert self.id_maps is not None
            id_map = self.id_maps.numpy()[shape.map_start : shape.map_start + shape.rows]
        blocks = tuple(blocks_in(self.rows, shape))
        kept = None if axes is None else axes.numpy()
        return CodedTable(name, shape.dim, blocks, kept, id_map)

    def axes(self, name: str) -> Tensor | None:
        """(columns, embedding_dim) of a table, None where its columns are the rows' own."""
        number = self._axes[name]
        found: Tensor | None = None if number is None else getattr(self, f"axes_{number}")
        return found

    def allocated_bytes(self) -> int:
        """Of all that is held: rows, grids, axes, id maps. What ``coded_bytes`` counts."""
        return sum(buffer.nbytes for buffer in self.buffers())

    def embedding_bag_configs(self) -> list[EmbeddingBagConfig]:
        """The full tables' configs, as they were given."""
        return list(self.tables)

    def is_weighted(self) -> bool:
        """Whether bags have weights."""
        return self._is_weighted

    def _apply(
        self, fn: Callable[[Tensor], Tensor], recurse: bool = True
    ) -> CodedEmbeddingBagCollection:
        # Codes take no other type, and there is no kernel elsewhere.
        probe = torch.empty(0, dtype=torch.uint8)
        if fn(probe).device != probe.device:
            raise InvalidInputError(
                "coded tables are served on the CPU, elsewhere look rows up in "
                "column_codes.CodedEmbedding"
            )
        return self

    def extra_repr(self) -> str:
        return f"{len(self.tables)} tables, {self.allocated_bytes():,} bytes"


def _check(tables: Sequence[Any], coded: Mapping[str, CodedTable]) -> None:
    wanted = {table.name: (table.num_embeddings, table.embedding_dim) for table in tables}
    got = {name: (table.rows, table.embedding_dim) for name, table in coded.items()}
    if not wanted or wanted != got:
        raise InvalidInputError(f"expected codes of tables (rows, dim) {wanted}, got {got}")


def _with_features(table: Any) -> Any:
    if not table.feature_names:
        table.feature_names = [table.name]  # as TorchRec's collections do
    return table
