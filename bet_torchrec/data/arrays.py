"""Named arrays in npz files: written at once or not at all, read without pickle."""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import DataError


def write_arrays(path: Path, arrays: Mapping[str, Any]) -> Path:
    """Write under a temporary name beside it, then rename: readers see the old file or the new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            np.savez_compressed(file, **arrays)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """All arrays of an npz file; DataError where it is damaged or holds pickled objects."""
    try:
        with open(path, "rb") as start:
            magic = start.read(4)
    except OSError as error:
        raise DataError(f"{path} can't be read: {error}") from error
    if magic != b"PK\x03\x04":
        raise DataError(
            f"{path} should be an npz archive, got a file that starts with {magic!r}; "
            "get or make it again"
        )
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (
        *(zipfile.BadZipFile, zlib.error, EOFError, KeyError, ValueError, MemoryError),
        *(NotImplementedError, RuntimeError, OSError),
    ) as error:
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        if "allow_pickle" in why:
            why = "it holds pickled objects, which could run code and are never read"
        raise DataError(
            f"{path} should be an npz file of plain arrays: {why}. It may be truncated; get or "
            "make it again"
        ) from error
