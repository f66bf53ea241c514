"""Tables out of TorchRec: as the rows they are, or dense; readable without TorchRec and FBGEMM."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torchrec.modules.embedding_configs import BaseEmbeddingConfig, EmbeddingBagConfig

from ...axes import Basis
from ...errors import InvalidInputError
from ...files.tensors import Entry, write_file
from ...planning.plan import SizePlan
from ...serving import files
from ...serving.packed import PackedBlock, PackedTable
from ..layout import Block, Layout, RowOrder
from ..module import BudgetedEmbeddingBagCollection
from ..sequence.module import BudgetedEmbeddingCollection
from .packing import row_bytes
from .saved import UNPOOLED, id_map

Trained: TypeAlias = BudgetedEmbeddingBagCollection | BudgetedEmbeddingCollection

_PIECE = 1 << 16  # rows


class ServingCollection(Protocol):
    """A collection whose rows are packed, such as a quantised one."""

    tables: tuple[BaseEmbeddingConfig, ...]
    plan: SizePlan
    layout: Layout
    row_order: RowOrder

    @property
    def blocks(self) -> Mapping[str, tuple[Block, ...]]: ...

    def table_bases(self) -> Mapping[str, Basis]: ...

    def packed_rows(self, block: Block) -> Tensor:
        """A block's rows, uint8 (rows, at least ``row_bytes``)."""
        ...


def export_tables(module: Trained | ServingCollection, path: str | Path) -> Path:
    """Write the rows as they are: one tensor a block, id maps, and the plan; returns the path.

    One safetensors file, no pickle, whole or not at all. Read rows back by
    ``bet_torchrec.serving.read_tables``, which needs numpy alone, or the whole as a module by
    ``QuantizedBudgetedEmbeddingBagCollection.load``.

    Raises:
        InvalidInputError: a sharded module, or one whose weights are on "meta".
    """
    entries, told = [], []
    arrays = {table.name: packed_table(module, table.name) for table in module.tables}
    for config in module.tables:
        table = arrays[config.name]
        if table.id_map is not None:
            entries.append(_whole(f"id_map/{table.name}", "I32", table.id_map))
        if table.axes is not None:
            entries.append(_whole(f"axes/{table.name}", "F32", table.axes))
        told.append(_described(config, table))
    for table in arrays.values():
        entries += [_whole(f"rows/{b.name}", "U8", b.data) for b in table.blocks]
    plan = np.frombuffer(_without_orders(module).to_bytes(), dtype=np.uint8)
    entries.append(_whole("plan", "U8", plan))
    header = {
        "tables": told,
        "plan": module.plan.fingerprint(),
        "layout": module.layout,
        "row_order": module.row_order,
        "is_weighted": hasattr(module, "is_weighted") and module.is_weighted(),
        "alignment": getattr(module, "alignment", None),
    }
    metadata = {
        "format": files.FORMAT,
        "version": str(files.VERSION if any("axes" in table for table in told) else 1),
        "header": json.dumps(header, sort_keys=True),
    }
    path = Path(path)
    write_file(path, metadata, entries)
    return path


def export_dense(module: Trained | ServingCollection, path: str | Path) -> Path:
    """Write full tables {name: fp32 (rows, embedding_dim)} in id order; returns the path.

    A plain safetensors file for anything that takes dense tables: zeros beyond a row's size,
    quantised rows as they read. Made piece by piece, never whole in memory.

    Raises:
        InvalidInputError: a sharded module, or one whose weights are on "meta".
    """
    entries = []
    for config in module.tables:
        table = packed_table(module, config.name)
        shape = (table.rows, table.embedding_dim)
        entries.append(Entry(table.name, "F32", shape, table.chunks))
    path = Path(path)
    write_file(path, {"format": "pt"}, entries)
    return path


def packed_table(module: Trained | ServingCollection, name: str) -> PackedTable:
    """One table of a module, to be read by numpy; shares memory with weights on the CPU."""
    plan = module.plan[name]
    blocks = tuple(
        PackedBlock(
            name=block.name,
            first_rank=block.first_rank,
            rows=block.rows,
            first_column=block.first_column,
            width=block.width,
            precision=precision,
            stride=block.stride,
            data=data,
        )
        for block in module.blocks[name]
        for precision, data in [_rows(module, block)]
    )
    basis = module.table_bases().get(name)
    axes = None if basis is None else basis.axes.numpy()
    return PackedTable(name, plan.rows, plan.embedding_dim, blocks, id_map(plan.order), axes)


def _rows(module: Trained | ServingCollection, block: Block) -> tuple[str, NDArray[np.uint8]]:
    """How a block's rows are stored, and they themselves."""
    if isinstance(module, Trained):
        weight = module.weight(block).detach()
        if weight.is_meta:
            raise InvalidInputError(
                f"block {block.name!r}: expected weights, got none (device 'meta'): load them first"
            )
        weight = weight.cpu()[:, : block.width].contiguous()  # a copy only if it is padded
        precision = {4: "fp32", 2: "fp16"}[weight.element_size()]
        return precision, weight.numpy().view(np.uint8)
    if not hasattr(module, "packed_rows"):
        raise InvalidInputError(
            f"expected an unsharded collection, got {type(module).__name__}: gather it first, "
            "an unsharded one of the same tables and plan, .load_full_tables(module.full_tables(), "
            "bases=module.table_bases())"
        )
    packed = module.packed_rows(block)[:, : row_bytes(block.width, block.precision)]
    return block.precision, packed.cpu().numpy()


def _whole(name: str, dtype: str, array: NDArray[Any]) -> Entry:
    return Entry(name, dtype, array.shape, partial(_pieces, array))


def _pieces(array: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """Aligned rows are no contiguous memory once their padding is left out."""
    for start in range(0, len(array), _PIECE):
        yield array[start : start + _PIECE]


def _described(config: BaseEmbeddingConfig, table: PackedTable) -> dict[str, Any]:
    blocks = [
        {f.name: getattr(block, f.name) for f in dataclasses.fields(block) if f.name != "data"}
        for block in table.blocks
    ]
    return {
        "name": table.name,
        "rows": table.rows,
        "embedding_dim": table.embedding_dim,
        "feature_names": list(config.feature_names),
        "pooling": config.pooling.value if isinstance(config, EmbeddingBagConfig) else UNPOOLED,
        "id_map": table.id_map is not None,
        "blocks": blocks,
        **({} if table.axes is None else {"axes": len(table.axes)}),
    }


def _without_orders(module: Trained | ServingCollection) -> SizePlan:
    own = {table.name for table in module.tables}
    parts = (
        dataclasses.replace(part, order=None) if part.name in own else part
        for part in module.plan.tables
    )
    return dataclasses.replace(module.plan, tables=tuple(parts))
