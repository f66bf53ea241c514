"""Magnitude pruning: the largest entries of the trained tables, nothing trained again.

The baseline to fear: the benchmark of embedding compression in TOIS 2025 finds that it "rivals
complex methods".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from ...errors import InvalidInputError
from ..plan import SizePlan
from .forms import FormPlan, form_plan, workbench_of
from .problem import SizingProblem
from .survivors import MaskedTables, affordable_entries, entries_as_sizes, largest, sizes_plan

AnswerAs = Literal["sizes", "mask"]


@dataclass(frozen=True, kw_only=True)
class Magnitude:
    """The entries of the full model's tables that are largest in magnitude, over all tables.

    least: entries that every row keeps, as far as the budget has room for them.
    form: "sizes" gives a row as many dimensions as entries of it survive, scaled to the budget: a
        ``SizePlan`` of real tables, trained as any. "mask" keeps the entries themselves, where and
        as they are, beside the full model: not trained again.
    precision: of the sizes' tables; None takes the first that the budget allows.
    """

    least: int = 1
    form: AnswerAs = "sizes"
    precision: str | None = None
    needs_evaluation: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not isinstance(self.least, int) or self.least < 0:
            raise InvalidInputError(f"least should be an int from 0 on, got {self.least!r}")
        check_form(self.form)

    def __call__(self, problem: SizingProblem) -> SizePlan | FormPlan:
        """The plan or the masked tables; deterministic under the full model.

        Raises:
            MissingEvaluationError: the problem has no workbench.
            InfeasibleBudgetError: nothing fits.
        """
        full = workbench_of(problem, "Magnitude").full().full_tables()
        tables = {table.name: full[table.name] for table in problem.tables}
        if self.form == "mask":
            entries = affordable_entries(problem, "magnitude")
        else:
            entries = entries_as_sizes(problem, self.precision)
        sizes = {name: table.detach().abs().cpu().numpy() for name, table in tables.items()}
        # what other hardware computed may differ in its last bits, and so in ties
        masks = problem.team.broadcast(largest(sizes, entries, least=self.least))
        if self.form == "mask":
            form = MaskedTables.of(masks, tables, trained=True)
            return form_plan(problem, form, "magnitude", starts=("full",))
        survivors = {name: mask.sum(axis=1) for name, mask in masks.items()}
        return sizes_plan(problem, survivors, "magnitude", precision=self.precision)


def check_form(form: str) -> None:
    """Raise InvalidInputError unless it is one that an answer can have."""
    if form not in ("sizes", "mask"):
        raise InvalidInputError(f"form should be 'sizes' or 'mask', got {form!r}")
