"""From one plan, layout or sharding to another: weights and optimizer state, some rows at a time.

Whatever the two sides are, rows travel as rows of the full table, by id: each rank puts in what it
holds of some thousand of them, one all-reduce completes them, and each takes out what it keeps. So
no rank ever holds a full table that it did not hold before.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal, TypeVar, overload

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection

from ...axes import lookups, principal_basis
from ...errors import InvalidInputError
from ...planning.plan import SizePlan
from ...team import Team, team
from ..layout import Layout, RowOrder
from ..module import BudgetedEmbeddingBagCollection
from ..optimizer_state import Optimizers, OptimizerStates, Role
from ..parts import Collection
from ..sequence.module import BudgetedEmbeddingCollection
from .axes import carry_axes, put_alike, turns
from .rows import TableRows, collection_of, spread_over

Target = TypeVar("Target", bound=nn.Module)


@overload
def migrate(
    source: nn.Module,
    target: SizePlan,
    *,
    layout: Layout | None = None,
    row_order: RowOrder | None = None,
    rest: Literal["initial", "zeros"] = "initial",
    axes: Literal["kept", "principal"] = "kept",
    counts: Mapping[str, Any] | None = None,
) -> BudgetedEmbeddingBagCollection | BudgetedEmbeddingCollection: ...


@overload
def migrate(
    source: nn.Module,
    target: Target,
    *,
    optimizer: Optimizers = None,
    target_optimizer: Optimizers = None,
    rest: Literal["initial", "zeros"] = "initial",
    axes: Literal["kept", "principal"] = "kept",
    counts: Mapping[str, Any] | None = None,
    chunk_rows: int = 65536,
    process_group: dist.ProcessGroup | None = None,
) -> Target: ...


@torch.no_grad()
def migrate(
    source: nn.Module,
    target: Any,
    *,
    layout: Layout | None = None,
    row_order: RowOrder | None = None,
    optimizer: Optimizers = None,
    target_optimizer: Optimizers = None,
    rest: Literal["initial", "zeros"] = "initial",
    axes: Literal["kept", "principal"] = "kept",
    counts: Mapping[str, Any] | None = None,
    chunk_rows: int = 65536,
    process_group: dist.ProcessGroup | None = None,
) -> Any:
    """Carry weights and optimizer state over to another plan, layout or sharding; returns target.

    A row that grows keeps its prefix, and the rest stays as the target was initialised; a row that
    shrinks is cut. Values are copied, never computed with; only a value a row (row-wise Adagrad's
    mean of squares) that several columns' parts share is copied to each of them when the target
    cuts the columns finer, and the mean by width where it joins them.

    Coordinates travel as they are between two plans with a basis of a table: its axes come along,
    and a target with more gets others, orthonormal to them. Where only one side has a basis, or new
    axes are asked for, rows are turned: every entry of a kept row is then known, and the state of
    the table's optimizer, which is of other entries, starts anew.

    Args:
        source: an EmbeddingBagCollection or EmbeddingCollection (full tables) or a budgeted one,
            sharded or not (of a model, the collection inside, like ``model.module.tables``).
        target: another such collection with the same tables, of any plan, in place; or a plan,
            for a new budgeted collection from an unsharded source, pooled or unpooled as that is.
            A call with sharded collections is one of all their ranks.
        layout, row_order: of the new collection; the source's, or else the defaults.
        optimizer, target_optimizer: torch's, of source and target (fused ones are found by
            themselves). State is carried over where both have it, so give both; a target whose
            source has none starts anew, as does one made from a plan, until it is migrated to once
            more with its optimizer.
        rest: "initial" leaves what the source has no value for; "zeros" makes it read as the
            source does, which full tables made from a plan may want.
        axes: of tables that have a basis on both sides: the source's, or the principal ones of its
            rows anew ("principal"), as a table that had none gets them. counts: {table: one number
            a row, or RowCounts} that these are weighted by; all rows alike unless given.
        chunk_rows: that travel at once; memory is this many full rows.
        process_group: that sharded collections are spread over; theirs unless given.

    Raises:
        InvalidInputError: no collections, other tables or rows, or optimizers that differ.
        CollectiveError: another rank failed.
    """
    if isinstance(target, SizePlan):
        target = _collection(source, target, layout, row_order)
    elif layout is not None or row_order is not None:
        raise InvalidInputError("layout and row_order go with a plan as target, got a collection")
    if chunk_rows < 1 or rest not in ("initial", "zeros") or axes not in ("kept", "principal"):
        raise InvalidInputError(
            "chunk_rows should be 1 or more, rest 'initial' or 'zeros' and axes 'kept' or "
            f"'principal', got {chunk_rows}, {rest!r} and {axes!r}"
        )
    pg = process_group or spread_over(source, target)
    ranks = team(pg)

    def prepare() -> tuple[Any, Any, OptimizerStates, OptimizerStates]:
        sides = collection_of(source), collection_of(target)
        _check_tables(*sides)
        return (
            *sides,
            OptimizerStates(source, optimizer),
            OptimizerStates(target, target_optimizer),
        )

    old, new, old_states, new_states = ranks.together("comparing the collections", prepare)
    new_states.forget_caches()
    for table in new.blocks:
        rows = TableRows(old, table, old_states), TableRows(new, table, new_states)
        move = _Move(table, *rows, ranks, pg, chunk_rows)
        if turns(*rows, principal=axes == "principal"):
            weights = None if counts is None else counts.get(table)
            move.turn(weights, zeros=rest == "zeros")
        else:
            carry_axes(*rows, ranks)
            move.run(zeros=rest == "zeros")
    return target


class _Move:
    """One table's way from one collection to the other."""

    def __init__(
        self,
        table: str,
        old: TableRows,
        new: TableRows,
        ranks: Team,
        pg: dist.ProcessGroup | None,
        chunk_rows: int,
    ) -> None:
        self._table, self._old, self._new = table, old, new
        self._ranks, self._pg, self._chunk_rows = ranks, pg, chunk_rows
        facts = (old.rule, old.roles, new.rule, all(lot.part.replicated for lot in old.lots))
        everyone = ranks.gather((*facts, bool(old.lots)))
        self._old_rule = next((one[0] for one in everyone if one[0]), None)
        self._roles: dict[str, Role] = {k: r for one in everyone for k, r in one[1].items()}
        self._new_rule = next((one[2] for one in everyone if one[2]), None)
        self._sizes = torch.from_numpy(old.plan.sizes())
        # What every rank holds of the source need not travel.
        self._travels = pg is not None and not all(one[3] and one[4] for one in everyone)

    def run(self, *, zeros: bool) -> None:
        if self._old_rule and self._new_rule and self._old_rule != self._new_rule:
            raise InvalidInputError(
                f"table {self._table!r}: source and target should have the same optimizer, got "
                f"{self._old_rule} and {self._new_rule}: leave both out to carry over weights alone"
            )
        self._carry(None, zeros=zeros)
        if not (self._old_rule and self._new_rule):
            return
        for lot in self._new.lots:
            if lot.held is not None:
                lot.held.prepare(self._roles)
        for state, role in self._roles.items():
            if role != "single":
                self._carry(state, zeros=False)
                continue
            value = torch.tensor(max(self._ranks.gather(self._old.single(state))))
            for lot in self._new.lots:
                if lot.held is not None:
                    lot.held.set_single(state, value)

    def turn(self, counts: Any, *, zeros: bool) -> None:
        """Weights alone, as rows: into a basis of the target's own, or out of the source's."""
        new = self._new.plan
        basis = None
        if new.axes:
            own = lookups(counts)
            blocks = (
                (rows, None if own is None else own[at : at + len(rows)])
                for at, rows in self._full_rows()
            )
            assert self._new.bases is not None
            self._new.bases.put({new.name: principal_basis(blocks, width=new.axes)})
            basis = put_alike(self._new, self._ranks)
        for first, rows in self._full_rows():
            values = rows if basis is None else basis.coordinates(rows)
            values = values[:, : max(new.widths)]
            known = self._sizes[first : first + len(rows)] > 0
            sizes = torch.where(known | zeros, values.shape[1], 0)
            self._new.write(values, first, None, sizes)
        for lot in self._new.lots:
            if lot.held is not None:
                lot.held.prepare({})

    def _full_rows(self) -> Iterator[tuple[int, Tensor]]:
        """(first id, rows with all of the full table's columns), chunk by chunk."""
        axes, dim = self._old.axes, self._old.plan.embedding_dim
        width = max(self._old.plan.widths)
        for first, chunk in self._chunks(None, width):
            turned = None if axes is None else chunk @ axes.detach().to(chunk)
            yield first, F.pad(chunk, (0, dim - width)) if turned is None else turned

    def _chunks(self, state: str | None, width: int) -> Iterator[tuple[int, Tensor]]:
        """(first id, the first columns of what is stored of some rows), on every rank."""
        counts_here = not self._travels or self._ranks.rank == 0
        for first in range(0, self._old.plan.rows, self._chunk_rows):
            rows = min(self._chunk_rows, self._old.plan.rows - first)
            chunk = torch.zeros(rows, width, device=self._device())
            self._old.read(chunk, first, state, replicas=counts_here)
            if self._travels:
                dist.all_reduce(chunk, group=self._pg)  # each entry has one owner
            yield first, chunk

    def _carry(self, state: str | None, *, zeros: bool) -> None:
        old, new = self._old.plan, self._new.plan
        width = max(new.widths) if zeros else min(max(old.widths), max(new.widths))
        for first, chunk in self._chunks(state, width):
            sizes = self._sizes[first : first + len(chunk)]
            if zeros:
                sizes = torch.full_like(sizes, width)
            self._new.write(chunk, first, state, sizes)

    def _device(self) -> torch.device:
        if self._travels:
            return dist.distributed_c10d._get_pg_default_device(self._pg)
        lots = (*self._new.lots, *self._old.lots)
        return next((lot.part.values.device for lot in lots), torch.device("cpu"))


