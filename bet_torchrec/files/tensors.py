"""safetensors files of any size, written from pieces and read from a memory map; numpy alone.

Written at once or not at all, with a sha256 of everything in the metadata (safetensors itself has
none). Other readers of the format read these files too. What is read is checked before any of it
is used: the header's types and sizes, that tensors lie one after the other without gaps, and, when
asked, the checksum. Nothing in a file can run.

The format: a length (u64), as much JSON {tensor: dtype, shape, data_offsets}, and the data.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from ..errors import BetError
from ..strict import StrictError, parse, typed
from .atomic import replacing

CHECKSUM = "sha256"
# Bytes an element. numpy has no bf16 and no fp8: whoever can read them takes ``raw``.
ITEMSIZE = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3"), 1),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 2),
    **dict.fromkeys(("I32", "U32", "F32"), 4),
    **dict.fromkeys(("I64", "U64", "F64"), 8),
}
_NUMPY = {
    "BOOL": "?",
    **{f"U{8 * n}": f"<u{n}" for n in (1, 2, 4, 8)},
    **{f"I{8 * n}": f"<i{n}" for n in (1, 2, 4, 8)},
    **{f"F{8 * n}": f"<f{n}" for n in (2, 4, 8)},
}
_LONGEST = 100_000_000  # bytes of a header, safetensors' own limit
_PIECE = 1 << 24  # bytes of a file checked at once
_UNKNOWN = "0" * 64  # as long as the checksum that takes its place


class TensorFileError(BetError, ValueError):
    """Bytes are no safetensors file, or a damaged one; the text says why, not which file."""


@dataclass(frozen=True)
class Entry:
    """One tensor to write.

    dtype: a key of ITEMSIZE. pieces: its data in order, as it is or as uint8, made when asked for.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    pieces: Callable[[], Iterable[NDArray[Any]]]

    @property
    def nbytes(self) -> int:
        """Bytes of its data."""
        return math.prod(self.shape) * ITEMSIZE[self.dtype]


@dataclass(frozen=True)
class Stored:
    """One tensor of a file, as the header has it."""

    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]

    def __post_init__(self) -> None:
        if self.dtype not in ITEMSIZE or min(self.shape, default=0) < 0:
            raise ValueError(f"there is no tensor of {self.dtype!r} and shape {self.shape}")
        size, (start, end) = math.prod(self.shape) * ITEMSIZE[self.dtype], self.data_offsets
        if not 0 <= start <= end or end - start != size:
            raise ValueError(f"shape {self.shape} takes {size} bytes, not {start} to {end}")


@dataclass(frozen=True, eq=False)
class TensorFile:
    """metadata: text by name. tensors: by name. data: uint8, all tensors' bytes."""

    metadata: Mapping[str, str]
    tensors: Mapping[str, Stored]
    data: NDArray[np.uint8]

    def raw(self, name: str) -> NDArray[np.uint8]:
        """A tensor's bytes; raises TensorFileError where there is none."""
        if name not in self.tensors:
            raise TensorFileError(f"it has no tensor {name!r}")
        start, end = self.tensors[name].data_offsets
        return self.data[start:end]

    def array(self, name: str) -> NDArray[Any]:
        """A tensor, in the file's memory; raises TensorFileError where numpy has no such type."""
        raw, stored = self.raw(name), self.tensors[name]
        if stored.dtype not in _NUMPY:
            raise TensorFileError(f"numpy has no {stored.dtype}, the type of its {name!r}")
        return raw.view(_NUMPY[stored.dtype]).reshape(stored.shape)

    def header(self, kind: type[Any]) -> Any:
        """The JSON in the metadata's "header", of a declared type.

        Raises:
            TensorFileError: there is none. StrictError: of another type.
        """
        if "header" not in self.metadata:
            raise TensorFileError("it has no readable header")
        return parse(self.metadata["header"], kind, "header")

    def verify(self) -> None:
        """Raise TensorFileError unless the checksum fits; reads everything once."""
        described = ((name, t.dtype, t.shape) for name, t in self.tensors.items())
        digest = _new_checksum(self.metadata, described)
        for start in range(0, len(self.data), _PIECE):
            digest.update(self.data[start : start + _PIECE].data)
        if digest.hexdigest() != self.metadata.get(CHECKSUM):
            raise TensorFileError("its checksum does not match")


