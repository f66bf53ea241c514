"""One verb for a trained model: its tables in a fraction of their bytes, without a search."""

from __future__ import annotations

from .compress import compress
from .result import Compressed, Compression, CompressionReport, Point

__all__ = ["Compressed", "Compression", "CompressionReport", "Point", "compress"]
