"""The file of a plan's tables: rows as they are served, in one safetensors file without pickle.

Tensors: ``id_map/TABLE`` int32 (rows,), the rank of each id, where ids are no ranks;
``rows/BLOCK`` uint8 (rows, bytes), see ``packed``; ``plan`` uint8, the plan's own file less its
orders, which the id maps say. The metadata hold the format, its version, a checksum over
everything, and a JSON header with the tables and their blocks.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import BetError
from .packed import PackedBlock, PackedTable
from .stream import CHECKSUM, DTYPES, new_checksum

FORMAT = "bet_torchrec.tables"
VERSION = 1
_PIECE = 1 << 24  # bytes of a file checked at once


class TableFileError(BetError, ValueError):
    """A file holds no tables: corrupted, foreign, or written by a newer version."""


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
    entries, metadata, data = _parse(path)
    if metadata.get("format") != FORMAT:
        raise TableFileError(
            f"{path} should hold tables saved by export_tables or save, got a safetensors file of "
            f"{metadata.get('format', 'something else')!r}"
        )
    version = str(metadata.get("version", ""))
    if not version.isdigit() or int(version) > VERSION:
        raise TableFileError(
            f"{path} should have format version {VERSION} or older, got {version!r}; upgrade "
            "bet_torchrec to read it"
        )
    try:
        if verify and metadata.get(CHECKSUM) != _checksum(metadata, entries, data):
            raise _damaged(path, "its checksum does not match")
        arrays = {name: _array(entry, data) for name, entry in entries.items()}
        header = json.loads(metadata["header"])
        tables = {entry["name"]: _table(entry, arrays) for entry in header["tables"]}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, TableFileError):
            raise
        raise _damaged(path, f"{type(error).__name__}: {error}") from error
    return TableFile(header, arrays, tables)


def _parse(path: Path) -> tuple[dict[str, Any], dict[str, Any], NDArray[np.uint8]]:
    """Tensors' entries, metadata, and the bytes after the header."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > size - 8:
            raise _damaged(path, f"{size} bytes are no safetensors file, or not all of one")
        try:
            entries = json.loads(file.read(length))
            metadata = entries.pop("__metadata__", {})
            ends = [entry["data_offsets"][1] for entry in entries.values()]
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise _damaged(path, "it has no readable header") from error
    if not isinstance(metadata, dict) or max(ends, default=0) != size - 8 - length:
        raise _damaged(path, "it is longer or shorter than its header says")
    start = 8 + length
    if start == size:
        return entries, metadata, np.empty(0, dtype=np.uint8)
    return entries, metadata, np.memmap(path, dtype=np.uint8, mode="r", offset=start)


def _checksum(
    metadata: Mapping[str, str], entries: Mapping[str, Any], data: NDArray[np.uint8]
) -> str:
    described = sorted(entries.items(), key=lambda entry: entry[1]["data_offsets"])
    digest = new_checksum(metadata, ((n, e["dtype"], e["shape"]) for n, e in described))
    for start in range(0, len(data), _PIECE):
        digest.update(data[start : start + _PIECE].data)
    return str(digest.hexdigest())


def _array(entry: Mapping[str, Any], data: NDArray[np.uint8]) -> NDArray[Any]:
    start, end = entry["data_offsets"]
    return data[start:end].view(DTYPES[entry["dtype"]]).reshape(entry["shape"])


def _table(entry: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> PackedTable:
    name = entry["name"]
    blocks = tuple(
        PackedBlock(**block, data=arrays[f"rows/{block['name']}"]) for block in entry["blocks"]
    )
    id_map = arrays[f"id_map/{name}"] if entry["id_map"] else None
    return PackedTable(name, entry["rows"], entry["embedding_dim"], blocks, id_map)


def _damaged(path: Path, why: str) -> TableFileError:
    return TableFileError(
        f"{path} should hold tables saved by export_tables or save, but {why}; the file is damaged "
        "or something else: save it again"
    )
