"""The file of a plan's tables: rows as they are served, in one safetensors file without pickle.

Tensors: ``id_map/TABLE`` int32 (rows,), the rank of each id, where ids are no ranks;
``axes/TABLE`` fp32 (axes, embedding_dim) of a table whose rows are coordinates; ``rows/BLOCK``
uint8 (rows, bytes), see ``packed``; ``plan`` uint8, the plan's own file less its
orders, which the id maps say. The metadata hold the format, its version, a checksum over
everything, and a JSON header with the tables and their blocks.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..errors import BetError
from ..files.tensors import TensorFile, TensorFileError, open_file
from ..strict import StrictError
from .packed import PackedBlock, PackedTable, Precision, row_bytes

FORMAT = "bet_torchrec.tables"
VERSION = 2  # 1: without axes. Tables without any are still written so, for older readers


class TableFileError(BetError, ValueError):
    """A file holds no tables: corrupted, foreign, or written by a newer version."""


@dataclass(frozen=True, kw_only=True)
class BlockHeader:
    """One block, see ``PackedBlock``."""

    name: str
    first_rank: int
    rows: int
    first_column: int
    width: int
    precision: Precision
    stride: int

    def __post_init__(self) -> None:
        if min(self.first_rank, self.first_column) < 0 or min(self.rows, self.width) < 1:
            raise ValueError("a block should begin at 0 or later and have rows and columns")
        if not 1 <= self.stride <= self.rows or math.gcd(self.stride, self.rows) > 1:
            raise ValueError(f"stride {self.stride} does not reach each of {self.rows} rows")


@dataclass(frozen=True, kw_only=True)
class TableHeader:
    """One table. id_map: whether it has one. axes: of its basis, 0 without; from version 2 on."""

    name: str
    rows: int
    embedding_dim: int
    feature_names: list[str]
    pooling: Literal["SUM", "MEAN", "NONE"]
    id_map: bool
    blocks: tuple[BlockHeader, ...]
    axes: int = 0

    def __post_init__(self) -> None:
        if self.rows < 1 or self.embedding_dim < 1:
            raise ValueError("a table should have rows and columns")
        if not 0 <= self.axes <= self.embedding_dim:
            raise ValueError(f"a table should have 0 to {self.embedding_dim} axes, got {self.axes}")
        if self.axes and any(b.first_column + b.width > self.axes for b in self.blocks):
            raise ValueError("a table should have an axis for each coordinate")
        for block in self.blocks:
            end = block.first_rank + block.rows, block.first_column + block.width
            if end[0] > self.rows or end[1] > self.embedding_dim:
                raise ValueError(f"block {block.name!r} lies outside of the table")


@dataclass(frozen=True, kw_only=True)
class Header:
    """What the file's JSON says. plan: its fingerprint. alignment: None where rows are as trained.

    layout, row_order: see ``embeddings.layout``.
    """

    tables: tuple[TableHeader, ...]
    plan: str
    layout: Literal["bucketed", "prefix"]
    row_order: Literal["ranked", "interleaved"]
    is_weighted: bool
    alignment: Literal[1, 2, 4, 8, 16, 32, 64, 128] | None

    def __post_init__(self) -> None:
        tables = [table.name for table in self.tables]
        blocks = [(block.name, table.name) for table in self.tables for block in table.blocks]
        # A table of one block has it under its own name.
        taken = any(block != table and block in tables for block, table in blocks)
        distinct = {block for block, _ in blocks}
        if taken or len(set(tables)) < len(tables) or len(distinct) < len(blocks):
            raise ValueError("tables and blocks should have names of their own")


@dataclass(frozen=True, eq=False)
class TableFile:
    """header: the file's JSON. arrays: all tensors, in the file's memory map. tables: by name."""

    header: Mapping[str, Any]
    arrays: Mapping[str, NDArray[Any]]
    tables: dict[str, PackedTable]


def read_tables(path: str | Path, *, verify: bool = True) -> dict[str, PackedTable]:
    """Tables that ``export_tables`` or a quantised module's ``save`` wrote, by name.

    Rows are read from the file when they are asked for: ``tables["user"].read(ids)``.

    Args:
        verify: read the whole file once and compare its checksum.

    Raises:
        TableFileError: corrupted, foreign, or written by a newer version.
        FileNotFoundError: no such file.
    """
    return open_tables(Path(path), verify=verify).tables


def open_tables(path: Path, *, verify: bool = True) -> TableFile:
    """As ``read_tables``, with the header and all tensors."""
    try:
        file = open_file(path)
        if file.metadata.get("format") != FORMAT:
            raise TableFileError(
                f"{path} should hold tables saved by export_tables or save, got a safetensors file "
                f"of {file.metadata.get('format', 'something else')!r}"
            )
        version = file.metadata.get("version", "")
        if version not in ("1", str(VERSION)):
            raise TableFileError(
                f"{path} should have format version {VERSION} or older, got {version!r}; upgrade "
                "bet_torchrec"
            )
        if verify:
            file.verify()
        header: Header = file.header(Header)
        tables = {table.name: _table(table, file, verify) for table in header.tables}
        arrays = {name: file.array(name) for name in file.tensors}
    except (TensorFileError, StrictError) as error:
        raise TableFileError(
            f"{path} should hold tables saved by export_tables or save, but {error}; the file is "
            "damaged or something else: save it again"
        ) from error
    return TableFile(dataclasses.asdict(header), arrays, tables)


def _table(header: TableHeader, file: TensorFile, verify: bool) -> PackedTable:
    blocks = []
    for block in header.blocks:
        shape = block.rows, row_bytes(block.width, block.precision)
        rows = _tensor(file, f"rows/{block.name}", "U8", shape)
        blocks.append(PackedBlock(**dataclasses.asdict(block), data=rows))
    id_map = None
    if header.id_map:
        id_map = _tensor(file, f"id_map/{header.name}", "I32", (header.rows,))
        if verify and not _permutation(id_map):
            raise TensorFileError(f"its id map of {header.name!r} should name each rank once")
    axes = None
    if header.axes:
        axes = _tensor(file, f"axes/{header.name}", "F32", (header.axes, header.embedding_dim))
    return PackedTable(header.name, header.rows, header.embedding_dim, tuple(blocks), id_map, axes)


def _tensor(file: TensorFile, name: str, dtype: str, shape: tuple[int, ...]) -> NDArray[Any]:
    array, stored = file.array(name), file.tensors[name]
    if (stored.dtype, stored.shape) != (dtype, shape):
        raise TensorFileError(
            f"its {name!r} should be {dtype} {shape}, got {stored.dtype} {stored.shape}"
        )
    return array


def _permutation(ranks: NDArray[np.int32]) -> bool:
    if ranks.min() < 0 or ranks.max() >= len(ranks):
        return False
    seen = np.zeros(len(ranks), dtype=bool)
    seen[ranks] = True
    return bool(seen.all())
