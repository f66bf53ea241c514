"""From a file of ``export_tables`` back to a serving collection, pooled or not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from ...axes import Basis
from ...errors import InvalidInputError, PlanError
from ...serving.files import TableFile, TableFileError
from ..layout import Block

UNPOOLED = "NONE"  # the pooling of tables that have none
_PIECE = 1 << 16  # rows


class Writable(Protocol):
    """A serving collection made anew."""

    @property
    def blocks(self) -> dict[str, tuple[Block, ...]]: ...

    def put_rows(self, block: Block, start: int, rows: Tensor) -> None: ...

    def put_bases(self, bases: Mapping[str, Basis]) -> None: ...


def check_pooling(file: TableFile, path: str | Path, *, pooled: bool) -> None:
    """Raise TableFileError if a file is of the other kind of tables."""
    wrong = [t["name"] for t in file.header["tables"] if (t["pooling"] == UNPOOLED) == pooled]
    if wrong:
        kind, other = ("pooled", "unpooled") if pooled else ("unpooled", "pooled")
        name = "QuantizedBudgetedEmbedding" + ("" if pooled else "Bag") + "Collection"
        raise TableFileError(
            f"{path} should hold {kind} tables, got {other} ones ({', '.join(wrong)}): load them "
            f"by {name}.load"
        )


@contextmanager
def from_header(path: str | Path) -> Iterator[None]:
    """A collection is made of what a file's header says; TableFileError if it cannot be."""
    try:
        yield
    except (PlanError, InvalidInputError) as error:
        raise TableFileError(
            f"{path} holds tables that contradict themselves ({error}): save it again"
        ) from error


def saved_precisions(file: TableFile) -> dict[str, str]:
    """{block name: precision}."""
    return {b["name"]: b["precision"] for table in file.header["tables"] for b in table["blocks"]}


def put_saved_rows(file: TableFile, module: Writable) -> None:
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
