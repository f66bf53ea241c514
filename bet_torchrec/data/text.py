"""Interactions in text: csv, tsv, MovieLens' ``::``, and LightGCN's one line a user. Also gzipped.

Read in pieces, by Python's csv module; 1.5 to 2.5 seconds a million interactions.
"""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .columns import Columns, RawPairs, find, position
from .errors import DataError
from .lines import is_whole, opened, rows_of
from .sniff import delimiter_of, has_header, is_lists

Layout = Literal["auto", "pairs", "lists"]

PIECE = 500_000  # rows read at a time
_LONGEST_ID = 200
_EXPECTED = "a user and an item"
_MISSING = ("", "nan", "null", "none", "na")


def read_text(
    path: Path,
    columns: Columns,
    *,
    delimiter: str | None = None,
    header: bool | None = None,
    layout: Layout = "auto",
    rated: bool = False,
) -> RawPairs:
    """The columns of a text file.

    Args:
        delimiter: None finds it: ``::``, tab, comma, semicolon, bar, else white space.
        header: whether the first line names the columns; None finds out.
        layout: "pairs" has an interaction a line, "lists" a user a line with all its items
            (LightGCN); "auto" takes lists where lines separated by blanks differ in length.
        rated: ratings are needed; without a header or a position they are the third column.
    """
    with opened(path, _EXPECTED) as file:
        sample = [line for line in islice(file, 100) if line.strip()]
    if not sample:
        raise DataError(f"{path} is empty; expected lines of {_EXPECTED}")
    delimiter = delimiter or delimiter_of(sample[0])
    if layout == "auto":
        layout = "lists" if is_lists(sample, delimiter) else "pairs"
    if layout == "lists":
        return _read_lists(path, delimiter)
    rows = list(rows_of(sample, delimiter))
    width = len(rows[0])
    if width < 2:
        raise DataError(
            f"{path} should have a user and an item on a line, got {sample[0].strip()[:80]!r} "
            f"(separated by {delimiter!r})"
        )
    if header is None:
        header = columns.named() or has_header(rows)
    at = _places(rows[0] if header else None, width, columns, str(path), rated)
    return _read_pairs(path, delimiter, header, width, at)


def _read_pairs(
    path: Path, delimiter: str, header: bool, width: int, at: dict[str, int]
) -> RawPairs:
    pieces: dict[str, list[NDArray[Any]]] = {what: [] for what in at}
    done = 0
    with opened(path, _EXPECTED) as file:
        rows = rows_of(file, delimiter)
        if header:
            next(rows)
        while piece := list(islice(rows, PIECE)):
            if set(map(len, piece)) != {width}:
                bad = next(i for i, row in enumerate(piece) if len(row) != width)
                raise DataError(
                    f"{path}: row {done + bad + 1} should have {width} columns like the first, got "
                    f"{len(piece[bad])}: {delimiter.join(piece[bad])[:80]!r}; the file may be "
                    "truncated, or its delimiter another"
                )
            for what, i in at.items():
                cells = [row[i].strip() for row in piece]
                convert = ids_of if what in ("user", "item") else _numbers
                pieces[what].append(convert(cells, f"{path}: {what}", done))
            done += len(piece)
    if not done:
        raise DataError(f"{path} has a header and no interactions")
    found = {what: _joined(parts) for what, parts in pieces.items()}
    return RawPairs(
        users=found["user"],
        items=found["item"],
        ratings=found.get("rating"),
        timestamps=found.get("timestamp"),
    )


def _read_lists(path: Path, delimiter: str) -> RawPairs:
    users: list[str] = []
    lengths: list[int] = []
    items: list[str] = []
    with opened(path, _EXPECTED) as file:
        for row in rows_of(file, delimiter):
            users.append(row[0].strip())
            cells = [cell for cell in row[1:] if cell.strip()]
            lengths.append(len(cells))
            items.extend(cells)
    if not items:
        raise DataError(f"{path} has {len(users)} users and no items")
    empty = lengths.count(0)
    note = f"{path.name}: {empty:,} users without items left out"
    return RawPairs(
        users=np.repeat(ids_of(users, f"{path}: user", 0), lengths),
        items=ids_of(items, f"{path}: item", 0),
        notes=(note,) if empty else (),
    )


def ids_of(cells: list[str], what: str, start: int) -> NDArray[Any]:
    """int64 where all are whole numbers, else strings; "007" is a string, "7.0" a number."""
    if max(map(len, cells)) > _LONGEST_ID:
        bad = next(i for i, cell in enumerate(cells) if len(cell) > _LONGEST_ID)
        raise DataError(
            f"{what} ids should be short, got {len(cells[bad])} characters in row {start + bad + 1}"
            f": {cells[bad][:40]!r}...; is it the right column?"
        )
    array = np.array(cells)
    if is_whole(array):
        return array.astype(np.int64)
    for i, cell in enumerate(cells):
        if cell.lower() in _MISSING:
            raise DataError(f"{what} id is missing in row {start + i + 1} ({cell!r}); remove it")
    if all(cell.endswith(".0") for cell in cells):
        whole = np.array([cell[:-2] for cell in cells])
        if is_whole(whole):
            return whole.astype(np.int64)
    return array


def _numbers(cells: list[str], what: str, start: int) -> NDArray[Any]:
    if max(map(len, cells)) <= _LONGEST_ID:
        array = np.array(cells)
        if is_whole(array):
            return array.astype(np.int64)
        try:
            return array.astype(np.float64)
        except ValueError:
            pass
    for i, cell in enumerate(cells):
        try:
            float(cell)
        except ValueError:
            raise DataError(
                f"{what} should be a number, got {cell[:40]!r} in row {start + i + 1}"
            ) from None
    return np.array([float(cell) for cell in cells])


def _joined(parts: list[NDArray[Any]]) -> NDArray[Any]:
    if any(part.dtype.kind == "U" for part in parts):
        parts = [part.astype(str) for part in parts]
    return np.concatenate(parts)


def _places(
    names: list[str] | None, width: int, columns: Columns, source: str, rated: bool
) -> dict[str, int]:
    """The position of each column that there is."""
    defaults = {"user": 0, "item": 1, **({"rating": 2} if rated and width > 2 else {})}
    at: dict[str, int] = {}
    for what, column in columns.chosen().items():
        if names is not None:
            place = find(names, column, what, source)
        elif isinstance(column, str):
            raise DataError(f"{source}: {column!r} needs a header line, and header=False was given")
        else:
            column = defaults.get(what) if column is None else column
            place = None if column is None else position(column, width, what, source)
        if place is not None:
            at[what] = place
    if "user" not in at or "item" not in at:
        raise DataError(
            f"{source} should have a column of users and one of items, got "
            f"{', '.join(names or ())}; say which by user= and item=, names or positions from 0"
        )
    if at["user"] == at["item"]:
        raise DataError(f"{source}: users and items can't be the same column, {at['user']}")
    return at
