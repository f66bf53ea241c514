"""The form of codes that is expected to cost least under a budget: axes, blocks, bits.

A table may keep any number of its axes and have one grid a column or one a block of ranks. Every
such form has a curve, loss by bytes a row (``bits``), and what it takes before any code: its axes
in int8, its grids in fp16, an id map. At a price lambda a byte each table takes the form with the
least loss + lambda * bytes; the lowest price that fits the budget is found by bisection, and what
is left is spent on bits. No form is tried on the model: the cost is some passes over the tables.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..axes import Moments
from ..axes.moments import Rows, moments_of
from ..errors import InfeasibleBudgetError, InvalidInputError
from ..planning.counts import RowCounts
from ..serving.column_codes import AXIS_UNIT, CodedTable, parameter_bytes
from .bits import CodeCost, allocate, prefix_curves
from .encode import rank_edges
from .source import Measured, Source, encoded, rank_of_id
from .turn import Turn, loss_turn

_HALVINGS = 60
_GRID = np.float16
RANK_BLOCKS = (1, 2, 4, 8)


@dataclass(frozen=True, eq=False)
class Codes:
    """What ``choose_codes`` chose: tables in codes, and the turns to their coordinates."""

    tables: dict[str, CodedTable]
    turns: dict[str, Turn]

    def coordinates(self, tables: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Full tables' rows as the codes' columns before any rounding, {name: (rows, C)}."""
        return {
            name: turn.coordinates(tables[name].detach().float())[:, : _columns(self.tables[name])]
            for name, turn in self.turns.items()
        }


@dataclass(frozen=True, eq=False)
class _Form:
    """One way to code one table: its first ``columns`` axes, cut into blocks of ranks.

    fixed: bytes before any code. lost: by the axes that are left out. curves: of each block, the
    least loss by bytes a row.
    """

    turn: Turn
    columns: int
    blocks: tuple[Measured, ...]
    id_map: NDArray[np.int32] | None
    fixed: int
    lost: float
    curves: tuple[NDArray[np.float64], ...]

    @property
    def rows(self) -> list[int]:
        return [block.end - block.first for block in self.blocks]

    def at(self, price: float) -> tuple[float, int]:
        """(loss + price * bytes, bytes) of its best bytes a row in every block."""
        worth, cost = self.lost + price * self.fixed, self.fixed
        for curve, rows in zip(self.curves, self.rows, strict=True):
            priced = curve + price * rows * np.arange(len(curve))
            least = int(priced.argmin())
            worth, cost = worth + float(priced[least]), cost + rows * least
        return worth, cost


def choose_codes(
    tables: Mapping[str, Rows],
    counts: Mapping[str, RowCounts],
    gradients: Mapping[str, Moments],
    *,
    limit: int,
    rank_blocks: Sequence[int] = RANK_BLOCKS,
    columns: int | None = None,
    turned: bool = True,
) -> Codes:
    """Trained tables in the codes that are expected to cost the loss least within ``limit`` bytes.

    Args:
        tables: full ones, {name: rows x embedding_dim} in id order. counts: of the same tables.
        gradients: of the loss at lookups of them: ``sensitivity.gradient_moments``.
        limit: bytes for everything: codes, grids, axes, id maps.
        rank_blocks: how many parts of the ranks may have grids and bits of their own.
        columns: the most axes that a table may keep; all unless given.
        turned: False codes the rows' own columns, all of them, and keeps no axes.

    Raises:
        InvalidInputError: tables, counts and gradients that don't fit, or numbers not finite.
        InfeasibleBudgetError: one column a table takes more than ``limit`` before any code.
    """
    if not set(tables) == set(counts) == set(gradients):
        raise InvalidInputError(
            f"expected counts and gradients of tables {sorted(tables)}, got counts of "
            f"{sorted(counts)}, gradients of {sorted(gradients)}"
        )
    forms = {
        name: list(_forms(name, table, counts[name], gradients[name], rank_blocks, columns, turned))
        for name, table in tables.items()
    }
    chosen = _chosen(forms, limit)
    fixed = sum(form.fixed for form in chosen.values())
    costs = [
        CodeCost(block.end - block.first, _errors(form, block))
        for form in chosen.values()
        for block in form.blocks
    ]
    bits = iter(allocate(costs, limit - fixed))
    made = {}
    for name, form in chosen.items():
        axes = _in_bytes(form.turn.axes[: form.columns]) if turned else None
        blocks = tuple(encoded(block, next(bits), _GRID) for block in form.blocks)
        made[name] = CodedTable(name, form.turn.axes.shape[1], blocks, axes, form.id_map)
    return Codes(made, {name: form.turn for name, form in chosen.items()})


