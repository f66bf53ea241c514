"""Training rows as a serving form will round them: what is read is rounded, what learns is not."""

from __future__ import annotations

from .codes import ColumnCodes
from .rows import RoundedRows
from .straight_through import coded, rounded_rows

__all__ = ["ColumnCodes", "RoundedRows", "coded", "rounded_rows"]
