"""Arrays checked before they become a click log, block by block."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import DataError
from .fields import Field
from .store import Bag, Store

_BLOCK = 1 << 18


def checked_store(
    fields: Sequence[Field],
    labels: ArrayLike,
    ids: ArrayLike | None,
    bags: Mapping[str, tuple[ArrayLike, ArrayLike]],
    dense: ArrayLike | None,
    timestamps: ArrayLike | None,
    name: str,
) -> Store:
    """A store of these arrays, or DataError that says what is wrong with them."""
    label = checked_labels(labels, name)
    n = len(label)
    single = [field for field in fields if not field.multi_hot]
    multi = {field.name: field for field in fields if field.multi_hot}
    array = np.zeros((n, 0), dtype=np.int32) if ids is None else np.asanyarray(ids)
    if array.shape != (n, len(single)) or array.dtype.kind not in "iu":
        raise DataError(
            f"{name}: ids should be integers ({n}, {len(single)}), an example a row and a "
            f"single-hot field a column, got shape {array.shape} of {array.dtype}"
        )
    for start in range(0, n, _BLOCK):
        block = array[start : start + _BLOCK]
        for column, field in zip(block.T, single, strict=True):
            _check_rows(column, field, start, name)
    if set(bags) != set(multi):
        raise DataError(
            f"{name}: bags should be of the multi-hot fields {sorted(multi)}, got {sorted(bags)}"
        )
    made = {field: _bag(*bags[field], multi[field], n, name) for field in multi}
    values = None if dense is None else checked_dense(dense, n, name)
    times = None if timestamps is None else np.asanyarray(timestamps)
    if times is not None and (times.shape != (n,) or times.dtype.kind not in "iu"):
        raise DataError(
            f"{name}: timestamps should be integers ({n},), got shape {times.shape} of "
            f"{times.dtype}"
        )
    return Store(
        labels=label,
        ids=array.astype(np.int32, copy=False),
        bags=made,
        dense=values,
        timestamps=None if times is None else times.astype(np.int64, copy=False),
    )


def checked_labels(labels: ArrayLike, name: str) -> NDArray[np.float32]:
    """float32 (N,), each 0 or 1, at least one."""
    array = np.asanyarray(labels)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iufb"):
        raise DataError(
            f"{name}: labels should be numbers (N,), got shape {array.shape} of {array.dtype}"
        )
    if array.size == 0:
        raise DataError(f"{name}: expected at least one example, got none")
    for start in range(0, len(array), _BLOCK):
        block = array[start : start + _BLOCK]
        wrong = (block != 0) & (block != 1)
        if wrong.any():
            bad = int(np.argmax(wrong))
            raise DataError(
                f"{name}: labels should be 0 or 1, got {block[bad]} at example {start + bad}"
            )
    return array.astype(np.float32, copy=False)


def check_both_classes(labels: NDArray[Any], name: str) -> None:
    """DataError where there is nothing to tell apart."""
    if labels.min() == labels.max():
        raise DataError(
            f"{name}: labels should be of both classes, got {labels[0]:g} in all "
            f"{len(labels):,} examples; is it the right column?"
        )


def _bag(values: ArrayLike, offsets: ArrayLike, field: Field, n: int, name: str) -> Bag:
    ids, ends = np.asanyarray(values), np.asanyarray(offsets)
    if ids.size == 0:
        ids = ids.astype(np.int32)
    what = f"{name}: field {field.name!r}"
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise DataError(f"{what}: values should be integers (n,), got {ids.dtype} {ids.shape}")
    if ends.shape != (n + 1,) or ends.dtype.kind not in "iu":
        raise DataError(
            f"{what}: offsets should be integers ({n + 1},), one more than examples, got "
            f"shape {ends.shape} of {ends.dtype}"
        )
    ends = ends.astype(np.int64, copy=False)
    if ends[0] != 0 or ends[-1] != len(ids) or (ends[1:] < ends[:-1]).any():
        raise DataError(
            f"{what}: offsets should rise from 0 to the {len(ids)} values, got {ends[0]} to "
            f"{ends[-1]}"
        )
    for start in range(0, len(ids), _BLOCK):
        _check_rows(ids[start : start + _BLOCK], field, start, name)
    return Bag(ids.astype(np.int32, copy=False), ends)


def checked_dense(dense: ArrayLike, n: int, name: str) -> NDArray[np.float32]:
    """float32 (n, K), finite."""
    array = np.asanyarray(dense)
    if array.ndim != 2 or len(array) != n or array.dtype.kind not in "iufb":
        raise DataError(
            f"{name}: dense should be numbers ({n}, K), got shape {array.shape} of {array.dtype}"
        )
    for start in range(0, n, _BLOCK):
        fine = np.isfinite(array[start : start + _BLOCK])
        if not fine.all():
            row, column = (int(at[0]) for at in np.nonzero(~fine))
            raise DataError(
                f"{name}: dense values should be finite, got {array[start + row, column]} at "
                f"example {start + row}, column {column}; fill or remove it"
            )
    return array.astype(np.float32, copy=False)


def _check_rows(ids: NDArray[Any], field: Field, start: int, name: str) -> None:
    if len(ids) and (ids.min() < 0 or ids.max() >= field.rows):
        bad = int(np.argmax((ids < 0) | (ids >= field.rows)))
        raise DataError(
            f"{name}: field {field.name!r} should have ids from 0 to {field.rows - 1}, got "
            f"{ids[bad]} at position {start + bad}"
        )
