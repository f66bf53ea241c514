"""MLET: narrow tables trained as a product of two, E = W1 W2, through a wide layer in between.

Shapes: R rows of a table, k units between, D columns of a read.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import InvalidInputError
from ..tables import TableSpec
from .checks import check_positive
from .forms import FormPlan, form_cost, form_plan, infeasible, workbench_of
from .problem import SizingProblem
from .weights import TableWeights


@dataclass(frozen=True, kw_only=True)
class MLET:
    """Multi-layer embedding training: all rows of one width, trained through k = factor * width.

    After training a table is W1 W2 (``collapsed``), so that the budget pays for rows x width; what
    training takes beyond it, rows x k and a k x width matrix a table with their optimizer state,
    is in the answer's notes. What the width leaves of the budget stays unspent.

    factors: of k; where there are several, each is trained and validation chooses.
    settings: of those trainings, as the workbench takes them. init_std: of E's entries at first.
    """

    factors: tuple[int, ...] = (2, 4, 8, 16)
    settings: Any = None
    init_std: float = 0.01

    def __post_init__(self) -> None:
        object.__setattr__(self, "factors", tuple(self.factors))
        if not self.factors or not all(isinstance(f, int) and f >= 1 for f in self.factors):
            raise InvalidInputError(f"factors should be ints from 1 on, got {self.factors!r}")
        check_positive(self, "init_std")

    def __call__(self, problem: SizingProblem) -> FormPlan:
        """The best factor's tables.

        Raises:
            MissingEvaluationError: several factors and no workbench.
            InfeasibleBudgetError: not even one column a row fits.
        """
        plans = self.candidates(problem)
        if len(plans) == 1:
            return plans[0]
        bench = workbench_of(problem, "MLET with several factors")
        qualities = []
        for plan in plans:
            tried = bench.fit(plan.build(problem.seed), settings=self.settings, seed=problem.seed)
            outcome = problem.team.broadcast(tried.outcome)
            qualities.append(outcome.quality if outcome.ok else -math.inf)
        return plans[qualities.index(max(qualities))]

    def candidates(self, problem: SizingProblem) -> list[FormPlan]:
        """One a factor, all of the same tables after training."""
        width = self._width(problem)
        plans = []
        for factor in self.factors:
            form = FactoredTables(
                tables=problem.tables, width=width, factor=factor, init_std=self.init_std
            )
            extra = form.training_parameters()
            notes = {"width": str(width), "factor": str(factor), "in training": f"{extra} weights"}
            plans.append(form_plan(problem, form, "mlet", notes=notes))
        return plans

    def _width(self, problem: SizingProblem) -> int:
        """The widest that all tables can have, each at most its own embedding_dim."""

        def cost(width: int) -> int:
            form = FactoredTables(
                tables=problem.tables, width=width, factor=1, init_std=self.init_std
            )
            return form_cost(form, problem.budget)

        low, high = 1, max(table.embedding_dim for table in problem.tables)
        if cost(low) > problem.limit:
            raise infeasible(problem, "mlet", cost(low), "it has no rows without a column")
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if cost(middle) <= problem.limit else (low, middle - 1)
        return low


@dataclass(frozen=True, kw_only=True)
class FactoredTables:
    """A ``Form``: rows x width tables, each the product of rows x k and k x width, k = factor d."""

    tables: tuple[TableSpec, ...]
    width: int
    factor: int
    init_std: float

    def sizes(self) -> dict[str, tuple[int, int, int]]:
        """{table: rows, k and d}."""
        found = {}
        for table in self.tables:
            d = min(self.width, table.embedding_dim)
            found[table.name] = (table.num_embeddings, self.factor * d, d)
        return found

    def shapes(self) -> list[tuple[int, int]]:
        return [(rows, d) for rows, _, d in self.sizes().values()]

    def index_bytes(self) -> int:
        return 0

    def training_parameters(self) -> int:
        """Weights while it trains, both factors of all tables."""
        return sum(rows * k + k * d for rows, k, d in self.sizes().values())

    def build(self, seed: int) -> FactoredEmbedding:
        return FactoredEmbedding(self.sizes(), self.init_std, torch.Generator().manual_seed(seed))

    def content(self) -> dict[str, Any]:
        return {"width": self.width, "factor": self.factor, "init_std": self.init_std}


class FactoredEmbedding(nn.Module):
    """Tables W1 W2, without anything between; fits ``models.EmbeddingModule``.

    sizes: {table: (R, k, d)}; D is the largest d. init_std: of the product's entries: W1 has it,
    W2 is N(0, 1/k).
    """

    def __init__(
        self,
        sizes: Mapping[str, tuple[int, int, int]],
        init_std: float,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.width = max(d for _, _, d in sizes.values())
        first, second = {}, {}
        for name, (rows, k, d) in sizes.items():
            first[name] = torch.randn(rows, k, generator=generator) * init_std
            second[name] = torch.randn(k, d, generator=generator) / k**0.5
        self.first, self.second = TableWeights(first), TableWeights(second)

    def table(self, name: str) -> Tensor:
        return self._padded(self.first[name] @ self.second[name])

    def lookup(self, name: str, ids: Tensor) -> Tensor:
        return self._padded(F.embedding(ids, self.first[name]) @ self.second[name])

    def _padded(self, rows: Tensor) -> Tensor:
        missing = self.width - rows.shape[1]
        return F.pad(rows, (0, missing)) if missing else rows

    @torch.no_grad()
    def collapsed(self) -> dict[str, Tensor]:
        """{table: (R, d)}: what is stored after training."""
        return {name: first @ self.second[name] for name, first in self.first.items()}

    @torch.no_grad()
    def full_tables(self) -> dict[str, Tensor]:
        """Copies of the tables, (R, D)."""
        return {name: self.table(name).clone() for name in self.first}
