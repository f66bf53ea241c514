"""Reading a checksummed safetensors file with numpy alone, its tensors left in a memory map."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import BetError
from .stream import CHECKSUM, DTYPES, new_checksum

_PIECE = 1 << 24  # bytes of a file checked at once


@dataclass(frozen=True)
class Kind:
    """What a file should be. format, version: as its metadata say; older versions are read.

    holds: the words for an error, as "tables saved by export_tables". error: its class.
    """

    format: str
    version: int
    holds: str
    error: type[BetError]

    def damaged(self, path: Path, why: str) -> BetError:
        """To be raised."""
        return self.error(
            f"{path} should hold {self.holds}, but {why}; the file is damaged or something else: "
            "save it again"
        )


def open_container(
    path: Path, kind: Kind, *, verify: bool = True
) -> tuple[Any, dict[str, NDArray[Any]]]:
    """A file's JSON header, and its tensors in a memory map.

    verify: read the whole file once and compare its checksum.

    Raises:
        kind.error: corrupted, foreign, or written by a newer version.
        FileNotFoundError: no such file.
    """
    entries, metadata, data = _parse(path, kind)
    if metadata.get("format") != kind.format:
        raise kind.error(
            f"{path} should hold {kind.holds}, got a safetensors file of "
            f"{metadata.get('format', 'something else')!r}"
        )
    version = str(metadata.get("version", ""))
    if not version.isdigit() or int(version) > kind.version:
        raise kind.error(
            f"{path} should have format version {kind.version} or older, got {version!r}; upgrade "
            "bet_torchrec to read it"
        )
    try:
        if verify and metadata.get(CHECKSUM) != _checksum(metadata, entries, data):
            raise kind.damaged(path, "its checksum does not match")
        arrays = {name: _array(entry, data) for name, entry in entries.items()}
        return json.loads(metadata["header"]), arrays
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, kind.error):
            raise
        raise kind.damaged(path, f"{type(error).__name__}: {error}") from error


def _parse(path: Path, kind: Kind) -> tuple[dict[str, Any], dict[str, Any], NDArray[np.uint8]]:
    """Tensors' entries, metadata, and the bytes after the header."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > size - 8:
            raise kind.damaged(path, f"{size} bytes are no safetensors file, or not all of one")
        try:
            entries = json.loads(file.read(length))
            metadata = entries.pop("__metadata__", {})
            ends = [entry["data_offsets"][1] for entry in entries.values()]
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise kind.damaged(path, "it has no readable header") from error
    if not isinstance(metadata, dict) or max(ends, default=0) != size - 8 - length:
        raise kind.damaged(path, "it is longer or shorter than its header says")
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
