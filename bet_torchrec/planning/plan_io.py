"""The file of a plan: one safetensors file, no pickle, written whole or not at all.

The header (JSON, in the file's metadata) says what the file is and which version of the format;
a checksum over header and arrays tells a damaged file from a plan.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as load_safetensors
from safetensors.numpy import save as save_safetensors

from ..errors import PlanFileError

FORMAT = "bet_torchrec.plan"
VERSION = 1

Arrays = Mapping[str, NDArray[Any]]


def dump(header: Mapping[str, Any], arrays: Arrays) -> bytes:
    """A file's bytes from a JSON-able header and named arrays."""
    text = json.dumps(header, sort_keys=True)
    metadata = {
        "format": FORMAT,
        "version": str(VERSION),
        "header": text,
        "sha256": _checksum(text, arrays),
    }
    contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    return bytes(save_safetensors(contiguous, metadata))


def parse(data: bytes, *, source: str) -> tuple[dict[str, Any], Arrays]:
    """Header and arrays of a file's bytes.

    Args:
        source: what an error should call them.

    Raises:
        PlanFileError: corrupted, foreign, or of a newer version.
    """
    metadata = _metadata(data, source)
    if metadata.get("format") != FORMAT:
        raise PlanFileError(
            f"{source} should be a plan saved by SizePlan.save, got a safetensors file of "
            f"{metadata.get('format', 'something else')!r}"
        )
    version = str(metadata.get("version", ""))
    if not version.isdigit() or int(version) > VERSION:
        raise PlanFileError(
            f"{source} should be a plan of format version {VERSION} or older, got {version!r}; "
            "upgrade bet_torchrec to read it"
        )
    try:
        arrays: Arrays = load_safetensors(data)
        text = str(metadata["header"])
        header = json.loads(text)
    except (SafetensorError, KeyError, ValueError) as error:
        raise _damaged(source, f"{type(error).__name__}: {error}") from error
    if metadata.get("sha256") != _checksum(text, arrays):
        raise _damaged(source, "its checksum does not match")
    return header, arrays


def write(path: Path, data: bytes) -> None:
    """Write to a temporary name beside it, sync, rename: readers see the old file or the new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _metadata(data: bytes, source: str) -> dict[str, Any]:
    """safetensors gives metadata from files only, so read it off the bytes: u64 length, JSON."""
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or length > len(data) - 8:
        raise _damaged(source, f"{len(data)} bytes are no safetensors file, or not all of one")
    try:
        metadata = json.loads(data[8 : 8 + length])["__metadata__"]
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(source, "it has no readable header") from error
    if not isinstance(metadata, dict):
        raise _damaged(source, "it has no readable header")
    return metadata


def _damaged(source: str, why: str) -> PlanFileError:
    return PlanFileError(
        f"{source} should be a plan saved by SizePlan.save, but {why}; the file is damaged or no "
        "plan: save it again"
    )


def _checksum(text: str, arrays: Arrays) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(array.data)
    return digest.hexdigest()
