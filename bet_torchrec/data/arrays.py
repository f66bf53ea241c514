"""Named arrays in npz files: written at once or not at all, read without pickle."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..files import replacing
from .errors import DataError


def write_arrays(path: Path, arrays: Mapping[str, Any]) -> Path:
    """Write under a temporary name beside it, then rename: readers see the old file or the new."""
    with replacing(path) as file:
        np.savez_compressed(file, **arrays)
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
    except Exception as error:  # four decompressors and a header's parser, each with its own
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        if "allow_pickle" in why:
            why = "it holds pickled objects, which could run code and are never read"
        raise DataError(
            f"{path} should be an npz file of plain arrays: {why}. It may be truncated; get or "
            "make it again"
        ) from error
