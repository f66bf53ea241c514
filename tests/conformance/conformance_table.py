"""The table: what one does with TorchRec's collections, and what ours do then.

A row is a function that drives ours and TorchRec's by the same calls and compares, for each kind of
collection; beside it stands how that ends: it works, it is refused with an error that says what to
do, it is open (a known fault, with its reason), or TorchRec itself has nothing of the sort.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from conformance_kinds import KINDS, Kind

Check = Callable[[Kind], None]


@dataclass(frozen=True)
class End:
    """How a row ends for a kind. text: of the error, or the reason."""

    state: str  # "works" | "refused" | "open" | "n.a."
    text: str = ""


WORKS = End("works")


def refused(match: str) -> End:
    """An error of ours, or one that TorchRec raises as well, with this text."""
    return End("refused", match)


def open_(reason: str) -> End:
    """A fault that is known; its test is expected to fail until it is mended."""
    return End("open", reason)


def missing(reason: str) -> End:
    """TorchRec has none, or not on this machine."""
    return End("n.a.", reason)


@dataclass(frozen=True)
class Row:
    group: str
    name: str
    check: Check
    ends: dict[str, End]
    marks: tuple[Any, ...] = ()

    def cases(self) -> Iterator[Any]:
        """A test for each kind that there is something to test of."""
        for kind in KINDS:
            end = self.ends[kind.name]
            if end.state == "n.a.":
                continue
            marks = list(self.marks)
            if end.state == "open":
                marks.append(pytest.mark.xfail(strict=True, reason=end.text))
            name = f"{self.name}-{kind.name}".replace(" ", "_")
            yield pytest.param(self, kind, id=name, marks=marks)


@dataclass
class Table:
    """All rows, in the order of their groups."""

    rows: list[Row] = field(default_factory=list)

    def row(
        self,
        group: str,
        name: str,
        *,
        pooled: End = WORKS,
        unpooled: End = WORKS,
        slow: bool = False,
    ) -> Callable[[Check], Check]:
        """Register a row, whose check takes a kind."""

        def register(check: Check) -> Check:
            marks = (pytest.mark.slow,) if slow else ()
            ends = {"pooled": pooled, "unpooled": unpooled}
            self.rows.append(Row(group, name, check, ends, marks))
            return check

        return register

    def markdown(self) -> str:
        """The whole table, for people."""
        counts = {
            state: sum(end.state == state for row in self.rows for end in row.ends.values())
            for state in ("works", "refused", "open", "n.a.")
        }
        lines = [
            "# What one does with TorchRec's collections, and what ours do then",
            "",
            "Each row drives `BudgetedEmbeddingBagCollection` (pooled) and "
            "`BudgetedEmbeddingCollection` (unpooled) and TorchRec's own by the same calls and "
            "compares (`tests/conformance`). *Works*: the same result. *Refused*: an error that "
            "says what to do, never silence. *Open*: a known fault. *n.a.*: TorchRec has none "
            "either, or not on a machine without a GPU.",
            "",
            "This file is written by `python tests/conformance/write_table.py` from the tests' own "
            "rows, and a test says when it is not current.",
            "",
            ", ".join(f"{state}: {count}" for state, count in counts.items()) + ".",
        ]
        notes: list[str] = []
        for group in dict.fromkeys(row.group for row in self.rows):
            lines += ["", f"## {group}", "", "| | pooled | unpooled |", "|---|---|---|"]
            for row in self.rows:
                if row.group == group:
                    cells = [self._cell(end, notes) for end in row.ends.values()]
                    lines.append(f"| {row.name} | {' | '.join(cells)} |")
        lines += ["", "## Notes", ""]
        lines += [f"{number}. {note}" for number, note in enumerate(notes, 1)]
        return "\n".join(lines) + "\n"

    def _cell(self, end: End, notes: list[str]) -> str:
        if not end.text:
            return end.state
        note = end.text.replace(".*", " ... ").replace("\\", "")
        if note not in notes:
            notes.append(note)
        return f"{end.state} ({notes.index(note) + 1})"


TABLE = Table()
