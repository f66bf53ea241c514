"""Write docs/conformance.md from the rows: ``python tests/conformance/write_table.py``."""

from __future__ import annotations

from conformance_rows import DOCUMENT, TABLE

if __name__ == "__main__":
    DOCUMENT.write_text(TABLE.markdown())
