"""The file of a plan's tables: rows as they are served, in one safetensors file without pickle.

Tensors: ``id_map/TABLE`` int32 (rows,), the rank of each id, where ids are no ranks;
``rows/BLOCK`` uint8 (rows, bytes), see ``packed``; ``plan`` uint8, the plan's own file less its
orders, which the id maps say. The metadata hold the format, its version, a checksum over
everything, and a JSON header with the tables and their blocks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from ..errors import BetError
from .container import Kind, open_container
from .packed import PackedBlock, PackedTable

FORMAT = "bet_torchrec.tables"
VERSION = 1


class TableFileError(BetError, ValueError):
    """A file holds no tables: corrupted, foreign, or written by a newer version."""


KIND = Kind(FORMAT, VERSION, "tables saved by export_tables or save", TableFileError)


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
    header, arrays = open_container(path, KIND, verify=verify)
    try:
        tables = {entry["name"]: _table(entry, arrays) for entry in header["tables"]}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise KIND.damaged(path, f"{type(error).__name__}: {error}") from error
    return TableFile(header, arrays, tables)


def _table(entry: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> PackedTable:
    name = entry["name"]
    blocks = tuple(
        PackedBlock(**block, data=arrays[f"rows/{block['name']}"]) for block in entry["blocks"]
    )
    id_map = arrays[f"id_map/{name}"] if entry["id_map"] else None
    return PackedTable(name, entry["rows"], entry["embedding_dim"], blocks, id_map)
