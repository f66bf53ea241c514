"""docs/defects.md names a test for every defect, and each of them exists."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
ROWS = [
    tuple(cell.strip() for cell in line.strip("| \n").split(" | "))
    for line in (REPOSITORY / "docs" / "defects.md").read_text().splitlines()
    if line.startswith("| ") and not line.startswith("| defect")
]


@cache
def functions(path: str) -> frozenset[str]:
    """A file's functions at the top level."""
    tree = ast.parse((REPOSITORY / path).read_text())
    return frozenset(node.name for node in tree.body if isinstance(node, ast.FunctionDef))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0][:40])
def test_every_defect_has_a_test_or_says_why_not(row):
    _, shown = row
    named = re.findall(r"`([^`]+)::(\w+)`", shown)
    if not shown.startswith("Open: "):
        assert named
        assert ", ".join(f"`{path}::{name}`" for path, name in named) == shown
    for path, name in named:
        # Rows of the conformance table are functions that its own test runs.
        assert name.startswith("test_") or Path(path).name.startswith("rows_")
        assert name in functions(path), f"{path} has no {name}"
