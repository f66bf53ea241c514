"""One append-only file of results: a JSON line a cell, whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import InvalidInputError
from ..files.lock import holding
from ..strict import parse
from .cells import Cell


def append_result(path: Path, record: Mapping[str, Any]) -> None:
    """Add a line, in the place of a torn one; several processes may, by turns."""
    with holding(path.parent, wait=True), path.open("a+b", buffering=0) as file:
        file.seek(0)
        content = file.read()
        file.truncate(content.rfind(b"\n") + 1)
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
            record = parse(line, dict[str, Any], "it")
            found[Cell(**record["cell"])] = record
        except (ValueError, TypeError, KeyError) as error:
            if number == len(lines):  # of a process that was killed
                break
            raise InvalidInputError(f"{path}, line {number}, is no result ({error})") from None
    return found
