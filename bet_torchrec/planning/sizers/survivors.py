"""Which entries of full tables survive, and what that comes to: a mask, or sizes of real tables.

Shapes: R rows and d columns of a table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from ..fit import FitSpace
from ..plan import SizePlan
from ..settle import settle
from .fixed_precision import one_precision
from .forms import float_dtype, infeasible
from .id_maps import spend_unneeded_maps
from .problem import SizingProblem
from .weights import attribute

Masks = Mapping[str, NDArray[np.bool_]]
"""{table: (R, d), whether an entry survives}."""

INDEX = 4  # bytes: CSR's columns and row starts are int32, as in torch and SciPy


def largest(
    magnitudes: Mapping[str, NDArray[Any]], entries: int, *, least: int = 0
) -> dict[str, NDArray[np.bool_]]:
    """Masks of the ``entries`` largest magnitudes over all tables, ``least`` a row before others.

    Ties: the table, row and column that come first. Where there is no room for ``least`` a row,
    as many as there is room for.
    """
    rows = sum(len(table) for table in magnitudes.values())
    least = min(least, entries // rows)
    promised = {name: _row_tops(table, least) for name, table in magnitudes.items()}
    kept = np.concatenate([mask.ravel() for mask in promised.values()])
    values = np.concatenate([np.asarray(m, np.float64).ravel() for m in magnitudes.values()])
    values[kept] = np.inf
    entries = min(max(entries, int(kept.sum())), len(values))
    kept[np.argsort(-values, kind="stable")[:entries]] = True
    masks, begin = {}, 0
    for name, table in magnitudes.items():
        masks[name] = kept[begin : begin + table.size].reshape(table.shape)
        begin += table.size
    return masks


def _row_tops(table: NDArray[Any], least: int) -> NDArray[np.bool_]:
    """The ``least`` largest of every row."""
    mask = np.zeros(table.shape, dtype=bool)
    if least:
        order = np.argsort(-table, axis=1, kind="stable")[:, :least]
        np.put_along_axis(mask, order, True, axis=1)
    return mask


def count(masks: Masks) -> int:
    """Entries that survive."""
    return sum(int(mask.sum()) for mask in masks.values())


def affordable_entries(problem: SizingProblem, sizer: str) -> int:
    """How many entries a mask may keep: in parameters all, in bytes each with its place (CSR).

    Raises:
        InfeasibleBudgetError: the row starts alone are over the budget.
    """
    most = sum(table.parameters for table in problem.tables)
    if problem.budget.unit != "bytes":
        return min(problem.limit, most)
    memory, dtype = problem.memory, float_dtype(problem.budget)
    starts = INDEX * sum(table.num_embeddings + 1 for table in problem.tables)

    def cost(entries: int) -> int:
        # a table's padding depends on its own entries: the most that all paddings can be
        padding = len(problem.tables) * (memory.bucket_cost(1, 1, dtype) + memory.table_alignment)
        places = (starts + INDEX * entries) * problem.budget.world_size
        return memory.bucket_cost(entries, 1, dtype) + places + padding

    if cost(0) > problem.limit:
        raise infeasible(problem, sizer, cost(0), "give more, or take form='sizes'")
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if cost(middle) <= problem.limit else (low, middle - 1)
    return low


def entries_as_sizes(problem: SizingProblem, precision: str | None) -> int:
    """About how many entries real tables of this precision have within the budget."""
    precision = precision or problem.precisions[0]
    full = sum(
        problem.memory.bucket_cost(table.embedding_dim, table.num_embeddings, precision)
        for table in problem.tables
    )
    parameters = sum(table.parameters for table in problem.tables)
    return min(problem.limit * parameters // max(full, 1), parameters)


def sizes_plan(
    problem: SizingProblem,
    wanted: Mapping[str, NDArray[Any]],
    sizer: str,
    *,
    precision: str | None = None,
    metadata: Mapping[str, str] | None = None,
) -> SizePlan:
    """A plan whose sizes follow ``wanted`` as far as the budget allows, and use all of it.

    Sizes are lambda * wanted rounded down to an allowed width, lambda as large as fits; the
    remainder goes row by row to the rows that want most. Rows of one table are ordered by what
    they want, ties by rank: an id map is paid for where that is not the ids' own order.

    Args:
        wanted: {table: (R,) numbers >= 0 in id order}, as a row's surviving entries.

    Raises:
        InvalidInputError: the budget does not allow this precision.
        InfeasibleBudgetError: nothing fits in this precision.
    """
    orders, falling = by_wish(problem, wanted)
    mapped = tuple(order is not None for order in orders)
    precision, space = one_precision(problem, precision)
    maps = sum(
        problem.memory.id_map_cost(table.num_embeddings) * needs
        for table, needs in zip(problem.tables, mapped, strict=True)
    )
    space = problem.fit_space(precisions=(precision,), limit=problem.limit - maps)
    every = [0] * len(problem.tables)
    steps = space.steps(torch.tensor([every]))
    least = min((v[v > 0].min() for v in falling if v.any()), default=1.0)
    low, high = 0.0, 2.0 * space.widths[-1].item() / least
    for _ in range(60):
        scale = (low + high) / 2
        cost = int(steps.cost(boundaries_at(problem, space, falling, scale)[None])[0])
        low, high = (scale, high) if cost <= space.limit else (low, scale)
    boundaries = settle(boundaries_at(problem, space, falling, low)[None], steps, space.limit)[0]
    boundaries = spend_unneeded_maps(problem, space, boundaries, every, mapped=mapped)
    precisions = (precision,) * len(problem.tables)
    return problem.plan(boundaries, precisions, sizer, metadata, orders=orders)


def by_wish(
    problem: SizingProblem, wanted: Mapping[str, NDArray[Any]]
) -> tuple[list[NDArray[np.int32] | None], list[NDArray[np.float64]]]:
    """Tables' rows by what they want, ties by rank (None: in the ids' order), and the wishes."""
    orders: list[NDArray[np.int32] | None] = []
    falling = []
    for table, counts in zip(problem.tables, problem.counts, strict=True):
        values = np.asarray(wanted[table.name], dtype=np.float64)
        by_rank = np.arange(len(values)) if counts.order is None else counts.order
        order = by_rank[np.argsort(-values[by_rank], kind="stable")].astype(np.int32)
        ranked = (order == np.arange(len(order))).all()
        orders.append(None if ranked else order)
        falling.append(values[order])
    return orders, falling


def boundaries_at(
    problem: SizingProblem, space: FitSpace, falling: Sequence[NDArray[np.float64]], scale: float
) -> Tensor:
    """(F, W) rows of size at least each width at this scale."""
    result = torch.zeros(len(falling), len(space.widths), dtype=torch.int64)
    for t, values in enumerate(falling):
        widths = np.array(problem.table_widths(t), dtype=np.float64)
        at_least = np.searchsorted(-values * scale, -widths, side="right")
        result[t, : len(widths)] = torch.from_numpy(at_least)
        result[t, 0] = len(values)
    return result


@dataclass(frozen=True, eq=False, kw_only=True)
class MaskedTables:
    """A ``Form``: full tables of which only some entries exist, wherever they are.

    masks: one a table. values: {table: (entries,) float32, row by row}, what training starts from
    whatever the seed. trained: whether they are as they should be, so that nothing is to be learnt.
    """

    masks: Masks
    values: Mapping[str, NDArray[np.float32]]
    trained: bool = False

    @classmethod
    def of(
        cls, masks: Masks, tables: Mapping[str, Tensor], *, trained: bool = False
    ) -> MaskedTables:
        """The entries of full tables (R, d) under these masks."""
        values = {
            name: tables[name].detach().cpu().numpy()[mask].astype(np.float32)
            for name, mask in masks.items()
        }
        return cls(masks=masks, values=values, trained=trained)

    def shapes(self) -> list[tuple[int, int]]:
        return [(1, len(values)) for values in self.values.values()]

    def index_bytes(self) -> int:
        """CSR's: a column an entry, a start a row and one more, int32 each."""
        rows = sum(len(mask) + 1 for mask in self.masks.values())
        return INDEX * (rows + count(self.masks))

    def build(self, seed: int) -> MaskedEmbedding:
        return MaskedEmbedding(self.masks, self.values, trains=not self.trained)

    def content(self) -> dict[str, Any]:
        masks = {f"mask.{name}": mask for name, mask in self.masks.items()}
        values = {f"values.{name}": array for name, array in self.values.items()}
        return {**masks, **values, "trained": self.trained}


