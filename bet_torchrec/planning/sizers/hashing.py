"""The hashing trick and quotient-remainder: rows that share, so that all keep their full width.

Shapes: R rows of a table, m shared ones, d its width, D columns of a read.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import InvalidInputError
from ..tables import TableSpec
from .checks import check_positive
from .forms import FormPlan, form_cost, form_plan, infeasible
from .problem import SizingProblem
from .weights import TableWeights, attribute

_PRIME = 2**31 - 1  # ids are below it
Compose = Literal["multiply", "add"]


@dataclass(frozen=True, kw_only=True)
class Hashing:
    """The hashing trick: row h(id) of a smaller table of the same width, h universal.

    Every table keeps the same share of its rows, at least one. init_std: of the entries at first.
    """

    init_std: float = 0.01

    def __post_init__(self) -> None:
        check_positive(self, "init_std")

    def __call__(self, problem: SizingProblem) -> FormPlan:
        """The smaller tables; raises InfeasibleBudgetError if one row a table is too much."""

        def form(share: float, width: int) -> SharedTables:
            parts = [Part(t, (max(1, int(share * t.num_embeddings)),)) for t in problem.tables]
            return SharedTables(tuple(parts), width, self.init_std, "hash", "multiply")

        width = max(table.embedding_dim for table in problem.tables)
        return form_plan(problem, _largest(problem, form, width, "hashing"), "hashing")


@dataclass(frozen=True, kw_only=True)
class QuotientRemainder:
    """Quotient-remainder (Shi et al., KDD 2020): row id % m of one table with id // m of another.

    No two ids have the same two rows. m is as large as fits, which shares least; a table that fits
    whole is kept whole. Two tables have at least 2 sqrt(R) rows: where these don't fit at full
    width, all tables get the widest that does. compose: what joins two rows.
    init_std: of the entries at first; factors start around 1.
    """

    compose: Compose = "multiply"
    init_std: float = 0.01

    def __post_init__(self) -> None:
        check_positive(self, "init_std")
        if self.compose not in ("multiply", "add"):
            raise InvalidInputError(f"compose should be 'multiply' or 'add', got {self.compose!r}")

    def __call__(self, problem: SizingProblem) -> FormPlan:
        """The pairs of tables; raises InfeasibleBudgetError if the smallest, 1 wide, do not fit."""

        def form(share: float, width: int) -> SharedTables:
            parts = [Part(t, _pair(t.num_embeddings, share)) for t in problem.tables]
            return SharedTables(tuple(parts), width, self.init_std, "quotient", self.compose)

        low, high = 1, max(table.embedding_dim for table in problem.tables)
        while low < high:
            middle = (low + high + 1) // 2
            fits = form_cost(form(0.0, middle), problem.budget) <= problem.limit
            low, high = (middle, high) if fits else (low, middle - 1)
        return form_plan(problem, _largest(problem, form, low, "qr"), "qr")


def _pair(rows: int, share: float) -> tuple[int, ...]:
    """Remainders and quotients, together at most share * rows where that is possible."""
    if share >= 1 or rows <= 4:
        return (rows,)
    least = math.isqrt(rows - 1) + 1
    allowed = int(share * rows)
    # m + ceil(rows / m) rises from m = sqrt(rows) on
    low, high = least, rows
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if middle - (-rows // middle) <= allowed else (low, middle - 1)
    return (low, -(-rows // low))


def _largest(
    problem: SizingProblem, form: Callable[[float, int], SharedTables], width: int, sizer: str
) -> SharedTables:
    """The form of the largest share that fits."""
    smallest = form_cost(form(0.0, width), problem.budget)
    if smallest > problem.limit:
        raise infeasible(problem, sizer, smallest, "it needs some rows of every table")
    if form_cost(form(1.0, width), problem.budget) <= problem.limit:
        return form(1.0, width)
    low, high = 0.0, 1.0
    for _ in range(50):
        share = (low + high) / 2
        fits = form_cost(form(share, width), problem.budget) <= problem.limit
        low, high = (share, high) if fits else (low, share)
    return form(low, width)


@dataclass(frozen=True)
class Part:
    """A table, and the rows of the one or two that stand for it."""

    table: TableSpec
    rows: tuple[int, ...]


@dataclass(frozen=True)
class SharedTables:
    """A ``Form``: each table read through one smaller one ("hash") or two ("quotient")."""

    parts: tuple[Part, ...]
    width: int
    init_std: float
    by: Literal["hash", "quotient"]
    compose: Compose

    def dim(self, part: Part) -> int:
        """The width of a part's tables."""
        return min(self.width, part.table.embedding_dim)

    def shapes(self) -> list[tuple[int, int]]:
        return [(rows, self.dim(part)) for part in self.parts for rows in part.rows]

    def index_bytes(self) -> int:
        return 0  # two numbers a table

    def build(self, seed: int) -> SharedEmbedding:
        return SharedEmbedding(self, torch.Generator().manual_seed(seed))

    def content(self) -> dict[str, Any]:
        return {"all": self}


class SharedEmbedding(nn.Module):
    """Rows composed of shared ones; fits ``models.EmbeddingModule``."""

    def __init__(self, form: SharedTables, generator: torch.Generator) -> None:
        super().__init__()
        self.width = max(form.dim(part) for part in form.parts)
        self._form, self._parts = form, {part.table.name: part for part in form.parts}
        first, second = {}, {}
        for name, part in self._parts.items():
            drawn = torch.randn(part.rows[0], form.dim(part), generator=generator)
            first[name] = drawn * form.init_std
            if len(part.rows) > 1:
                drawn = torch.randn(part.rows[1], form.dim(part), generator=generator)
                around = 1.0 if form.compose == "multiply" else 0.0
                second[name] = around + drawn * form.init_std
            # drawn last, so that a seed decides a table's entries and its hash
            numbers = torch.randint(1, _PRIME, (2,), generator=generator)
            self.register_buffer(f"hash_{attribute(name)}", numbers)
        self.first, self.second = TableWeights(first), TableWeights(second)

    def lookup(self, name: str, ids: Tensor) -> Tensor:
        first, part = self.first[name], self._parts[name]
        if len(first) == part.table.num_embeddings:
            rows = F.embedding(ids, first)
        elif name in self.second:
            rows = F.embedding(ids % len(first), first)
            quotients = F.embedding(ids // len(first), self.second[name])
            rows = rows * quotients if self._form.compose == "multiply" else rows + quotients
        else:
            a, b = getattr(self, f"hash_{attribute(name)}")
            rows = F.embedding((a * ids + b) % _PRIME % len(first), first)
        missing = self.width - rows.shape[1]
        return F.pad(rows, (0, missing)) if missing else rows

    def table(self, name: str) -> Tensor:
        ids = torch.arange(self._parts[name].table.num_embeddings, device=self.first[name].device)
        return self.lookup(name, ids)

    @torch.no_grad()
    def full_tables(self) -> dict[str, Tensor]:
        """Copies of the tables, (R, D)."""
        return {name: self.table(name).clone() for name in self._parts}
