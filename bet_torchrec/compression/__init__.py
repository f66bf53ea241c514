"""One verb for a trained model: its tables in a fraction of their bytes, without a search.

task = TorchRecTask(tables, model=make_model, train=train, validation=validation)
found = compress(trained_model, budget=full_bytes // 16, task=task)
model = found.forms[0].deploy()
"""

from __future__ import annotations

from .compress import compress
from .result import Compressed, Compression, CompressionReport, Point

__all__ = ["Compressed", "Compression", "CompressionReport", "Point", "compress"]
