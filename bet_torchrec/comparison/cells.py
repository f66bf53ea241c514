"""What is compared: a cell is one method on one task under one budget with one seed."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from itertools import product
from typing import Any

from ..errors import InvalidInputError
from ..planning.budget import Budget
from ..planning.tables import TableSpec

FULL = "full"
BACKBONES = ("lightgcn", "ngcf", "ncf")  # ranking models; others are click models


@dataclass(frozen=True)
class Share:
    """A budget as a share of the full tables in fp32, as "1/16" (parameters) or "1/16 bytes".

    Bytes are those of inference, with rows aligned to 1 byte.
    """

    text: str

    def __post_init__(self) -> None:
        words = self.text.split()
        try:
            share = Fraction(words[0])
        except (ValueError, IndexError, ZeroDivisionError):
            share = Fraction(0)
        if not 0 < share <= 1 or words[1:] not in ([], ["bytes"]):
            raise InvalidInputError(
                f"a budget should be a share as '1/16', '0.05' or '1/16 bytes', got {self.text!r}"
            )

    @property
    def in_bytes(self) -> bool:
        """Whether precisions are free to choose."""
        return self.text.endswith("bytes")

    @property
    def share(self) -> Fraction:
        return Fraction(self.text.split()[0])

    def budget(self, tables: Iterable[TableSpec], dtypes: Iterable[str]) -> Budget:
        """Of these tables; dtypes: where it is in bytes."""
        parameters = sum(table.parameters for table in tables)
        if self.in_bytes:
            n = int(self.share * 4 * parameters)
            return Budget.bytes(n, purpose="inference", dtype=tuple(dtypes), alignment=1)
        return Budget.parameters(int(self.share * parameters))


@dataclass(frozen=True, kw_only=True)
class Cell:
    """data: a known set's name. model: a click model or a backbone. dim: of its full tables.

    budget: a ``Share``'s text; "1" for full tables. seed: of the split and of all training.
    """

    data: str
    model: str
    dim: int
    budget: str
    method: str
    seed: int

    @property
    def key(self) -> str:
        """The same for the same cell, another for any other."""
        text = json.dumps(dataclasses.asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def asdict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def grid(
    *,
    data: Iterable[str],
    models: Iterable[str],
    methods: Iterable[str],
    budgets: Iterable[str],
    seeds: Iterable[int],
    dim: int | None = None,
) -> list[Cell]:
    """All cells, seed by seed, so that an unfinished grid has whole rows; "full" has no budget.

    dim: 64, for Frappe 16 and for rankings 128, unless given.
    """
    from .methods import METHODS

    budgets = [Share(text).text for text in budgets]
    unknown = sorted(set(methods) - {*METHODS, FULL})
    if unknown:
        raise InvalidInputError(f"methods should be among {[FULL, *METHODS]}, got {unknown}")
    cells: dict[Cell, None] = {}
    for seed, name, model, budget, method in product(seeds, data, models, budgets, methods):
        if method != FULL and Share(budget).in_bytes not in METHODS[method].budgets:
            continue
        wide = default_dim(name, model) if dim is None else dim
        amount = "1" if method == FULL else budget
        cells[Cell(data=name, model=model, dim=wide, budget=amount, method=method, seed=seed)] = (
            None
        )
    return list(cells)


def default_dim(data: str, model: str) -> int:
    """The full width that a data set and model are compared at."""
    if model in BACKBONES:
        return 128
    return 16 if data == "frappe" else 64
