"""npz files of ids that others made dense: examples by fields, and labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..arrays import read_arrays
from ..errors import DataError
from .check import check_both_classes
from .fields import Field
from .log import ClickLog
from .vocabulary import Vocabulary


def read_coded(
    path: Path | str,
    *,
    label: str,
    positive: float | None = None,
    time: str | None = None,
    name: str = "coded",
) -> ClickLog:
    """Arrays ``x`` (integers (N, F)), ``fields`` (names), ``rows`` (of each) and a label's.

    Args:
        label: the array of labels, 0 or 1, or numbers if ``positive`` is given: those of this or
            more are 1. time: the array of the examples' times.

    An id's row is the id + 1, because row 0 is out of vocabulary.

    Raises:
        DataError: such arrays are not in it, or don't fit each other.
    """
    arrays = read_arrays(Path(path))
    wanted = ["x", "fields", "rows", label, *([time] if time else [])]
    if missing := [array for array in wanted if array not in arrays]:
        raise DataError(
            f"{path} should have the arrays {', '.join(wanted)}, got {', '.join(arrays)}: no "
            f"{', '.join(missing)}"
        )
    ids, names, rows = arrays["x"], arrays["fields"], arrays["rows"]
    if ids.ndim != 2 or not len(names) == len(rows) == ids.shape[1] or ids.dtype.kind not in "iu":
        raise DataError(
            f"{path}: x should be integers (N, {len(names)}), a column a field, got {ids.dtype} "
            f"{ids.shape} and {len(rows)} numbers of rows"
        )
    if ids.size and ids.min() < 0:
        raise DataError(f"{path}: x should be 0 or more, got {ids.min()}")
    sizes = {str(field): int(size) for field, size in zip(names, rows, strict=True)}
    values = arrays[label] if positive is None else arrays[label] >= positive
    log = ClickLog.from_arrays(
        [Field(field, size + 1) for field, size in sizes.items()],
        labels=values,
        ids=ids.astype(np.int32) + 1,
        timestamps=arrays[time].astype(np.int64) if time else None,
        vocabularies={field: Vocabulary.of(field, np.arange(n)) for field, n in sizes.items()},
        name=name,
    )
    check_both_classes(log.labels, name)
    return log
