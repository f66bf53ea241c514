"""Embedding sizes row by row, strictly within a memory budget, as real TorchRec tables.

Two wings meet at one object, the plan: ``planning`` decides a size for every row, ``embeddings``
makes a plan real. Names load on first use, so that importing this costs next to nothing and
planning never pays for the training stack.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ._versions import VersionMismatchError, __version__

if TYPE_CHECKING:
    from .compression import compress
    from .data import Interactions, Split, generate, load
    from .embeddings import (
        BudgetedEmbeddingBagCollection,
        BudgetedEmbeddingBagCollectionSharder,
        BudgetedEmbeddingCollection,
        BudgetedEmbeddingCollectionSharder,
        migrate,
        quantize,
    )
    from .outcome import Outcome
    from .planning import (
        BET,
        Budget,
        BudgetPlanner,
        EqualSizes,
        InfeasibleBudgetError,
        MemoryModel,
        MixedRandom,
        RowCounts,
        SizePlan,
        TableSpec,
    )
    from .tasks import ClickTask, RankingTask, Task
    from .tasks.torchrec import TorchRecTask
    from .training import TrainingWorkbench, TrainSettings

_HOME = {
    **dict.fromkeys(("Interactions", "Split", "generate", "load"), "data"),
    "Outcome": "outcome",
    "compress": "compression",
    **dict.fromkeys(("ClickTask", "RankingTask", "Task"), "tasks"),
    "TorchRecTask": "tasks.torchrec",
    **dict.fromkeys(("TrainSettings", "TrainingWorkbench"), "training"),
    **dict.fromkeys(
        (
            "BudgetedEmbeddingBagCollection",
            "BudgetedEmbeddingBagCollectionSharder",
            "BudgetedEmbeddingCollection",
            "BudgetedEmbeddingCollectionSharder",
            "migrate",
            "quantize",
        ),
        "embeddings",
    ),
    **dict.fromkeys(
        (
            "BET",
            "Budget",
            "BudgetPlanner",
            "EqualSizes",
            "InfeasibleBudgetError",
            "MemoryModel",
            "MixedRandom",
            "RowCounts",
            "SizePlan",
            "TableSpec",
        ),
        "planning",
    ),
}

__all__ = [
    "BET",
    "Budget",
    "BudgetPlanner",
    "BudgetedEmbeddingBagCollection",
    "BudgetedEmbeddingBagCollectionSharder",
    "BudgetedEmbeddingCollection",
    "BudgetedEmbeddingCollectionSharder",
    "ClickTask",
    "EqualSizes",
    "InfeasibleBudgetError",
    "Interactions",
    "MemoryModel",
    "MixedRandom",
    "Outcome",
    "RankingTask",
    "RowCounts",
    "SizePlan",
    "Split",
    "TableSpec",
    "Task",
    "TorchRecTask",
    "TrainSettings",
    "TrainingWorkbench",
    "VersionMismatchError",
    "__version__",
    "compress",
    "generate",
    "load",
    "migrate",
    "quantize",
]


def __getattr__(name: str) -> Any:
    """Load an exported name on first use (PEP 562)."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
