"""Ids made dense, times made seconds, repeated pairs found: the checks behind ``Interactions``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .errors import DataError


def check_ids(values: Any, rows: int, field: str) -> NDArray[np.int32]:
    """Dense ids checked against their number of rows, as read-only int32."""
    if not 1 <= rows <= np.iinfo(np.int32).max:
        raise DataError(f"num_{field} should be from 1 to 2^31 - 1, got {rows}")
    array = np.asarray(values)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise DataError(
            f"{field} should be one dimension of integers, got shape {array.shape} of "
            f"{array.dtype}; Interactions.from_pairs takes other ids"
        )
    if array.size and (array.min() < 0 or array.max() >= rows):
        raise DataError(
            f"{field} should be from 0 to {rows - 1}, got {array.min()} to {array.max()}; "
            "Interactions.from_pairs makes ids dense"
        )
    return frozen(array.astype(np.int32, copy=False))


def frozen(array: NDArray[Any]) -> NDArray[Any]:
    # A view, so that the caller's own array stays writable.
    view = np.ascontiguousarray(array).view()
    view.flags.writeable = False
    return view


def dense(
    values: ArrayLike, what: str, densify: bool
) -> tuple[NDArray[np.int32], NDArray[Any] | None, int]:
    """Dense ids, the original id of each (None where the same), and how many there are."""
    array = np.asarray(values)
    if array.ndim != 1:
        raise DataError(f"{what} ids should have one dimension, got shape {array.shape}")
    if array.size == 0:
        raise DataError("expected at least one interaction, got none")
    if array.dtype.kind == "f":
        if not np.isfinite(array).all() or (array != np.floor(array)).any():
            bad = int(np.argmax(~np.isfinite(array) | (array != np.floor(array))))
            raise DataError(
                f"{what} ids should be whole numbers or strings, got {array[bad]} at interaction "
                f"{bad}"
            )
        array = array.astype(np.int64)
    if array.dtype.kind in "OSU":
        array = array.astype(str)
        if (array == "").any():
            raise DataError(
                f"{what} ids should not be empty, got an empty one at interaction "
                f"{int(np.argmax(array == ''))}; remove such rows"
            )
    elif array.dtype.kind not in "iu":
        raise DataError(f"{what} ids should be integers or strings, got {array.dtype}")
    elif array.min() < 0:
        raise DataError(
            f"{what} ids should be 0 or more, got {array.min()} at interaction "
            f"{int(np.argmin(array))}; remove the row, or give ids as strings if it is a real id"
        )
    if not densify:
        return _kept(array, what)
    if array.dtype.kind in "iu" and array.max() < 4 * array.size + 1024:
        # Counting is ten times faster than sorting, and most ids are nearly dense.
        labels = np.flatnonzero(np.bincount(array)).astype(np.int64)
        lookup = np.zeros(int(array.max()) + 1, dtype=np.int32)
        lookup[labels] = np.arange(len(labels), dtype=np.int32)
        ids = lookup[array]
    else:
        labels, inverse = np.unique(array, return_inverse=True)
        ids = inverse.reshape(-1).astype(np.int32)
    same = labels.dtype.kind in "iu" and labels[-1] == len(labels) - 1
    return ids, None if same else labels, len(labels)


def _kept(array: NDArray[Any], what: str) -> tuple[NDArray[np.int32], None, int]:
    if array.dtype.kind not in "iu":
        raise DataError(f"densify=False needs integer {what} ids, got strings")
    if array.max() >= np.iinfo(np.int32).max:
        raise DataError(
            f"densify=False needs {what} ids below 2^31 - 1, got {array.max()}; use densify=True"
        )
    return array.astype(np.int32), None, int(array.max()) + 1


def seconds(values: ArrayLike, n: int) -> NDArray[np.int64]:
    array = np.asarray(values)
    if array.shape != (n,) or array.dtype.kind not in "iuf":
        raise DataError(
            f"timestamps should be {n} numbers (Unix seconds), got shape {array.shape} of "
            f"{array.dtype}"
        )
    if array.dtype.kind == "f" and not (np.abs(array) < 2.0**63).all():
        bad = int(np.argmin(np.abs(array) < 2.0**63))
        raise DataError(f"timestamps should be finite, got {array[bad]} at interaction {bad}")
    return array.astype(np.int64)


def sorted_distinct(
    users: NDArray[np.int32],
    items: NDArray[np.int32],
    num_items: int,
    times: NDArray[np.int64] | None,
    marks: NDArray[np.bool_] | None,
) -> NDArray[np.int64]:
    """Positions of the distinct pairs, by user and item; which of a pair's is kept: see callers."""
    pair = users.astype(np.int64) * num_items + items
    if (pair[1:] > pair[:-1]).all():
        return np.arange(len(pair))
    # The least important key first; positions settle what is still equal.
    keys = [key for key in (times, marks) if key is not None]
    order = np.lexsort((*keys, pair)) if keys else np.argsort(pair, kind="stable")
    ordered = pair[order]
    first = np.concatenate(([True], ordered[1:] != ordered[:-1]))
    return order[first]


def rank_order(counts: Mapping[str, ArrayLike], table: str, rows: int) -> NDArray[np.int64]:
    """order[rank] = id: by falling count, ties by id."""
    if table not in counts:
        raise DataError(f"counts should have {table!r}, got {sorted(counts)}")
    count = np.asarray(counts[table])
    if count.shape != (rows,):
        raise DataError(f"counts[{table!r}] should have shape ({rows},), got {count.shape}")
    return np.argsort(-count.astype(np.int64), kind="stable")
