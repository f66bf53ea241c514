"""The serving form of a collection: rows in the plan's precisions, as bytes the budget counted.

Holds TorchRec's quantised EmbeddingBagCollection, one table a block, each in its own precision.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Proxy
from torchrec.modules.embedding_configs import EmbeddingBagConfig, PoolingType
from torchrec.quant.embedding_modules import EmbeddingBagCollection as QuantEmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor, KeyedTensor

from ...axes import Basis
from ...errors import InvalidInputError
from ...planning.plan import SizePlan
from ..bases import coordinate_plan
from ..layout import Block, Layout, RowOrder
from ..module import BudgetedEmbeddingBagCollection
from ..tracing import NotScriptable, as_leaf
from .export import export_tables, packed_table
from .one_pass import OnePass
from .packing import CUDA_ALIGNMENT, DATA_TYPES, stored_width
from .saved import load_saved


class QuantizedBudgetedEmbeddingBagCollection(NotScriptable, nn.Module):
    """Pooled lookups in quantised rows of a plan's sizes; for inference only.

    Same input and output as ``BudgetedEmbeddingBagCollection``, fp32 values; bases stay in fp32 and
    multiply what is pooled. Made by ``quantize``
    or ``load``; made directly, all rows are zeros.

    Args:
        tables, plan, layout, row_order, is_weighted: as there.
        precisions: {block name: precision}, where it isn't the plan's.
        alignment: bytes that a row is rounded up to. Unless given, what the plan's inference
            budget counted, else 1 on CPU and 16 on CUDA (whose kernels need 16).
        device: of the rows, for good; "cpu" unless given.

    The plan's ``order``, which the plan object keeps on the host, is not part of any account: the
    id maps made from it are.
    """

    def __init__(
        self,
        tables: Sequence[EmbeddingBagConfig],
        plan: SizePlan,
        *,
        layout: Layout = "bucketed",
        row_order: RowOrder = "ranked",
        is_weighted: bool = False,
        precisions: Mapping[str, str] | None = None,
        alignment: int | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        # What a batch goes through before and after its lookup is the same as in training.
        front = BudgetedEmbeddingBagCollection(
            tables,
            plan,
            layout=layout,
            is_weighted=is_weighted,
            device="meta",
            row_order=row_order,
        )
        self.tables, self.plan = front.tables, plan
        self.layout, self.row_order = layout, row_order
        self.router, self.merger = front.router, front.merger
        self.device = torch.device("cpu" if device is None else device)
        self.bases = front.bases.on(self.device, train=False)
        self.alignment = _alignment(plan, alignment, self.device)
        self.blocks = {
            name: tuple(
                dataclasses.replace(b, precision=(precisions or {}).get(b.name, b.precision))
                for b in own
            )
            for name, own in front.blocks.items()
        }
        configs = front.embedding_bag_collection.embedding_bag_configs()
        features = {config.name: config.feature_names for config in configs}
        self._widths = {
            key: block.width
            for own in self.blocks.values()
            for block in own
            for key in features[block.name]
        }
        self.embedding_bag_collection = QuantEmbeddingBagCollection(
            tables=[
                EmbeddingBagConfig(
                    name=block.name,
                    num_embeddings=block.rows,
                    embedding_dim=self._stored_width(block),
                    feature_names=features[block.name],
                    pooling=PoolingType.SUM,
                    data_type=DATA_TYPES[block.precision],
                )
                for own in self.blocks.values()
                for block in own
            ],
            is_weighted=is_weighted,
            device=self.device,
            row_alignment=self.alignment,
        )
        self._is_weighted = is_weighted
        self._one_pass = OnePass(
            self.router,
            {table.name: coordinate_plan(plan[table.name]) for table in self.tables},
            self.blocks,
            {b.name: self.packed_rows(b) for own in self.blocks.values() for b in own},
        )
        self.register_load_state_dict_post_hook(_tie)

    def _stored_width(self, block: Block) -> int:
        return stored_width(block.width, block.precision, self.alignment)

    def forward(self, features: KeyedJaggedTensor) -> KeyedTensor:
        """Look up and pool; see the class."""
        if isinstance(features, Proxy):
            return as_leaf(self, features)
        inner, width = self.embedding_bag_collection, self.merger.width
        if self._one_pass.takes(inner, features):
            columns = self._one_pass(inner, features, width, weighted=self._is_weighted)
            return self.bases.output(self.merger.output(columns))
        features = self.router.select(features)
        routed = self.router(features)
        if not self.router.keys:
            nothing = torch.zeros(features.stride(), width, device=features.device())
            return self.bases.output(self.merger.output(nothing))
        pooled = self._cut(inner(routed))
        return self.bases.output(self.merger(pooled, self.router.scale(features)))

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        _tie(self)

    def _cut(self, pooled: KeyedTensor) -> KeyedTensor:
        """Without the columns that only fill up rows. Sharding reorders keys."""
        keys = pooled.keys()
        widths = [self._widths[key] for key in keys]
        if widths == pooled.length_per_key():
            return pooled
        parts = pooled.values().split(pooled.length_per_key(), dim=1)
        kept = [part.narrow(1, 0, width) for part, width in zip(parts, widths, strict=True)]
        return KeyedTensor(keys=keys, length_per_key=widths, values=torch.cat(kept, dim=1))

    def embedding_bag_configs(self) -> list[EmbeddingBagConfig]:
        """The full tables' configs, as they were given."""
        return list(self.tables)

    def is_weighted(self) -> bool:
        """Whether bags have weights."""
        return self._is_weighted

    def table_bases(self) -> dict[str, Basis]:
        """{table: its axes}, of the tables that have some; fp32, as trained."""
        return self.bases.told()

    def put_bases(self, bases: Mapping[str, Basis]) -> None:
        """Copy tables' axes in."""
        self.bases.put(bases)

    def packed_rows(self, block: Block) -> Tensor:
        """The real table of a block as its bytes, uint8 (rows, bytes of an aligned row)."""
        weight: Tensor = self.embedding_bag_collection.embedding_bags[block.name].weight
        return weight.view(torch.uint8)

    def full_tables(self) -> dict[str, Tensor]:
        """{name: (rows, embedding_dim)} on the CPU in id order, as the rows read."""
        names = [table.name for table in self.tables]
        pieces = {name: packed_table(self, name).chunks() for name in names}
        return {name: torch.cat([torch.from_numpy(p) for p in own]) for name, own in pieces.items()}

    def allocated_bytes(self) -> dict[str, int]:
        """{table: bytes of its rows, its basis and its id map}, as allocated, with all padding.

        Equal to the table's cost in its plan, if the budget is one of inference bytes and the
        layout, precisions and alignment are the plan's.
        """
        rows = {b.name: self.packed_rows(b) for own in self.blocks.values() for b in own}
        # All blocks lie in one buffer, each to the next one's start.
        starts = sorted(int(part.storage_offset()) for part in rows.values())
        ends = [*starts[1:], *[part.untyped_storage().nbytes() for part in rows.values()][:1]]
        size = {start: end - start for start, end in zip(starts, ends, strict=True)}
        found = {}
        for table in self.tables:
            order = self.plan[table.name].order
            axes = self.bases.axes(table.name)
            found[table.name] = 0 if order is None else order.nbytes
            found[table.name] += 0 if axes is None else axes.nbytes
            for block in self.blocks[table.name]:
                found[table.name] += size[int(rows[block.name].storage_offset())]
        return found

    def save(self, path: str | Path) -> Path:
        """Write one file (safetensors, no pickle), whole or not at all; see ``export_tables``."""
        return export_tables(self, path)

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        device: torch.device | str | None = None,
        alignment: int | None = None,
    ) -> QuantizedBudgetedEmbeddingBagCollection:
        """What ``save`` or ``export_tables`` wrote, bit by bit the same rows.

        alignment: as for the class; the saved one unless given.

        Raises:
            TableFileError: corrupted, foreign, or written by a newer version.
            FileNotFoundError: no such file.
        """
        make = partial(cls, device=device)
        return load_saved(path, make, EmbeddingBagConfig, alignment=alignment)

    def put_rows(self, block: Block, start: int, rows: Tensor) -> None:
        """Write packed rows, uint8 (n, ``row_bytes``), from row ``start`` of a block on."""
        self.packed_rows(block)[start : start + len(rows), : rows.shape[1]].copy_(rows)

    def _apply(
        self, fn: Callable[[Tensor], Tensor], recurse: bool = True
    ) -> QuantizedBudgetedEmbeddingBagCollection:
        # TorchRec's lookups would stay behind, and packed rows take no other type.
        probe = torch.empty(0, dtype=torch.uint8, device=self.device)
        if fn(probe).device != probe.device:
            raise InvalidInputError(
                f"a quantised collection stays on its device, {self.device}: make it where it is "
                "to serve, quantize(..., device=) or load(..., device=)"
            )
        return self

    def extra_repr(self) -> str:
        return f"plan={self.plan.fingerprint()}, layout={self.layout!r}, alignment={self.alignment}"


def _tie(module: QuantizedBudgetedEmbeddingBagCollection, *_: Any) -> None:
    module._one_pass.tie(module.embedding_bag_collection)


def _alignment(plan: SizePlan, wanted: int | None, device: torch.device) -> int:
    if wanted is None and plan.budget.purpose == "inference":
        wanted = plan.budget.alignment
    if wanted is None:
        wanted = 1 if device.type == "cpu" else CUDA_ALIGNMENT
    if wanted not in (1, 2, 4, 8, 16, 32, 64, 128):
        raise InvalidInputError(f"alignment should be a power of 2 up to 128, got {wanted!r}")
    if device.type == "cuda" and wanted % CUDA_ALIGNMENT:
        raise InvalidInputError(
            f"FBGEMM's CUDA kernels need rows aligned to {CUDA_ALIGNMENT} bytes, got {wanted}: "
            f"plan with Budget.bytes(..., alignment={CUDA_ALIGNMENT}), or pass "
            f"alignment={CUDA_ALIGNMENT}, which takes more bytes than the plan says"
        )
    return wanted
