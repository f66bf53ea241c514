"""One pass over a click log, block by block: its counts, its fingerprint."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from .log import ClickLog


def count_rows(log: ClickLog) -> dict[str, NDArray[np.int64]]:
    """{field: int64 (rows,), how often each row occurs}; some 100 million ids a second."""
    counts = {field.name: np.zeros(field.rows, dtype=np.int64) for field in log.fields}
    for block in log.blocks():
        columns = dict(zip(log.single, block.ids.T, strict=True))
        columns |= {name: bag.values for name, bag in block.bags.items()}
        for name, ids in columns.items():
            # bincount is the faster, but it makes an array of all rows each time.
            if len(counts[name]) <= 4 * len(ids):
                counts[name] += np.bincount(ids, minlength=len(counts[name]))
            else:
                np.add.at(counts[name], ids, 1)
    return counts


def digest(log: ClickLog) -> str:
    """16 hex digits of fields, ids, labels and dense values; the size of blocks has no part."""
    bags = [f"{what} of {name}" for name in log.multi for what in ("lengths", "values")]
    parts = {name: hashlib.sha256() for name in ("labels", "ids", "dense", *bags)}
    for block in log.blocks():
        parts["labels"].update(_bytes(block.labels, "<f4"))
        parts["ids"].update(_bytes(block.ids, "<i4"))
        if block.dense is not None:
            parts["dense"].update(_bytes(block.dense, "<f4"))
        for name, bag in block.bags.items():
            parts[f"lengths of {name}"].update(_bytes(np.diff(bag.offsets), "<i8"))
            parts[f"values of {name}"].update(_bytes(bag.values, "<i4"))
    whole = hashlib.sha256(repr(log.fields).encode())
    for name, part in parts.items():
        whole.update(name.encode() + part.digest())
    return whole.hexdigest()[:16]


def _bytes(array: NDArray[Any], dtype: str) -> bytes:
    return array.astype(dtype, copy=False).tobytes()
