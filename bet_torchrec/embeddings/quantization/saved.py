"""From a file of ``export_tables`` back to a serving collection, pooled or not."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torchrec.modules.embedding_configs import (
    BaseEmbeddingConfig,
    EmbeddingBagConfig,
    PoolingType,
)

from ...axes import Basis
from ...errors import InvalidInputError, PlanError, PlanFileError
from ...planning.plan import SizePlan
from ...serving.files import TableFile, TableFileError, open_tables
from ..layout import Block
from ..layout import blocks as blocks_of
from ..routing import rank_of_id

UNPOOLED = "NONE"  # the pooling of tables that have none
_PIECE = 1 << 16  # rows

Made = TypeVar("Made", bound=nn.Module)


class Writable(Protocol):
    """A serving collection made anew."""

    @property
    def blocks(self) -> dict[str, tuple[Block, ...]]: ...

    def put_rows(self, block: Block, start: int, rows: Tensor) -> None: ...

    def put_bases(self, bases: Mapping[str, Basis]) -> None: ...


def load_saved(
    path: str | Path,
    make: Callable[..., Made],
    config: type[BaseEmbeddingConfig],
    *,
    alignment: int | None,
) -> Made:
    """What ``save`` or ``export_tables`` wrote of tables of one kind, bit by bit the same rows.

    make: a collection of (tables' configs, plan, and as its options what the file says).
    alignment: the saved one unless given.

    Raises:
        TableFileError: corrupted, foreign, of the other kind, or written by a newer version.
        FileNotFoundError: no such file.
    """
    file, pooled = open_tables(Path(path)), config is EmbeddingBagConfig
    _check_pooling(file, path, pooled=pooled)
    plan, header = _plan(file, str(path)), file.header
    tables = header["tables"]
    options: dict[str, Any] = {
        "layout": header["layout"],
        "row_order": header["row_order"],
        "precisions": {b["name"]: b["precision"] for table in tables for b in table["blocks"]},
        "alignment": header["alignment"] if alignment is None else alignment,
    }
    if pooled:
        options["is_weighted"] = header["is_weighted"]
    try:
        module = make([_config(table, config) for table in tables], plan, **options)
    except (PlanError, InvalidInputError) as error:
        raise TableFileError(
            f"{path} holds tables that contradict themselves ({error}): save it again"
        ) from error
    _put_rows(file, cast(Writable, module))
    return module.eval()


def _config(table: Mapping[str, Any], kind: type[BaseEmbeddingConfig]) -> BaseEmbeddingConfig:
    pooling: dict[str, Any] = {}
    if kind is EmbeddingBagConfig:
        pooling["pooling"] = PoolingType(table["pooling"])
    return kind(
        name=table["name"],
        num_embeddings=table["rows"],
        embedding_dim=table["embedding_dim"],
        feature_names=table["feature_names"],
        **pooling,
    )


def id_map(order: NDArray[np.int32] | None) -> NDArray[np.int32] | None:
    """The rank of each id, from the id of each rank; and the other way round."""
    return None if order is None else rank_of_id(order)


def _plan(file: TableFile, source: str) -> SizePlan:
    """The plan of an exported file, with its orders again; TableFileError unless all of it fits."""
    try:
        stored = SizePlan.from_bytes(file.arrays["plan"].tobytes(), source=f"the plan in {source}")
        orders = {name: id_map(table.id_map) for name, table in file.tables.items()}
        parts = (
            dataclasses.replace(part, order=orders.get(part.name, part.order))
            for part in stored.tables
        )
        plan = dataclasses.replace(stored, tables=tuple(parts))
        for name, table in file.tables.items():
            told = [(b.name, b.first_rank, b.rows, b.first_column, b.width) for b in table.blocks]
            own = blocks_of(plan[name], file.header["layout"], file.header["row_order"])
            if plan[name].axes != (0 if table.axes is None else len(table.axes)):
                raise TableFileError(f"{source}: table {name!r} has not its plan's axes")
            if told != [(b.name, b.first_rank, b.rows, b.first_column, b.width) for b in own]:
                raise TableFileError(f"{source}: table {name!r} is not laid out as its plan")
    except (PlanFileError, PlanError, InvalidInputError, KeyError) as error:
        raise TableFileError(
            f"{source} should hold tables saved by export_tables or save, but {error}; the file is "
            "damaged or something else: save it again"
        ) from error
    if plan.fingerprint() != file.header["plan"]:
        raise TableFileError(f"{source}: its plan and its id maps do not fit together")
    return plan


def _check_pooling(file: TableFile, path: str | Path, *, pooled: bool) -> None:
    """Raise TableFileError if a file is of the other kind of tables."""
    wrong = [t["name"] for t in file.header["tables"] if (t["pooling"] == UNPOOLED) == pooled]
    if wrong:
        kind, other = ("pooled", "unpooled") if pooled else ("unpooled", "pooled")
        name = "QuantizedBudgetedEmbedding" + ("" if pooled else "Bag") + "Collection"
        raise TableFileError(
            f"{path} should hold {kind} tables, got {other} ones ({', '.join(wrong)}): load them "
            f"by {name}.load"
        )


def _put_rows(file: TableFile, module: Writable) -> None:
    """Fill all blocks, piece by piece, and all bases."""
    packed = file.tables.items()
    module.put_bases(
        {name: Basis(torch.from_numpy(t.axes.copy())) for name, t in packed if t.axes is not None}
    )
    for own in module.blocks.values():
        for block in own:
            rows = file.arrays[f"rows/{block.name}"]
            for start in range(0, block.rows, _PIECE):
                # A copy, because the file's memory map is read-only.
                piece = torch.from_numpy(rows[start : start + _PIECE].copy())
                module.put_rows(block, start, piece)
