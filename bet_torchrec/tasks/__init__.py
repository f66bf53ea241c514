"""What is learnt: ranking, clicks, a user's own TorchRec model."""

from __future__ import annotations

from .clicks import ClickTask
from .ranking import BPR, RankingTask
from .task import Batch, Part, Report, Task, TellsExamples

__all__ = [
    "BPR",
    "Batch",
    "ClickTask",
    "Part",
    "RankingTask",
    "Report",
    "Task",
    "TellsExamples",
]
