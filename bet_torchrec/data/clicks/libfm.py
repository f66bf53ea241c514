"""libfm's text form: a label and then ``feature:1``, one feature a field; Frappe comes so."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from ..lines import opened
from .codes import Builder
from .log import ClickLog
from .text import TextColumns, read_into


def read_libfm(
    paths: Path | str | Sequence[Path | str],
    fields: Sequence[str] | None = None,
    *,
    spool: Path | None = None,
    name: str = "libfm",
) -> tuple[ClickLog, list[int]]:
    """Files in which every line has one feature of each field, in the same order.

    Args:
        paths: one file, or several that share their features. fields: names, field_0 ... by
            default.

    Returns:
        The log, a label above 0 being a click, and how many examples each file has.

    Raises:
        DataError: a line with more or fewer features than the first, a feature whose value is
            not 1, a feature in two fields.
    """
    listed = [Path(p) for p in ([paths] if isinstance(paths, str | Path) else paths)]
    if not listed:
        raise DataError(f"{name}: expected at least one libfm file, got none")
    with opened(listed[0], "a label and features") as file:
        width = len(file.readline().split())
    if width < 2:
        raise DataError(f"{listed[0]} should have a label and features on a line, got {width} word")
    names = list(fields or (f"field_{i}" for i in range(width - 1)))
    if len(names) != width - 1:
        raise DataError(f"{listed[0]} has {width - 1} features on a line, got {len(names)} names")
    columns = TextColumns(
        width=width,
        label=0,
        single={field: 1 + i for i, field in enumerate(names)},
        reads=dict.fromkeys(names, _feature),
        to_label=_positive,
    )
    builder: Builder = columns.builder(name, spool=spool, whole=True)
    sizes = [read_into(builder, path, columns, delimiter=" ", header=False) for path in listed]
    seen: dict[str, str] = {}
    for field, codes in builder.codes.items():
        for feature in codes.of_value:
            if seen.setdefault(feature, field) != field:
                raise DataError(
                    f"{name}: every feature should be of one field, got {feature} in "
                    f"{seen[feature]} and {field}; lines should have them in one order"
                )
    return builder.finish(), sizes


def _feature(cell: str) -> str:
    feature, colon, value = cell.partition(":")
    if not colon or not feature.isdecimal() or float(value) != 1:
        raise ValueError(f"a feature should be NUMBER:1, got {cell!r}")
    return feature


def _positive(labels: NDArray[np.float64]) -> NDArray[np.bool_]:
    return labels > 0
