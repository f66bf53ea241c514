"""Tables that are no plan's: rows that share parameters, or keep entries anywhere. Their account.

A method with an embedding module of its own describes it as a ``Form``; ``FormPlan`` puts that
under the budget, exactly, and is the ``Sized`` that the method answers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

from ...errors import InfeasibleBudgetError, InvalidInputError, MissingEvaluationError, PlanError
from ..budget import Budget, MemoryModel
from ..tables import TableSpec
from .problem import SizingProblem
from .workbench import Start, Workbench

if TYPE_CHECKING:
    from ...models.protocol import EmbeddingModule

FP32 = 4  # bytes a weight


class Form(Protocol):
    """What tables are made of."""

    def shapes(self) -> Sequence[tuple[int, int]]:
        """(rows, width) of every matrix of weights that is kept for inference."""

    def index_bytes(self) -> int:
        """What else is kept, in bytes: places of entries, codes, id maps."""

    def build(self, seed: int) -> EmbeddingModule:
        """The module that trains, its weights drawn from the seed."""

    def content(self) -> Mapping[str, Any]:
        """{name: array or what ``repr`` tells}: all that ``build`` depends on but the seed."""


@runtime_checkable
class Coded(Protocol):
    """A ``Form`` whose rows are codes: what they know lies there, so codes count as weights do."""

    def code_bytes(self) -> int:
        """Of ``index_bytes``, what is learnt: in parameters 4 of them are one."""


@dataclass(frozen=True, eq=False, kw_only=True)
class FormPlan:
    """A form within a budget; a ``Sized``. Equal and hashed by content, as a ``SizePlan`` is.

    In parameters, weights alone count (and learnt codes, four bytes as one), as papers count them;
    ``bytes`` is the honest figure. In bytes, every matrix is a table in fp32 (or fp16), and indices
    count too.
    starts: where its training may start; "full" takes the full model's weights beside the tables.
    continues: its tables come trained, and the epochs that others are trained on by with their rows
    rounded are all that is left to do. notes: what else a report should say of it.

    Raises:
        PlanError: it costs more than the budget.
        InvalidInputError: the budget is in bytes and allows no floating-point weights, which it
            has.
    """

    form: Form
    tables: tuple[TableSpec, ...]
    budget: Budget
    sizer: str
    seed: int
    starts: tuple[Start, ...] = ("scratch",)
    continues: bool = False
    notes: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.cost() > self.limit:
            raise PlanError(
                f"{self.sizer} should cost at most {self.limit} {self.budget.cost_unit} "
                f"({self.budget.describe()}), got {self.cost()}"
            )

    @cached_property
    def limit(self) -> int:
        """The most that it may cost, in ``budget.cost_unit``."""
        return self.budget.limit(self.tables)

    @cached_property
    def _cost(self) -> int:
        return form_cost(self.form, self.budget)

    def cost(self) -> int:
        """What it costs, exactly, in ``budget.cost_unit``."""
        return self._cost

    @property
    def used(self) -> float:
        """The share of the budget that is used, at most 1."""
        return self.cost() / self.limit if self.limit else 1.0

    def parameters(self) -> int:
        """Weights kept for inference, as papers count them."""
        return _weights(self.form) + _code_words(self.form)

    def bytes(self) -> int:
        """Weights in fp32 and all indices."""
        return FP32 * _weights(self.form) + self.form.index_bytes()

    def build(self, seed: int) -> EmbeddingModule:
        """Its tables as a module that trains, freshly drawn."""
        return self.form.build(seed)

    @cached_property
    def _digest(self) -> str:
        digest = hashlib.sha256(repr((type(self.form).__name__, self.tables)).encode())
        for name, value in sorted(self.form.content().items()):
            array = isinstance(value, np.ndarray)
            said = f"{value.dtype}{value.shape}" if array else repr(value)
            digest.update(f"{name}:{said};".encode())
            if array:
                digest.update(np.ascontiguousarray(value).tobytes())
        return digest.hexdigest()

    def fingerprint(self) -> str:
        """16 hex digits of what is trained: equal forms have equal ones."""
        return self._digest[:16]

    def summary(self) -> str:
        """One line to read."""
        notes = "".join(f"; {name}: {said}" for name, said in self.notes.items())
        return (
            f"{self.sizer}: {self.parameters()} parameters, {self.bytes()} bytes with indices, "
            f"{self.cost()} of {self.limit} {self.budget.cost_unit}{notes}"
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FormPlan) and self._identity() == other._identity()

    def __hash__(self) -> int:
        return hash(self._identity())

    def _identity(self) -> tuple[Any, ...]:
        return self._digest, self.budget, self.sizer, self.seed, self.starts, self.continues


def form_cost(form: Form, budget: Budget) -> int:
    """What a form costs in ``budget.cost_unit``."""
    memory, shapes = MemoryModel.for_budget(budget), form.shapes()
    dtype = float_dtype(budget) if shapes else ""
    weights = sum(memory.bucket_cost(width, rows, dtype) for rows, width in shapes)
    if budget.unit == "bytes":
        return weights + form.index_bytes() * budget.world_size
    return weights + _code_words(form)


def _weights(form: Form) -> int:
    return sum(rows * width for rows, width in form.shapes())


def _code_words(form: Form) -> int:
    """Learnt codes as weights of four bytes."""
    return -(-form.code_bytes() // FP32) if isinstance(form, Coded) else 0


def float_dtype(budget: Budget) -> str:
    """The widest floating-point precision that the budget allows."""
    for dtype in ("fp32", "fp16"):
        if dtype in budget.dtypes:
            return dtype
    raise InvalidInputError(
        "a method with tables of its own form keeps floating-point weights: the budget should "
        f"allow fp32 or fp16, got {', '.join(budget.dtypes)}"
    )


def form_plan(
    problem: SizingProblem,
    form: Form,
    sizer: str,
    *,
    starts: tuple[Start, ...] = ("scratch",),
    continues: bool = False,
    notes: Mapping[str, str] | None = None,
) -> FormPlan:
    """A form as the answer to a problem.

    Raises:
        InvalidInputError: the problem asks for bases, which a form has no place for.
    """
    if asked := [table.name for table in problem.tables if table.basis is not None]:
        raise InvalidInputError(
            f"{sizer} makes tables of a form of its own, got a basis asked for of "
            f"{', '.join(asked)}: plan without (basis=None), or take a sizer of sizes, as BET()"
        )
    return FormPlan(
        form=form,
        tables=problem.tables,
        budget=problem.budget,
        sizer=sizer,
        seed=problem.seed,
        starts=starts,
        continues=continues,
        notes=notes or {},
    )


def workbench_of(problem: SizingProblem, sizer: str) -> Workbench:
    """The problem's workbench; raises MissingEvaluationError where there is none."""
    if problem.workbench is None:
        raise MissingEvaluationError(
            f"sizer {sizer} trains tables of its own and should be given workbench= (as "
            "training.TrainingWorkbench(task)), got none; evaluate= is not enough"
        )
    return problem.workbench


def infeasible(problem: SizingProblem, sizer: str, smallest: int, advice: str) -> Exception:
    """The error of a budget that a form's smallest does not fit."""
    unit = problem.budget.cost_unit
    return InfeasibleBudgetError(
        f"{sizer} needs at least {smallest} {unit} for these tables, the budget is "
        f"{problem.limit}: {advice}",
        smallest=smallest,
        limit=problem.limit,
        unit=unit,
    )
