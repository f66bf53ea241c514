"""Lines of text files, plain or gzipped, as rows of cells; whatever is wrong is a DataError."""

from __future__ import annotations

import csv
import gzip
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from .errors import DataError
from .sniff import refuse_foreign


def rows_of(lines: Iterable[str], delimiter: str) -> Iterator[list[str]]:
    """Rows of cells, blank lines left out."""
    if delimiter == " ":
        rows: Iterable[list[str]] = (line.split() for line in lines)
    elif delimiter == "::":
        rows = csv.reader(
            (line.replace("::", "\x1f") for line in lines),
            delimiter="\x1f",
            quoting=csv.QUOTE_NONE,
        )
    elif delimiter in ",;":
        rows = csv.reader(lines, delimiter=delimiter, skipinitialspace=True)
    else:
        rows = csv.reader(lines, delimiter=delimiter, quoting=csv.QUOTE_NONE)
    return (row for row in rows if len(row) > 1 or (row and row[0].strip()))


def line_of(lines: Iterable[str], delimiter: str, row: int) -> int:
    """The line, from 1, at which a row ends, from 1: blank lines and quoted breaks counted."""
    read = 0

    def counted() -> Iterator[str]:
        nonlocal read
        for line in lines:
            read += 1
            yield line

    next(islice(rows_of(counted(), delimiter), row - 1, None), None)
    return read


@contextmanager
def opened(path: Path, expected: str, encoding: str = "utf-8-sig") -> Iterator[IO[str]]:
    """The text of a file, unzipped where it is gzip; whatever is wrong with it is a DataError.

    expected: what a line should hold, for errors.
    """
    try:
        with open(path, "rb") as file:
            zipped = file.read(2) == b"\x1f\x8b"
        opener: Any = gzip.open if zipped else open
        with opener(path, "rb") as file:
            refuse_foreign(file.read(4096), path, expected)
        with opener(path, "rt", encoding=encoding, newline="") as text:
            yield text
    except UnicodeDecodeError as error:
        name = "UTF-8" if encoding == "utf-8-sig" else encoding
        raise DataError(f"{path} should be text in {name}: {error}; convert it") from error
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path} is a damaged or truncated gzip file: {error}") from error
    except csv.Error as error:
        raise DataError(f"{path} can't be read as csv: {error}; is a quote open?") from error
    except OSError as error:
        raise DataError(f"{path} can't be read: {error}") from error


def is_whole(array: NDArray[Any]) -> bool:
    """Whether all are written as str(int) would, in at most 18 digits. array: strings (n,)."""
    width = array.dtype.itemsize // 4
    if not 1 <= width <= 18:
        return False
    codes = np.ascontiguousarray(array).view(np.uint32).reshape(len(array), width)
    minus = (codes[:, 0] == ord("-")) if width > 1 else np.zeros(len(array), dtype=bool)
    digit = (codes >= ord("0")) & (codes <= ord("9"))
    lengths = (codes != 0).sum(axis=1)
    leading = np.where(minus, codes[:, min(1, width - 1)], codes[:, 0])
    fine = (digit.sum(axis=1) + minus == lengths) & (lengths > minus)
    return bool((fine & ((leading != ord("0")) | (lengths == 1))).all())
