"""Tables with bases, and TorchRec's own over masked coordinates times their axes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from masked_cases import PLAN, TABLES, VALUES, masked
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig

from bet_torchrec import Budget, SizePlan
from bet_torchrec.axes import Basis
from bet_torchrec.embeddings import BudgetedEmbeddingBagCollection


def with_bases(kinds: Mapping[str, str], plan: SizePlan = PLAN, budget: Budget | None = None):
    """The plan with bases of these tables."""
    budget = budget or Budget.parameters(10**6)
    tables = tuple(
        replace(
            table,
            basis=kinds.get(table.name),
            buckets=tuple(replace(b, precision=budget.dtypes[0]) for b in table.buckets),
        )
        for table in plan.tables
    )
    return SizePlan(tables, budget, plan.sizer)


def drawn_bases(plan: SizePlan, seed: int = 7) -> dict[str, Basis]:
    """Any axes, orthonormal or not."""
    generator = torch.Generator().manual_seed(seed)
    return {
        t.name: Basis(torch.randn(t.axes, t.embedding_dim, generator=generator) / 2)
        for t in plan.tables
        if t.axes
    }


KINDS = [
    {"user": "fixed", "item": "fixed", "gone": "fixed", "tag": "fixed"},
    {"user": "trained", "tag": "fixed"},
    {"user": "trained", "item": "trained", "gone": "trained", "tag": "trained"},
]
PLANS = [with_bases(kinds) for kinds in KINDS]


class Turned(nn.Module):
    """(rows, columns) -> their first w columns times the axes (w, d)."""

    def __init__(self, axes: Tensor, train: bool) -> None:
        super().__init__()
        self.axes = nn.Parameter(axes.clone(), requires_grad=train)

    def forward(self, table: Tensor) -> Tensor:
        return table[:, : len(self.axes)] @ self.axes


def turn(lookup: Any, plan: Any, axes: Tensor) -> None:
    """A lookup's table as coordinates: unsafe only because a table may get wider."""
    turned = Turned(axes, plan.basis == "trained")
    parametrize.register_parametrization(lookup, "weight", turned, unsafe=True)


def oracle(
    plan: SizePlan,
    bases: Mapping[str, Basis],
    coordinates: Mapping[str, Tensor],
    tables: Sequence[EmbeddingBagConfig] = TABLES,
    **options: Any,
) -> EmbeddingBagCollection:
    """Masked tables of these coordinates (rows, d), then turned."""
    made = masked(tables, plan, coordinates, **options)
    for table in plan.tables:
        if table.axes:
            turn(made.embedding_bags[table.name], table, bases[table.name].axes)
    return made


def coordinates_of(plan: SizePlan, bases: Mapping[str, Basis]) -> dict[str, Tensor]:
    """Of the full tables VALUES, padded to their own columns."""
    found = {}
    for name, table in VALUES.items():
        if name in bases:
            own = bases[name].coordinates(table)
            table = nn.functional.pad(own, (0, table.shape[1] - own.shape[1]))
        found[name] = table
    return found


def ours(
    plan: SizePlan,
    bases: Mapping[str, Basis] | None = None,
    tables: Sequence[EmbeddingBagConfig] = TABLES,
    **options: Any,
) -> BudgetedEmbeddingBagCollection:
    made = BudgetedEmbeddingBagCollection(tables, plan, **options)
    return made.load_full_tables(VALUES, bases=drawn_bases(plan) if bases is None else bases)
