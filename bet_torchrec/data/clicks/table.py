"""Anybody's csv or parquet file with named columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import DataError
from ..lines import opened, rows_of
from ..sniff import delimiter_of
from .codes import Builder
from .fields import check_names
from .integers import log_square
from .log import ClickLog
from .text import PIECE, Lines, TextColumns, add_cells, read_into


def read_table(
    path: str | Path,
    *,
    label: str,
    fields: Sequence[str] | None = None,
    multi_hot: Mapping[str, str] | None = None,
    dense: Sequence[str] = (),
    integers: Sequence[str] = (),
    timestamp: str | None = None,
    positive: float | None = None,
    delimiter: str | None = None,
    spool: Path | None = None,
    name: str | None = None,
) -> ClickLog:
    """A csv, tsv or other delimited file whose first line names its columns, also gzipped; or a
    parquet file, if pyarrow is installed.

    Args:
        label: its column, 0 or 1, or numbers if ``positive`` is given.
        fields: columns of single-hot ids: any text or integers, an empty cell is a value of its
            own; by default all columns that are named nowhere else.
        multi_hot: {column: what separates its ids, "|" say}; an empty cell has none. In parquet
            lists are lists, whatever the separator.
        dense: columns of finite numbers. integers: those of the fields that are integers to be
            grouped by PEP's rule, see ``log_square``.
        timestamp: a column of whole numbers that grow with time.
        positive: labels of this or more are 1, others 0.
        delimiter: one character or "::"; None finds tab, comma, semicolon or bar.
        spool: folder for what is larger than memory.

    Raises:
        DataError: no such column, one that is named twice, labels that are none or all alike, a
            wrong number of columns; with file and line.
    """
    path, bags = Path(path), dict(multi_hot or {})
    parquet = path.suffix in (".parquet", ".pq")
    if parquet:
        header = _parquet(path).schema_arrow.names
    else:
        header, delimiter = _header(path, delimiter)
    check_names(header, f"{path}: columns")
    used = [label, *bags, *dense, *([timestamp] if timestamp else [])]
    if fields is None:
        fields = [column for column in header if column not in used]
    for column in (*used, *fields, *integers):
        if column not in header:
            raise DataError(f"{path} should have a column {column!r}, got {', '.join(header)}")
    check_names([*used, *fields], f"{path}: label, fields, multi_hot, dense and timestamp")
    if not [*fields, *bags]:
        raise DataError(f"{path}: expected at least one field, got none")
    if missing := set(integers) - set(fields):
        raise DataError(f"{path}: integers should be fields, got {', '.join(sorted(missing))}")
    at = {column: i for i, column in enumerate(header)}
    columns = TextColumns(
        width=len(header),
        label=at[label],
        single={field: at[field] for field in fields},
        multi={field: (at[field], separator) for field, separator in bags.items()},
        dense={column: at[column] for column in dense},
        time=(at[timestamp], int) if timestamp else None,
        reads=dict.fromkeys(integers, log_square),
        to_label=None if positive is None else lambda values: values >= positive,
    )
    builder = columns.builder(name or path.name.split(".")[0], spool=spool, whole=True)
    if parquet:
        _read_parquet(builder, path, columns)
    else:
        read_into(builder, path, columns, delimiter=delimiter or ",", header=True)
    return builder.finish()


def _header(path: Path, delimiter: str | None) -> tuple[list[str], str]:
    with opened(path, "named columns") as file:
        line = file.readline()
        found = delimiter or delimiter_of(line)
        if len(found) != 1 and found != "::":
            raise DataError(f"delimiter should be one character or '::', got {delimiter!r}")
        names = next(rows_of([line], found), [])
    return [name.strip() for name in names], found


def _parquet(path: Path) -> Any:
    """The open file; pyarrow is no dependency of ours."""
    try:
        from pyarrow import ArrowException, parquet  # type: ignore[import-not-found]
    except ImportError as error:
        raise DataError(
            f"{path}: reading parquet needs pyarrow, which is not installed; pip install pyarrow, "
            "or give a csv file"
        ) from error
    try:
        return parquet.ParquetFile(path)
    except (OSError, ArrowException) as error:
        raise DataError(f"{path} should be a parquet file: {error}") from error


def _read_parquet(builder: Builder, path: Path, columns: TextColumns) -> None:
    """A parquet file's rows, some at a time, as the text they would be; null is an empty cell."""
    first = 1
    for batch in _parquet(path).iter_batches(batch_size=PIECE):
        if batch.num_rows:
            cells = [[_cell(value) for value in column.to_pylist()] for column in batch.columns]
            add_cells(builder, columns, cells, Lines(path, first))
            first += batch.num_rows


def _cell(value: Any) -> Any:
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    if isinstance(value, list):
        return [_cell(one) for one in value]
    return str(int(value) if isinstance(value, bool) else value)
