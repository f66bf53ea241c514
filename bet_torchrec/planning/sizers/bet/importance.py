"""What a table is worth to the full model, by leaving it out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ...budget import Budget
from ...plan import SizePlan
from ..problem import SizingProblem


def quality_lost(problem: SizingProblem, tables: Sequence[int]) -> NDArray[np.float64]:
    """The share of the full quality that is lost when one of ``tables`` reads as zeros, each alone.

    A validation a table, without any training; infinite where that is no number. The problem needs
    a workbench.
    """
    full = {t.name: np.full(t.num_embeddings, t.embedding_dim) for t in problem.tables}
    everything = Budget.parameters(sum(t.parameters for t in problem.tables))
    lost = []
    for t in tables:
        name = problem.tables[t].name
        sizes = {**full, name: np.zeros_like(full[name])}
        plan = SizePlan.from_sizes(problem.tables, sizes, budget=everything, sizer="bet")
        outcome = problem.fitness(plan, epochs=0)
        lost.append(1 - outcome.quality if outcome.ok else np.inf)
    return np.array(lost)
