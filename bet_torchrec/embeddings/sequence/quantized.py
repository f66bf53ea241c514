"""The serving form of unpooled tables: each a pooled one, whose bags are single ids."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Proxy
from torchrec.modules.embedding_configs import EmbeddingBagConfig, EmbeddingConfig
from torchrec.modules.embedding_modules import EmbeddingCollectionInterface
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedJaggedTensor

from ...axes import Basis
from ...planning.plan import SizePlan
from ..layout import Block, Layout, RowOrder
from ..quantization.collection import QuantizedBudgetedEmbeddingBagCollection
from ..quantization.export import export_tables
from ..quantization.saved import load_saved
from ..tracing import NotScriptable, as_leaf
from .bags import bags_of, named
from .module import planned_tables


class QuantizedBudgetedEmbeddingCollection(NotScriptable, EmbeddingCollectionInterface):
    """Unpooled lookups in quantised rows of a plan's sizes; for inference only.

    Same input and output as ``BudgetedEmbeddingCollection``. Made by ``quantize`` or ``load``;
    made directly, all rows are zeros.

    Args:
        tables, plan, layout, row_order, need_indices: as there.
        precisions, alignment, device: as for ``QuantizedBudgetedEmbeddingBagCollection``.
    """

    def __init__(
        self,
        tables: Sequence[EmbeddingConfig],
        plan: SizePlan,
        *,
        layout: Layout = "bucketed",
        row_order: RowOrder = "ranked",
        need_indices: bool = False,
        precisions: Mapping[str, str] | None = None,
        alignment: int | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        front = planned_tables(tables, plan, layout, row_order)
        self.tables, self.plan = tuple(tables), plan
        self.layout, self.row_order = layout, row_order
        self.slots = front.router.slots
        self._embedding_dim, self._need_indices = tables[0].embedding_dim, need_indices
        self.collections = nn.ModuleList(
            QuantizedBudgetedEmbeddingBagCollection(
                [
                    EmbeddingBagConfig(
                        name=table.name,
                        num_embeddings=table.num_embeddings,
                        embedding_dim=table.embedding_dim,
                        feature_names=[table.name],
                    )
                ],
                plan,
                layout=layout,
                row_order=row_order,
                precisions=precisions,
                alignment=alignment,
                device=device,
            )
            for table in tables
        )

    @property
    def _by_table(self) -> dict[str, Any]:
        # By place, because a module's name takes no dots and a table's does.
        return {table.name: own for table, own in zip(self.tables, self.collections, strict=True)}

    @property
    def blocks(self) -> dict[str, tuple[Block, ...]]:
        """By table, as they are stored."""
        return {name: own.blocks[name] for name, own in self._by_table.items()}

    @property
    def alignment(self) -> int:
        """Bytes that rows are rounded up to."""
        alignment: int = next(iter(self._by_table.values())).alignment
        return alignment

    def forward(self, features: KeyedJaggedTensor) -> dict[str, JaggedTensor]:
        """Look up; see the class."""
        if isinstance(features, Proxy):
            return as_leaf(self, features)
        bags = bags_of(features, self.slots)
        rows: list[Tensor] = [bag.values() for bag in bags]
        for name, own in self._by_table.items():
            places = [i for i, slot in enumerate(self.slots) if slot.table == name]
            ids = torch.cat([bags[i].values() for i in places])
            single = KeyedJaggedTensor(
                keys=[name], values=ids, lengths=torch.ones_like(ids, dtype=torch.int32)
            )
            counts = [bags[i].values().numel() for i in places]
            for i, part in zip(places, own(single).values().split(counts), strict=True):
                rows[i] = part
        return named(self.slots, bags, rows, need_indices=self._need_indices)

    def embedding_configs(self) -> list[EmbeddingConfig]:
        """The full tables' configs, as they were given."""
        return list(self.tables)

    def need_indices(self) -> bool:
        """Whether the output's weights are the ids."""
        return self._need_indices

    def embedding_dim(self) -> int:
        """Columns of the output."""
        return self._embedding_dim

    def embedding_names_by_table(self) -> list[list[str]]:
        """The output's keys, by table."""
        return [[s.key for s in self.slots if s.table == table.name] for table in self.tables]

    def table_bases(self) -> dict[str, Basis]:
        """{table: its axes}, of the tables that have some."""
        return {
            n: basis for own in self._by_table.values() for n, basis in own.table_bases().items()
        }

    def put_bases(self, bases: Mapping[str, Basis]) -> None:
        """Copy tables' axes in."""
        for name, basis in bases.items():
            self._by_table[name].put_bases({name: basis})

    def packed_rows(self, block: Block) -> Tensor:
        """The real table of a block as its bytes, uint8 (rows, bytes of an aligned row)."""
        rows: Tensor = self._by_table[block.table].packed_rows(block)
        return rows

    def put_rows(self, block: Block, start: int, rows: Tensor) -> None:
        """Write packed rows, uint8 (n, ``row_bytes``), from row ``start`` of a block on."""
        self._by_table[block.table].put_rows(block, start, rows)

    def full_tables(self) -> dict[str, Tensor]:
        """{name: (rows, embedding_dim)} on the CPU in id order, as the rows read."""
        return {name: own.full_tables()[name] for name, own in self._by_table.items()}

    def allocated_bytes(self) -> dict[str, int]:
        """{table: bytes of its rows, its basis and its id map}, as allocated, with all padding."""
        return {name: own.allocated_bytes()[name] for name, own in self._by_table.items()}

    def save(self, path: str | Path) -> Path:
        """Write one file (safetensors, no pickle), whole or not at all; see ``export_tables``."""
        return export_tables(self, path)

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        need_indices: bool = False,
        device: torch.device | str | None = None,
        alignment: int | None = None,
    ) -> QuantizedBudgetedEmbeddingCollection:
        """What ``save`` or ``export_tables`` wrote of an unpooled collection, bit by bit.

        alignment: as for the class; the saved one unless given.

        Raises:
            TableFileError: corrupted, foreign, of pooled tables, or written by a newer version.
            FileNotFoundError: no such file.
        """
        make = partial(cls, need_indices=need_indices, device=device)
        return load_saved(path, make, EmbeddingConfig, alignment=alignment)

    def _apply(
        self, fn: Callable[[Tensor], Tensor], recurse: bool = True
    ) -> QuantizedBudgetedEmbeddingCollection:
        for own in self.collections:  # each of which refuses to move
            own._apply(fn, recurse)
        return self

    def extra_repr(self) -> str:
        return f"plan={self.plan.fingerprint()}, layout={self.layout!r}, alignment={self.alignment}"
