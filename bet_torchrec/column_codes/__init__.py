"""Column-scaled codes: a scale and an offset a column, each column in its own number of bits.

In a table's own axes columns differ in variance and rows don't much, so a row needs no scale of
its own. Encoding is here; reading with numpy alone is ``serving.column_codes``.
"""

from __future__ import annotations

from .bits import CodeCost, allocate
from .cells import Cells, cells_of
from .choose import Codes, choose_codes
from .encode import coded_bytes, encode_tables
from .read import CodedEmbedding, decode_rows
from .steps import Grids, best_grids
from .turn import Turn, loss_turn

__all__ = [
    "Cells",
    "CodeCost",
    "CodedEmbedding",
    "Codes",
    "Grids",
    "Turn",
    "allocate",
    "best_grids",
    "cells_of",
    "choose_codes",
    "coded_bytes",
    "decode_rows",
    "encode_tables",
    "loss_turn",
]
