"""Clicks: examples of many fields with a label, their splits, sources, and made-up ones."""

from __future__ import annotations

from .batch import ClickBatch
from .fields import Field
from .log import ClickLog
from .split import ClickSplit, split_given, split_random, split_temporal
from .vocabulary import Vocabulary

__all__ = [
    "ClickBatch",
    "ClickLog",
    "ClickSplit",
    "Field",
    "Vocabulary",
    "split_given",
    "split_random",
    "split_temporal",
]
