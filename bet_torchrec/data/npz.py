"""Anybody's npz files of users and items, and our own.

Read without pickle throughout, so that a file can't run anything.
"""

from __future__ import annotations

from pathlib import Path

from .arrays import read_arrays
from .columns import Columns, RawPairs, find, guess
from .errors import DataError
from .interactions import Interactions


def read_npz(path: Path, columns: Columns) -> RawPairs | Interactions:
    """Users and items, and ratings, times and a test mark where there are, by array name."""
    arrays = read_arrays(path)
    if Interactions.wrote(arrays):
        return Interactions.from_arrays(arrays, source=str(path))
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