class MaskedEmbedding(nn.Module):
    """Tables with some of their entries, as one flat parameter each; ``models.EmbeddingModule``.

    trains: else the entries are buffers, and there is nothing to learn. A read copies them into a
    full table of zeros, so the others have no gradient and no optimizer state.
    """

    def __init__(
        self, masks: Masks, values: Mapping[str, NDArray[np.float32]], *, trains: bool = True
    ) -> None:
        super().__init__()
        self.width = max(mask.shape[1] for mask in masks.values())
        self._rows = {name: len(mask) for name, mask in masks.items()}
        for name, mask in masks.items():
            rows, columns = np.nonzero(mask)
            self.register_buffer(
                f"places_{attribute(name)}",
                torch.from_numpy(rows * self.width + columns),
                persistent=False,
            )
            start = torch.from_numpy(np.array(values[name], dtype=np.float32))
            if trains:
                self.register_parameter(f"values_{attribute(name)}", nn.Parameter(start))
            else:
                self.register_buffer(f"values_{attribute(name)}", start)

    def table(self, name: str) -> Tensor:
        values = getattr(self, f"values_{attribute(name)}")
        flat = values.new_zeros(self._rows[name] * self.width)
        places = getattr(self, f"places_{attribute(name)}")
        return flat.index_copy(0, places, values).view(-1, self.width)

    def lookup(self, name: str, ids: Tensor) -> Tensor:
        return F.embedding(ids, self.table(name))

    @torch.no_grad()
    def full_tables(self) -> dict[str, Tensor]:
        """Copies of the tables, zeros where nothing survives."""
        return {name: self.table(name).clone() for name in self._rows}
