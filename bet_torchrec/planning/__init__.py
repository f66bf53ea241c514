"""The wing that decides: counts, budgets, plans and sizers. Never imports TorchRec."""

from __future__ import annotations

from ..errors import InfeasibleBudgetError
from .advice import DEFAULT_WIDTHS
from .budget import OPTIMIZERS, PRECISIONS, Budget, MemoryModel
from .counts import RowCounts
from .plan import Bucket, SizePlan, TablePlan
from .planner import BudgetPlanner
from .relabelling import Relabelling
from .sizers import BET, SIZERS, EqualSizes, MixedRandom, Sizer, SizingProblem, Workbench
from .tables import Table, TableSpec

__all__ = [
    "BET",
    "DEFAULT_WIDTHS",
    "OPTIMIZERS",
    "PRECISIONS",
    "SIZERS",
    "Bucket",
    "Budget",
    "BudgetPlanner",
    "EqualSizes",
    "InfeasibleBudgetError",
    "MemoryModel",
    "MixedRandom",
    "Relabelling",
    "RowCounts",
    "SizePlan",
    "Sizer",
    "SizingProblem",
    "Table",
    "TablePlan",
    "TableSpec",
    "Workbench",
]
