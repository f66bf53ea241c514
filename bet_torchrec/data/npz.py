"""The npz files: our own, which keep everything, and anybody's arrays of users and items.

Read without pickle throughout, so that a file can't run anything.
"""

from __future__ import annotations

import os
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .columns import Columns, RawPairs, find, guess
from .errors import DataError
from .interactions import Interactions

MARKER = "bet_torchrec_interactions"
VERSION = 1


def save(interactions: Interactions, path: Path) -> Path:
    """Write under a temporary name beside it, then rename: readers see the old file or the new."""
    arrays: dict[str, Any] = {
        MARKER: np.int64(VERSION),
        "user": interactions.users,
        "item": interactions.items,
        "num_users": np.int64(interactions.num_users),
        "num_items": np.int64(interactions.num_items),
        "timestamp": interactions.timestamps,
        "test_mark": interactions.test_mark,
        "user_labels": interactions.user_labels,
        "item_labels": interactions.item_labels,
        "name": np.array(interactions.name),
        "notes": np.array(interactions.notes, dtype=str),
        "fingerprint": np.array(interactions.fingerprint()),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            kept = {k: v for k, v in arrays.items() if v is not None}
            np.savez_compressed(file, **kept)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def load_saved(path: Path) -> Interactions:
    """What ``save`` wrote, checked against its fingerprint."""
    arrays = read_arrays(path)
    if MARKER not in arrays:
        raise DataError(
            f"{path} should be written by Interactions.save, got arrays "
            f"{', '.join(sorted(arrays))}; bet_torchrec.load reads other npz files"
        )
    return from_saved(arrays, path)


def from_saved(arrays: dict[str, NDArray[Any]], path: Path) -> Interactions:
    version = int(arrays[MARKER])
    if version > VERSION:
        raise DataError(
            f"{path} has format version {version}, this reads up to {VERSION}; upgrade bet_torchrec"
        )
    try:
        interactions = Interactions(
            users=arrays["user"],
            items=arrays["item"],
            num_users=int(arrays["num_users"]),
            num_items=int(arrays["num_items"]),
            timestamps=arrays.get("timestamp"),
            test_mark=arrays.get("test_mark"),
            user_labels=arrays.get("user_labels"),
            item_labels=arrays.get("item_labels"),
            name=str(arrays["name"]),
            notes=tuple(str(note) for note in arrays["notes"]),
        )
        fingerprint = str(arrays["fingerprint"])
    except (KeyError, TypeError) as error:
        raise DataError(f"{path} is damaged: {type(error).__name__} {error}") from error
    if interactions.fingerprint() != fingerprint:
        raise DataError(f"{path} is damaged: its content does not match its fingerprint")
    return interactions


def read_npz(path: Path, columns: Columns) -> RawPairs | Interactions:
    """Users and items, and ratings, times and a test mark where there are, by array name."""
    arrays = read_arrays(path)
    if MARKER in arrays:
        return from_saved(arrays, path)
    names = list(arrays)
    chosen = columns.chosen()
    for what, column in chosen.items():
        if isinstance(column, int):
            raise DataError(
                f"{path}: arrays of an npz file have names, got position {column} for {what}; "
                f"choose from {', '.join(names)}"
            )
    at = {what: find(names, column, what, str(path)) for what, column in chosen.items()}
    if at["user"] is None or at["item"] is None:
        raise DataError(
            f"{path} should have an array of users and one of items, got {', '.join(names)}; say "
            "which by user= and item="
        )
    at["test"] = guess(names, "test")
    found = {what: arrays[names[i]] for what, i in at.items() if i is not None}
    shapes = {names[i]: arrays[names[i]].shape for i in at.values() if i is not None}
    if len(set(shapes.values())) != 1 or found["user"].ndim != 1:
        raise DataError(f"{path}: arrays should have one dimension and one length, got {shapes}")
    return RawPairs(
        users=found["user"],
        items=found["item"],
        ratings=found.get("rating"),
        timestamps=found.get("timestamp"),
        test_mark=found.get("test"),
    )


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