def _chosen(forms: Mapping[str, Sequence[_Form]], limit: int) -> dict[str, _Form]:
    """Each table's form at the lowest price that fits."""

    def at(price: float) -> tuple[dict[str, _Form], int]:
        chosen, total = {}, 0
        for name, own in forms.items():
            offers = [(*form.at(price), number) for number, form in enumerate(own)]
            _, cost, number = min(offers)
            chosen[name], total = own[number], total + cost
        return chosen, total

    smallest = {name: min(own, key=lambda form: form.fixed) for name, own in forms.items()}
    least = sum(form.fixed for form in smallest.values())
    if least > limit:
        raise InfeasibleBudgetError(
            f"a single column a table takes {least} bytes for its axis and its scale before any "
            f"code, the limit is {limit}: allow more, or code fewer tables",
            smallest=least,
            limit=limit,
            unit="bytes",
        )
    best, total = at(0.0)
    if total <= limit:
        return best
    low, high, best = (
        0.0,
        1.0 + sum(own[0].lost + _most(own[0]) for own in forms.values()),
        smallest,
    )
    for _ in range(_HALVINGS):
        middle = np.sqrt(low * high) if low > 0 else high / 1024  # prices of any magnitude
        if not low < middle < high:
            break
        tried, total = at(middle)
        if total <= limit:
            best, high = tried, middle
        else:
            low = middle
    return best


def _most(form: _Form) -> float:
    return sum(float(curve[0]) for curve in form.curves)


def _forms(
    name: str,
    table: Rows,
    counts: RowCounts,
    gradients: Moments,
    rank_blocks: Sequence[int],
    columns: int | None,
    turned: bool,
) -> Iterator[_Form]:
    if table.ndim != 2 or len(table) != counts.rows or table.shape[1] != gradients.dim:
        raise InvalidInputError(
            f"table {name!r}: expected {counts.rows} rows of {gradients.dim} columns, as its "
            f"counts and gradients have, got shape {tuple(table.shape)}"
        )
    by_id = Source.of(table, counts, None, by_rank=False)
    if turned:
        turn = loss_turn(moments_of(by_id.chunks(0, counts.rows)), gradients).rounded()
    else:
        turn = Turn.none(gradients)
    assert turn.energy is not None
    dim, most = table.shape[1], min(len(turn.axes), columns or len(turn.axes))
    seen: set[tuple[int, ...]] = set()
    for wanted in rank_blocks:
        edges = rank_edges(counts, wanted)
        if tuple(edges) in seen:
            continue
        seen.add(tuple(edges))
        by_rank = len(edges) > 2
        source = Source.of(table, counts, turn, by_rank=by_rank)
        blocks = tuple(source.measured(first, end) for first, end in pairwise(edges))
        id_map = rank_of_id(counts.order) if by_rank else None
        curves = [prefix_curves(block.grids.error * turn.energy) for block in blocks]
        # Of a column that is left out: read as 0, where its weighted squares go.
        squares = sum(block.squares for block in blocks) * turn.energy
        for kept in _widths(most) if turned else [most]:
            yield _Form(
                turn=turn,
                columns=kept,
                blocks=blocks,
                id_map=id_map,
                fixed=(kept * dim if turned else 0)
                + len(blocks) * parameter_bytes(kept, _GRID)
                + (0 if id_map is None else id_map.nbytes),
                lost=float(squares[kept:].sum()),
                curves=tuple(own[kept - 1] for own in curves),
            )


def _errors(form: _Form, block: Measured) -> NDArray[np.float64]:
    assert form.turn.energy is not None
    return (block.grids.error * form.turn.energy)[:, : form.columns]


def _in_bytes(axes: Tensor) -> NDArray[np.int8]:
    found: NDArray[np.int8] = (axes * AXIS_UNIT).round().to(torch.int8).numpy()
    return found


def _columns(table: CodedTable) -> int:
    return len(table.blocks[0].bits)


def _widths(most: int) -> list[int]:
    """Numbers of axes that are tried."""
    steps = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 56, 64, 96, 128)
    return sorted({*(k for k in steps if k < most), most})
