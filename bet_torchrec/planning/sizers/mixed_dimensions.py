"""MDE: narrower rows for rarer ones, in blocks, each brought to the common width by a matrix.

Shapes: R rows of a table, B blocks of it by rank, D columns of a read.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ...errors import InvalidInputError
from ..counts import RowCounts
from .checks import check_positive
from .forms import FormPlan, form_cost, form_plan, infeasible
from .problem import SizingProblem
from .weights import attribute


@dataclass(frozen=True, kw_only=True)
class MDE:
    """Mixed dimensions by popularity: a block's rows have lambda * count^alpha dimensions.

    A table's rows are cut by rank into blocks that are looked up equally often; count is a block's
    mean. A block narrower than its table has a bias-free linear map to the table's full width,
    which the budget pays for (where it can't, blocks are halved in number); lambda is as large as
    fits, then single blocks grow, the most popular first, while they fit.

    alpha: 0.1 to 0.3 in the paper; 0 gives all blocks one width. blocks: at most, a table.
    init_std: of the entries at first.
    """

    alpha: float = 0.3
    blocks: int = 8
    init_std: float = 0.01

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise InvalidInputError(f"alpha should be from 0 to 1, got {self.alpha!r}")
        if not isinstance(self.blocks, int) or self.blocks < 1:
            raise InvalidInputError(f"blocks should be an int from 1 on, got {self.blocks!r}")
        check_positive(self, "init_std")

    def __call__(self, problem: SizingProblem) -> FormPlan:
        """The blocks' tables; needs no evaluation.

        Raises:
            InfeasibleBudgetError: not even one column a row and its maps fit.
        """
        ends = [equal_popularity(counts, self.blocks) for counts in problem.counts]
        means = [_means(c, e) for c, e in zip(problem.counts, ends, strict=True)]

        def at(scale: float) -> BlockTables:
            widths = []
            for table, mean in zip(problem.tables, means, strict=True):
                wanted = np.floor(scale * mean**self.alpha)
                widths.append(tuple(np.clip(wanted, 1, table.embedding_dim).astype(int).tolist()))
            blocks = tuple(
                Blocks(
                    name=table.name,
                    dim=table.embedding_dim,
                    ends=tuple(end.tolist()),
                    widths=width,
                    order=counts.order,
                )
                for table, counts, end, width in zip(
                    problem.tables, problem.counts, ends, widths, strict=True
                )
            )
            return BlockTables(tables=blocks, init_std=self.init_std)

        if form_cost(at(0.0), problem.budget) > problem.limit:
            if self.blocks > 1:
                return replace(self, blocks=self.blocks // 2)(problem)
            smallest = form_cost(at(0.0), problem.budget)
            raise infeasible(problem, "mde", smallest, "a column a row and one map a table")
        low, high = 0.0, float(max(table.embedding_dim for table in problem.tables)) + 1
        if form_cost(at(high), problem.budget) <= problem.limit:
            low = high
        for _ in range(60):
            scale = (low + high) / 2
            fits = form_cost(at(scale), problem.budget) <= problem.limit
            low, high = (scale, high) if fits else (low, scale)
        form = _grown(problem, at(low), means)
        notes = {"widths": "; ".join(f"{b.name} {b.widths}" for b in form.tables)}
        return form_plan(problem, form, "mde", notes=notes)


def equal_popularity(counts: RowCounts, blocks: int) -> NDArray[np.int64]:
    """The ranks at which blocks of about equal total count end; at most so many, none empty."""
    ranks = np.arange(counts.rows)
    looked_up = np.cumsum(counts.at_ranks(ranks).astype(np.float64))
    if not looked_up[-1]:
        return np.array([counts.rows])
    shares = looked_up[-1] * np.arange(1, blocks) / blocks
    ends = np.searchsorted(looked_up, shares, side="left") + 1
    return np.unique(np.append(ends, counts.rows))


def _means(counts: RowCounts, ends: NDArray[np.int64]) -> NDArray[np.float64]:
    """The blocks' mean counts, at least 1."""
    by_rank = counts.at_ranks(np.arange(counts.rows)).astype(np.float64)
    starts = np.append(0, ends[:-1])
    means: NDArray[np.float64] = np.add.reduceat(by_rank, starts) / (ends - starts)
    return np.maximum(means, 1.0)


def _grown(
    problem: SizingProblem, form: BlockTables, means: list[NDArray[np.float64]]
) -> BlockTables:
    """With what is left given out: a column to a block at a time, the most popular first."""
    order = sorted(
        ((t, b) for t, table in enumerate(form.tables) for b in range(len(table.widths))),
        key=lambda place: -means[place[0]][place[1]],
    )
    growing = True
    while growing:
        growing = False
        for t, b in order:
            table = form.tables[t]
            if table.widths[b] == table.dim:
                continue
            widths = (*table.widths[:b], table.widths[b] + 1, *table.widths[b + 1 :])
            tables = (*form.tables[:t], replace(table, widths=widths), *form.tables[t + 1 :])
            larger = replace(form, tables=tables)
            if form_cost(larger, problem.budget) <= problem.limit:
                form, growing = larger, True
    return form


@dataclass(frozen=True, eq=False, kw_only=True)
class Blocks:
    """One table's: ends and widths, by rank; dim: full width; order: ids by rank, None: as is."""

    name: str
    dim: int
    ends: tuple[int, ...]
    widths: tuple[int, ...]
    order: NDArray[np.int32] | None

    def rows(self) -> list[int]:
        """Of each block."""
        return np.diff((0, *self.ends)).tolist()


@dataclass(frozen=True, eq=False, kw_only=True)
class BlockTables:
    """A ``Form``: blocks of rows, each with a width and a map of its own."""

    tables: tuple[Blocks, ...]
    init_std: float

    def shapes(self) -> list[tuple[int, int]]:
        shapes = []
        for table in self.tables:
            for rows, width in zip(table.rows(), table.widths, strict=True):
                shapes.append((rows, width))
                if width < table.dim:
                    shapes.append((width, table.dim))
        return shapes

    def index_bytes(self) -> int:
        mapped = (t.ends[-1] for t in self.tables if t.order is not None and len(t.ends) > 1)
        return 4 * sum(mapped)

    def build(self, seed: int) -> BlockEmbedding:
        return BlockEmbedding(self, torch.Generator().manual_seed(seed))

    def content(self) -> dict[str, Any]:
        found: dict[str, Any] = {"init_std": self.init_std}
        for table in self.tables:
            found[f"blocks.{table.name}"] = (table.dim, table.ends, table.widths)
            if table.order is not None:
                found[f"order.{table.name}"] = table.order
        return found


class BlockEmbedding(nn.Module):
    """Rows of several widths, mapped to the common one; fits ``models.EmbeddingModule``.

    Entries are N(0, init_std^2) after the map at first: a map's own are N(0, 1/width).
    """

    def __init__(self, form: BlockTables, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.width = max(table.dim for table in form.tables)
        self._names = [table.name for table in form.tables]
        self.rows, self.maps = nn.ModuleDict(), nn.ModuleDict()
        for table in form.tables:
            rows, maps = nn.ParameterList(), nn.ParameterDict()
            for b, (n, width) in enumerate(zip(table.rows(), table.widths, strict=True)):
                drawn = torch.randn(n, width, generator=generator) * form.init_std
                rows.append(nn.Parameter(drawn))
                if width < table.dim:
                    matrix = torch.randn(width, table.dim, generator=generator) / width**0.5
                    maps[str(b)] = nn.Parameter(matrix)
            self.rows[attribute(table.name)], self.maps[attribute(table.name)] = rows, maps
            ranks = None
            if table.order is not None:
                order = torch.from_numpy(table.order.astype(np.int64))
                ranks = torch.empty_like(order)
                ranks[order] = torch.arange(len(order))
            self.register_buffer(f"ranks_{attribute(table.name)}", ranks, persistent=False)

    def table(self, name: str) -> Tensor:
        rows: Any = self.rows[attribute(name)]
        maps: Any = self.maps[attribute(name)]
        blocks = [block @ maps[str(b)] if str(b) in maps else block for b, block in enumerate(rows)]
        ranked = nn.functional.pad(torch.cat(blocks), (0, self.width - blocks[0].shape[1]))
        ranks = getattr(self, f"ranks_{attribute(name)}")
        return ranked if ranks is None else ranked.index_select(0, ranks)

    def lookup(self, name: str, ids: Tensor) -> Tensor:
        return nn.functional.embedding(ids, self.table(name))

    @torch.no_grad()
    def full_tables(self) -> dict[str, Tensor]:
        """Copies of the tables, (R, D)."""
        return {name: self.table(name).clone() for name in self._names}
