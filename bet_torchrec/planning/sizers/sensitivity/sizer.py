"""The sizer: expected losses of a trained model's entries, and the plan they ask for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ....axes import Basis, lookups, principal_basis
from ....errors import InvalidInputError, MissingEvaluationError
from ...counts import RowCounts
from ...plan import SizePlan
from ...settle import settle
from ..fixed_precision import one_precision
from ..problem import SizingProblem
from .choose import Gains, choose_widths
from .examples import squared_gradients

_ROUNDS = 4  # of widths and what their bases cost
Losses = Callable[[SizingProblem], Mapping[str, Tensor]]


@dataclass(frozen=True, kw_only=True)
class Sensitivity:
    """Each block of ranks, or each row, gets the prefix that its entries are worth.

    Dropping entry k of row r is expected to cost half the sum of its examples' squared gradients
    times its square. Needs the full model and a pass over some examples; trains nothing else.

    axes: which the entries are of; "own" as the table has them, "principal" for a plan whose rows
        are kept in those, as they are of every table that is planned with a basis.
    batches: of examples; None is one pass over the training data.
    rank_blocks: of like numbers of lookups, where ids are ranks and sizes fall with them. Where
        ids need a map anyway, every row has a size of its own and the map its order.
    precision: of all tables; None takes the first that the budget allows.
    losses: problem -> {table: (rows, columns)} expected losses, in id order, from elsewhere.

    Raises, when called:
        MissingEvaluationError: neither a workbench nor losses.
    """

    axes: Literal["own", "principal"] = "own"
    batches: int | None = None
    rank_blocks: int = 24
    precision: str | None = None
    losses: Losses | None = None

    needs_evaluation: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.axes not in ("own", "principal"):
            raise InvalidInputError(f"axes should be 'own' or 'principal', got {self.axes!r}")
        if self.rank_blocks < 1:
            raise InvalidInputError(f"rank_blocks should be at least 1, got {self.rank_blocks}")

    def __call__(self, problem: SizingProblem) -> SizePlan:
        """The plan: deterministic, and no step of a row is left that fits.

        Where ids need maps these are paid first, and one that is not needed after all (all rows of
        a table have one width) stays unspent.
        """
        if self.losses is None and problem.workbench is None:
            raise MissingEvaluationError(
                "sizer sensitivity needs a trained model and should be given workbench=, got none; "
                "or give it Sensitivity(losses=), or use a sizer that needs none, as EqualSizes()"
            )
        found = self._measured(problem) if self.losses is None else self.losses(problem)
        # Ranks have seen different examples, so one of them decides.
        plan: SizePlan = problem.team.first("sizes", lambda: self._plan(problem, found))
        return plan

    def _measured(self, problem: SizingProblem) -> Mapping[str, Tensor]:
        assert problem.workbench is not None
        workbench = problem.workbench
        task, trained = workbench.task, workbench.full()
        tables = trained.full_tables()
        bases: dict[str, Basis] = {}
        for spec, counts in zip(problem.tables, problem.counts, strict=True):
            if self.axes == "principal" or spec.basis is not None:
                bases[spec.name] = principal_basis(tables[spec.name], lookups(counts))
        squares = squared_gradients(
            task,
            trained.model,
            trained.embedding,
            batches=self.batches or task.steps_per_epoch,
            seed=problem.seed,
            bases=bases,
        )
        return {
            name: entry_losses(
                bases[name].coordinates(tables[name]) if name in bases else tables[name], own
            )
            for name, own in squares.items()
        }

    def _plan(self, problem: SizingProblem, losses: Mapping[str, Tensor]) -> SizePlan:
        precision, space = one_precision(problem, self.precision)
        orders = [counts.order for counts in problem.counts]
        gains = []
        for t, spec in enumerate(problem.tables):
            if spec.name not in losses or len(losses[spec.name]) != spec.num_embeddings:
                raise InvalidInputError(
                    f"expected losses of {spec.num_embeddings} rows of table {spec.name!r}, got "
                    f"{ {name: tuple(own.shape) for name, own in losses.items()} }"
                )
            gains.append(self._gains(losses[spec.name], problem.counts[t], problem, t))
        row_costs = space.costs[0].numpy()
        levels = choose_widths(gains, row_costs, space.limit)
        for _ in range(_ROUNDS if space.bases is not None else 0):
            # What the bases of these widths cost is not there for rows.
            deep = torch.tensor([int(level.max()) for level in levels])
            bases = int(space.bases.gather(-1, deep[:, None]).sum())  # type: ignore[union-attr]
            levels = choose_widths(gains, row_costs, space.limit - bases)
        width_count = len(problem.widths)
        boundaries = np.zeros((len(gains), width_count), dtype=np.int64)
        for t, (own, level) in enumerate(zip(gains, levels, strict=True)):
            if not own.falling:
                orders[t] = _sorted(orders[t], own, level)
            for k in range(width_count):
                boundaries[t, k] = own.rows[level >= k].sum()
        steps = space.steps(torch.zeros(1, len(gains), dtype=torch.int64))
        settled = settle(torch.from_numpy(boundaries)[None], steps, space.limit)[0]
        told = {"axes": self.axes}
        return problem.plan(settled, (precision,) * len(gains), "sensitivity", told, orders=orders)

    def _gains(self, losses: Tensor, counts: RowCounts, problem: SizingProblem, t: int) -> Gains:
        """By widths: of every row where there is an order to change, else of blocks of ranks."""
        depth = len(problem.table_widths(t))
        columns = np.minimum(problem.widths, losses.shape[1])
        by_id = _prefixes(losses, columns)
        if counts.order is not None:
            rows = np.ones(counts.rows, dtype=np.int64)
            return Gains(by_id[counts.order], rows, depth, falling=False)
        edges = np.array(_edges(counts, self.rank_blocks))
        return Gains(np.add.reduceat(by_id, edges[:-1], axis=0), np.diff(edges), depth)


def entry_losses(rows: Tensor, squares: Tensor) -> Tensor:
    """1/2 * squares * rows**2: what dropping each entry is expected to cost, (rows, columns).

    rows may be wider or narrower than what was measured; columns that only one has cost nothing.
    """
    shared = min(rows.shape[1], squares.shape[1])
    return 0.5 * squares[:, :shared] * rows[:, :shared].to(squares).square()


def _prefixes(losses: Tensor, columns: NDArray[np.int64]) -> NDArray[np.float64]:
    """(rows, W): the losses of each row's first columns[k] entries together."""
    found = np.empty((len(losses), len(columns)))
    before, total = 0, np.zeros(len(losses))
    for k, end in enumerate(columns.tolist()):
        total = total + losses[:, before:end].double().sum(dim=1).cpu().numpy()
        found[:, k], before = total, max(before, end)
    return found


def _sorted(
    order: NDArray[np.int32] | None, own: Gains, level: NDArray[np.int64]
) -> NDArray[np.int32]:
    """Wide rows first; among equals those that would gain most by one step more."""
    assert order is not None
    above = np.minimum(level + 1, own.depth - 1)
    places = np.arange(len(level))
    step = own.gain[places, above] - own.gain[places, level]
    return order[np.lexsort((places, -step, -level))]


def _edges(counts: RowCounts, blocks: int) -> Sequence[int]:
    """Ranks that cut the table into at most ``blocks`` parts of like numbers of lookups."""
    mass = np.cumsum(np.maximum(counts.values, 1) * counts.multiplicity).astype(np.float64)
    # Where each block should end, by interpolation within the group of rows of one count.
    wanted = mass[-1] * np.arange(1, blocks) / blocks
    inner = np.interp(wanted, [0.0, *mass.tolist()], [0.0, *counts.ends.tolist()])
    return sorted({0, counts.rows, *np.rint(inner).astype(int).tolist()})
