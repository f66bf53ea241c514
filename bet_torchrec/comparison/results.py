"""One append-only file of results: a JSON line a cell, whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import InvalidInputError
from .cells import Cell


def append_result(path: Path, record: Mapping[str, Any]) -> None:
    """Add a line; several processes may, a line is one write."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab", buffering=0) as file:
        file.write((json.dumps(record) + "\n").encode())


def read_results(path: Path) -> dict[Cell, dict[str, Any]]:
    """The latest record of every cell; a torn last line is left out.

    Raises:
        InvalidInputError: another line is no record.
    """
    if not path.is_file():
        return {}
    lines = path.read_bytes().splitlines()
    found: dict[Cell, dict[str, Any]] = {}
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
            found[Cell(**record["cell"])] = record
        except (ValueError, TypeError, KeyError) as error:
            if number == len(lines):  # of a process that was killed
                break
            raise InvalidInputError(f"{path}, line {number}, is no result ({error})") from None
    return found
