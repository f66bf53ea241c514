"""All rows, by importing the files that have them, in the order of the table."""

from __future__ import annotations

from pathlib import Path

import rows_compile
import rows_module
import rows_optimizers
import rows_serving
import rows_sharded
import rows_wrappers
from conformance_table import TABLE

__all__ = ["DOCUMENT", "TABLE", "rows_compile", "rows_module", "rows_optimizers", "rows_serving", "rows_sharded", "rows_wrappers"]

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "conformance.md"
