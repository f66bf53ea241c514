"""What is learnt: ranking, clicks, a user's own TorchRec model."""

from __future__ import annotations

from .task import Batch, Part, Task

__all__ = ["Batch", "Part", "Task"]
