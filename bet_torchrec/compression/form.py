"""A trained model's tables in column codes as a ``Sized``, as comparisons and sizers pass them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from ..axes import Moments
from ..column_codes import choose_codes
from ..planning.sizers import FormPlan, SizingProblem
from ..planning.sizers.forms import form_plan
from ..planning.sizers.sensitivity import gradient_moments
from ..serving.column_codes import CodedTable
from ..training import Trained
from ..training.rounding import ColumnCodes

BATCHES = 50
"""Of examples that the loss' gradients are measured over, unless an epoch has fewer."""


@dataclass(frozen=True, eq=False, kw_only=True)
class CodedForm:
    """A ``Form``, ``Coded``: tables in column codes, trained already.

    coordinates: {table: (rows, columns)} in id order, what the codes are the roundings of.
    """

    tables: Mapping[str, CodedTable]
    coordinates: Mapping[str, Tensor]

    def shapes(self) -> list[tuple[int, int]]:
        """None: scales, offsets and axes are no rows of tables, and counted as they lie."""
        return []

    def index_bytes(self) -> int:
        return sum(table.nbytes for table in self.tables.values())

    def code_bytes(self) -> int:
        """All but the id maps, which know nothing."""
        maps = (table.id_map for table in self.tables.values() if table.id_map is not None)
        return self.index_bytes() - sum(each.nbytes for each in maps)

    def build(self, seed: int) -> ColumnCodes:
        """The codes as they are: nothing is drawn."""
        return ColumnCodes(self.tables, self.coordinates)

    def content(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, table in sorted(self.tables.items()):
            arrays = {
                "axes": table.axes,
                "id_map": table.id_map,
                "values": self.coordinates[name].numpy(),
            }
            for number, block in enumerate(table.blocks):
                for what in ("first_rank", "bits", "scale", "offset"):
                    arrays[f"{number}/{what}"] = getattr(block, what)
            found |= {f"{name}/{what}": value for what, value in arrays.items()}
        return found


def loss_moments(full: Trained, *, batches: int | None, seed: int) -> dict[str, Moments]:
    """What the loss is sensitive to in each table, over some examples; batches: None for 50."""
    steps = full.task.steps_per_epoch
    number = min(BATCHES, steps) if batches is None else batches
    return gradient_moments(full.task, full.model, full.embedding, batches=number, seed=seed)


def coded_plan(problem: SizingProblem, full: Trained, *, batches: int | None = None) -> FormPlan:
    """The full model's tables in the codes that are expected to cost the loss least.

    What ``compress`` does before it trains on, within a budget in bytes of inference; the plan
    ``continues``. batches: as there.

    Raises:
        InfeasibleBudgetError: fewer bytes than one column a table takes.
    """
    tables = full.full_tables()
    moments = loss_moments(full, batches=batches, seed=problem.seed)
    codes = choose_codes(tables, full.task.counts(), moments, limit=problem.limit)
    form = CodedForm(
        tables=codes.tables,
        coordinates={name: own.cpu() for name, own in codes.coordinates(tables).items()},
    )
    bits = {
        name: "+".join(str(int(np.sum(block.bits))) for block in table.blocks)
        for name, table in codes.tables.items()
    }
    said = ", ".join(f"{name} {own}" for name, own in bits.items())
    return form_plan(
        problem, form, "compress", starts=("full",), continues=True, notes={"bits a row": said}
    )