def write_file(path: Path, metadata: Mapping[str, str], entries: Sequence[Entry]) -> str:
    """Write one file; its metadata get the checksum of it all, which is returned.

    Entries of wider types should come first, so that each is aligned in a memory map.
    """
    with replacing(path) as file:
        return write_to(file, metadata, entries)


def write_to(file: BinaryIO, metadata: Mapping[str, str], entries: Sequence[Entry]) -> str:
    """``write_file`` into a file that is open for writing, at its beginning."""
    header = _header(metadata, entries)
    digest = _new_checksum(metadata, ((e.name, e.dtype, e.shape) for e in entries))
    file.write(header)
    for entry in entries:
        written = 0
        for piece in entry.pieces():
            data = _bytes(piece, entry.dtype)
            digest.update(data)
            file.write(data)
            written += len(data)
        if written != entry.nbytes:
            raise RuntimeError(f"{entry.name}: {written} bytes for shape {entry.shape}")
    file.seek(header.index(_UNKNOWN.encode()))
    file.write(digest.hexdigest().encode())
    return str(digest.hexdigest())


def open_file(path: Path) -> TensorFile:
    """A file in a memory map: read where it is asked for.

    Raises:
        FileNotFoundError: no such file. TensorFileError: not all of one, or something else.
    """
    size = path.stat().st_size
    with open(path, "rb") as file:
        length = _length(file.read(8), size)
        text = file.read(length)
    start = 8 + length
    empty = start == size  # which can't be mapped
    data = np.empty(0, np.uint8) if empty else np.memmap(path, np.uint8, mode="r", offset=start)
    return _file(text, data)


def from_bytes(data: bytes) -> TensorFile:
    """``open_file`` of a file's bytes."""
    start = 8 + _length(data[:8], len(data))
    return _file(data[8:start], np.frombuffer(data, dtype=np.uint8, offset=start))


def _length(first: bytes, size: int) -> int:
    length = int.from_bytes(first, "little")
    if size < 8 or length > min(size - 8, _LONGEST):
        raise TensorFileError(f"{size} bytes are no safetensors file, or not all of one")
    return length


def _file(text: bytes, data: NDArray[np.uint8]) -> TensorFile:
    try:
        found = parse(text, dict[str, Any], "its table of tensors")
        metadata = typed(found.pop("__metadata__", {}), dict[str, str], "its metadata")
        tensors = typed(found, dict[str, Stored], "its table of tensors")
    except StrictError as error:
        raise TensorFileError(f"it has no readable header: {error}") from error
    tensors = dict(sorted(tensors.items(), key=lambda item: item[1].data_offsets))
    end = 0
    for name, stored in tensors.items():
        if stored.data_offsets[0] != end:
            raise TensorFileError(f"its tensors should lie one after the other, {name!r} does not")
        end = stored.data_offsets[1]
    if end != len(data):
        raise TensorFileError("it is longer or shorter than its header says")
    return TensorFile(metadata, tensors, data)


def _new_checksum(metadata: Mapping[str, str], entries: Iterable[tuple[str, str, Any]]) -> Any:
    """A sha256 of everything but the data: of metadata and (name, dtype, shape) of all tensors."""
    told = {name: value for name, value in metadata.items() if name != CHECKSUM}
    described = [[name, dtype, list(shape)] for name, dtype, shape in entries]
    return hashlib.sha256(json.dumps([told, described], sort_keys=True).encode())


def _bytes(piece: NDArray[Any], dtype: str) -> memoryview:
    """uint8 is taken as a tensor's bytes, whatever its type."""
    kind = piece.dtype if piece.dtype == np.uint8 else np.dtype(_NUMPY[dtype])
    flat = np.ascontiguousarray(piece, dtype=kind).reshape(-1)
    return flat.view(np.uint8).data


def _header(metadata: Mapping[str, str], entries: Sequence[Entry]) -> bytes:
    """The length as u64, then JSON padded to whole 8 bytes."""
    # The checksum goes first, so that its place is found by its look.
    tensors: dict[str, Any] = {"__metadata__": {CHECKSUM: _UNKNOWN, **metadata}}
    start = 0
    for entry in entries:
        end = start + entry.nbytes
        shape, offsets = list(entry.shape), [start, end]
        tensors[entry.name] = {"dtype": entry.dtype, "shape": shape, "data_offsets": offsets}
        start = end
    text = json.dumps(tensors).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
