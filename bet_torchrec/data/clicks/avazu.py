"""Avazu's click files: a header, and 22 fields a line of which one is the hour."""

from __future__ import annotations

import calendar
from collections.abc import Sequence
from pathlib import Path

from ..errors import DataError
from ..lines import opened
from .criteo import read_all
from .log import ClickLog
from .text import TextColumns

_NOT_FIELDS = ("id", "click", "hour")


def read_avazu(
    paths: Path | str | Sequence[Path | str], *, spool: Path | None = None, name: str = "avazu"
) -> ClickLog:
    """The raw files (Kaggle's train.csv), also gzipped, or others with a part of its columns.

    ``hour`` (YYMMDDHH) becomes the fields ``hour`` (00 to 23) and ``weekday`` (0 is Monday), and
    the examples' time. A file that has the hour of day alone (HH) gives no weekday and no time.
    ``id`` tells lines apart and is no field.

    Raises:
        DataError: files with different headers, or not such a file; says line and column.
    """
    listed = [Path(p) for p in ([paths] if isinstance(paths, str | Path) else paths)]
    if not listed:
        raise DataError("expected at least one file of Avazu's, got none")
    header, hour = _start(listed[0])
    for path in listed[1:]:
        other = _start(path)[0]
        if other != header:
            raise DataError(
                f"{path} should have the columns of {listed[0]}, {', '.join(header)}; got "
                f"{', '.join(other)}"
            )
    at = header.index("hour")
    single = {"hour": at}
    reads = {"hour": _hour_of_day}
    dated = len(hour) == 8
    if dated:
        single["weekday"], reads = at, {**reads, "weekday": _weekday}
    single |= {name: i for i, name in enumerate(header) if name not in _NOT_FIELDS}
    columns = TextColumns(
        width=len(header),
        label=header.index("click"),
        single=single,
        reads=reads if dated else {"hour": _two_digits},
        time=(at, _seconds) if dated else None,
    )
    return read_all(columns, listed, ",", header=True, spool=spool, name=name)


def _start(path: Path) -> tuple[list[str], str]:
    """The header, and the first line's hour."""
    with opened(path, "Avazu's columns") as file:
        header = [cell.strip() for cell in file.readline().split(",")]
        first = [cell.strip() for cell in file.readline().split(",")]
    if "click" not in header or "hour" not in header:
        raise DataError(
            f"{path} should have Avazu's header, with click and hour, got "
            f"{', '.join(header)[:200]!r}"
        )
    if len(set(header)) != len(header):
        raise DataError(f"{path} should have different columns, got {', '.join(header)}")
    return header, first[header.index("hour")] if len(first) == len(header) else ""


def _date(cell: str) -> tuple[int, int, int, int]:
    numbers = tuple(int(cell[i : i + 2]) for i in (0, 2, 4, 6))
    if len(cell) != 8 or not (1 <= numbers[1] <= 12 and 1 <= numbers[2] <= 31 and numbers[3] < 24):
        raise ValueError(f"an hour should be YYMMDDHH, got {cell!r}")
    return 2000 + numbers[0], numbers[1], numbers[2], numbers[3]


def _hour_of_day(cell: str) -> str:
    return f"{_date(cell)[3]:02d}"


def _weekday(cell: str) -> str:
    return str(calendar.weekday(*_date(cell)[:3]))


def _two_digits(cell: str) -> str:
    if len(cell) != 2 or not 0 <= int(cell) < 24:
        raise ValueError(f"an hour should be HH, got {cell!r}")
    return cell


def _seconds(cell: str) -> int:
    return calendar.timegm((*_date(cell), 0, 0))
