"""All rows, by importing the files that have them."""

from __future__ import annotations

from pathlib import Path

import rows_compile
import rows_module
import rows_optimizers
import rows_serving
import rows_sharded
import rows_wrappers
from conformance_table import TABLE

FILES = rows_module, rows_optimizers, rows_sharded, rows_wrappers, rows_compile, rows_serving
DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "conformance.md"

__all__ = ["DOCUMENT", "FILES", "TABLE"]
