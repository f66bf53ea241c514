"""Reading what a plan's tables were exported to, with numpy alone: no TorchRec, FBGEMM or torch."""

from .files import TableFileError, read_tables
from .packed import PackedBlock, PackedTable

__all__ = ["PackedBlock", "PackedTable", "TableFileError", "read_tables"]
