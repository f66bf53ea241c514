"""Writing safetensors files of any size from pieces: at once or not at all, with a checksum.

safetensors' own writers want all tensors in memory; a dense table of a plan, or blocks that lie on
a device, are made piece by piece instead.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

DTYPES: dict[str, np.dtype[Any]] = {
    "U8": np.dtype("u1"),
    "I32": np.dtype("<i4"),
    "F32": np.dtype("<f4"),
}
CHECKSUM = "sha256"
_UNKNOWN = "0" * 64  # as long as the checksum that takes its place


@dataclass(frozen=True)
class Entry:
    """One tensor. dtype: a key of DTYPES. pieces: its rows in order, made when asked for."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    pieces: Callable[[], Iterable[NDArray[Any]]]

    @property
    def nbytes(self) -> int:
        """Bytes of its data."""
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize


def new_checksum(metadata: Mapping[str, str], entries: Iterable[tuple[str, str, Any]]) -> Any:
    """A sha256 of everything but the data: of metadata and (name, dtype, shape) of all tensors."""
    told = {name: value for name, value in metadata.items() if name != CHECKSUM}
    described = [[name, dtype, list(shape)] for name, dtype, shape in entries]
    return hashlib.sha256(json.dumps([told, described], sort_keys=True).encode())


def write_file(path: Path, metadata: Mapping[str, str], entries: Sequence[Entry]) -> None:
    """Write to a temporary name beside it, sync, rename; metadata gets the checksum of it all.

    Entries of wider types should come first, so that each is aligned in a memory map.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    header = _header({**metadata, CHECKSUM: _UNKNOWN}, entries)
    digest = new_checksum(metadata, ((e.name, e.dtype, e.shape) for e in entries))
    try:
        with open(temporary, "wb") as file:
            file.write(header)
            for entry in entries:
                written = 0
                for piece in entry.pieces():
                    data = np.ascontiguousarray(piece, dtype=DTYPES[entry.dtype]).data.cast("B")
                    digest.update(data)
                    file.write(data)
                    written += len(data)
                if written != entry.nbytes:
                    raise RuntimeError(f"{entry.name}: {written} bytes for shape {entry.shape}")
            file.seek(header.index(_UNKNOWN.encode()))
            file.write(digest.hexdigest().encode())
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _header(metadata: Mapping[str, str], entries: Sequence[Entry]) -> bytes:
    """The length as u64, then JSON padded to whole 8 bytes."""
    # The checksum goes first, so that its place is found by its look.
    told: dict[str, Any] = {CHECKSUM: metadata[CHECKSUM]}
    tensors: dict[str, Any] = {"__metadata__": {**told, **metadata}}
    start = 0
    for entry in entries:
        end = start + entry.nbytes
        offsets = [start, end]
        tensors[entry.name] = {
            "dtype": entry.dtype,
            "shape": list(entry.shape),
            "data_offsets": offsets,
        }
        start = end
    text = json.dumps(tensors).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
