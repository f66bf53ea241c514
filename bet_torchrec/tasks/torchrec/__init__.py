"""A user's own TorchRec model as a task. Importing this loads TorchRec."""

from __future__ import annotations

from .counting import count_ids, load_counts, save_counts
from .task import TorchRecTask

__all__ = ["TorchRecTask", "count_ids", "load_counts", "save_counts"]