def _collection(
    source: Any, plan: SizePlan, layout: Layout | None, row_order: RowOrder | None
) -> BudgetedEmbeddingBagCollection | BudgetedEmbeddingCollection:
    collection_of(source)  # to say first if it is none
    pooled = isinstance(source, BudgetedEmbeddingBagCollection | EmbeddingBagCollection)
    if not pooled and not isinstance(source, BudgetedEmbeddingCollection | EmbeddingCollection):
        raise InvalidInputError(
            "a plan as target makes an unsharded collection from an unsharded one, got "
            f"{type(source).__name__}: build and shard a collection of the new plan, and give that"
        )
    weight: Tensor = next(source.parameters(), torch.empty(0))
    if isinstance(source, Collection):
        layout, row_order = layout or source.layout, row_order or source.row_order
    laid: dict[str, Any] = {
        "layout": layout or "bucketed",
        "row_order": row_order or "ranked",
        "device": weight.device,
    }
    if isinstance(source, BudgetedEmbeddingCollection | EmbeddingCollection):
        tables, need_indices = source.embedding_configs(), source.need_indices()
        return BudgetedEmbeddingCollection(tables, plan, need_indices=need_indices, **laid)
    tables, is_weighted = source.embedding_bag_configs(), source.is_weighted()
    return BudgetedEmbeddingBagCollection(tables, plan, is_weighted=is_weighted, **laid)


def _check_tables(source: Any, target: Any) -> None:
    old, new = ({name: side.plan[name].rows for name in side.blocks} for side in (source, target))
    if old != new:
        raise InvalidInputError(
            f"source and target should have the same tables and rows, got {old} and {new}"
        )
