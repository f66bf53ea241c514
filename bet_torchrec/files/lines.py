"""Append-only files of JSON lines, each of which vouches for itself and for all before it.

A line ends in the CRC-32 of itself after that of the line before, so a changed, lost or doubled
line is noticed. What a crash cut short is not a line.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import BetError
from ..strict import StrictError, parse

_SUM = "crc32"


class LineError(BetError, ValueError):
    """A line is not what was written; says which."""


@dataclass(frozen=True)
class Lines:
    """values: of the whole lines. size: their bytes. checksum: of the last, 0 where none is."""

    values: list[dict[str, Any]]
    size: int
    checksum: int


def append_line(path: Path, value: Mapping[str, Any], before: int) -> int:
    """Write a line and put it on the disk.

    Args:
        before: the checksum of the line before, 0 for the first.

    Returns:
        Its checksum.
    """
    checksum = zlib.crc32(json.dumps(value, allow_nan=False).encode(), before)
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps({**value, _SUM: checksum}) + "\n")
        file.flush()
        os.fsync(file.fileno())
    return checksum


def read_lines(path: Path) -> Lines:
    """All whole lines, checked.

    Raises:
        LineError: one is no JSON object in UTF-8, or not as it was written.
    """
    data, before, values = path.read_bytes(), 0, []
    size = data.rfind(b"\n") + 1
    for number, line in enumerate(data[:size].split(b"\n")[:-1], 1):
        try:
            value = parse(line, dict[str, Any], "it")
        except StrictError as error:
            raise LineError(f"line {number}: {error}") from error
        said, before = value.pop(_SUM, None), zlib.crc32(json.dumps(value).encode(), before)
        if said != before:
            raise LineError(f"line {number}: its checksum does not match, it was changed or moved")
        values.append(value)
    return Lines(values, size, before)
