"""Ours against TorchRec's, call by call: one case a row of docs/conformance.md."""

from __future__ import annotations

import pytest
from conformance_kinds import Kind
from conformance_rows import DOCUMENT, TABLE
from conformance_table import Row


@pytest.mark.parametrize(("row", "kind"), [case for row in TABLE.rows for case in row.cases()])
def test_row(row: Row, kind: Kind) -> None:
    end = row.ends[kind.name]
    if end.state == "refused":
        with pytest.raises(Exception, match=end.text):
            row.check(kind)
    else:
        row.check(kind)


def test_the_document_is_current() -> None:
    expected = TABLE.markdown()
    assert DOCUMENT.read_text() == expected, "run python tests/conformance/write_table.py"
