"""Criteo's display advertising files: 13 integer features and 26 hashed ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from .codes import Builder
from .integers import log_square
from .log import ClickLog
from .text import TextColumns, read_into

INTEGERS = tuple(f"int_{i}" for i in range(13))
CATEGORIES = tuple(f"cat_{i}" for i in range(26))
"""The names that TorchRec gives them."""

PEP_MIN_COUNT = 10
"""PEP (ICLR 2021, A.4.1): values less frequent than this are out of vocabulary, Avazu's too."""


def read_criteo(
    paths: Path | str | Sequence[Path | str],
    *,
    integers: Literal["fields", "dense"] = "fields",
    spool: Path | None = None,
    name: str = "criteo",
) -> ClickLog:
    """The raw files, train.txt of Kaggle's challenge or days of the terabyte, also gzipped.

    A line is a label, 13 integers and 26 hexadecimal values, tab separated; empty means missing.
    A missing value is a value of its own.

    Args:
        paths: one file, or several that follow each other.
        integers: "fields" makes each a field by PEP's rule, see ``log_square``; "dense" a column
            of log(1 + v), 0 where missing or negative.
        spool: folder for what is larger than memory.

    Raises:
        DataError: not such a file; says line and column.
    """
    fields = {cat: 14 + i for i, cat in enumerate(CATEGORIES)}
    at = {name: 1 + i for i, name in enumerate(INTEGERS)}
    if integers == "fields":
        columns = TextColumns(
            width=40, label=0, single={**at, **fields}, reads=dict.fromkeys(INTEGERS, log_square)
        )
    else:
        columns = TextColumns(
            width=40, label=0, single=fields, dense=at, numbers=dict.fromkeys(INTEGERS, _log)
        )
    return read_all(columns, paths, "\t", header=False, spool=spool, name=name)


def read_criteo_encoded(
    paths: Path | str | Sequence[Path | str], *, spool: Path | None = None, name: str = "criteo"
) -> ClickLog:
    """Files that others made of Criteo's: comma separated, a label and 39 small integers."""
    names = (*INTEGERS, *CATEGORIES)
    columns = TextColumns(width=40, label=0, single={name: 1 + i for i, name in enumerate(names)})
    return read_all(columns, paths, ",", header=False, spool=spool, name=name, whole=True)


def read_all(
    columns: TextColumns,
    paths: Path | str | Sequence[Path | str],
    delimiter: str,
    *,
    header: bool,
    spool: Path | None,
    name: str,
    whole: bool = False,
) -> ClickLog:
    """Files of the same columns, one after the other. whole: integers where all values are."""
    builder: Builder = columns.builder(name, spool=spool, whole=whole)
    for path in [paths] if isinstance(paths, str | Path) else paths:
        read_into(builder, Path(path), columns, delimiter=delimiter, header=header)
    return builder.finish()


def _log(cell: str) -> float:
    return math.log1p(max(int(cell), 0)) if cell else 0.0
