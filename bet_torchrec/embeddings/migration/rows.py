"""Rows of a table by id, wherever they lie: in blocks or in one table, sharded or not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn
from torchrec.distributed.embedding import ShardedEmbeddingCollection
from torchrec.distributed.embeddingbag import ShardedEmbeddingBagCollection
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection

from ...errors import InvalidInputError
from ...planning.table_plan import Bucket, TablePlan
from ..bases import Bases
from ..layout import Block
from ..optimizer_state import Held, OptimizerStates, Role
from ..parts import Collection, Part, local_parts, table_weights

_PLAIN = (
    EmbeddingBagCollection,
    ShardedEmbeddingBagCollection,
    EmbeddingCollection,
    ShardedEmbeddingCollection,
)


@dataclass(frozen=True)
class FullWidth:
    """A plain collection, seen as one of ours: every table is one block of all rows and columns."""

    module: nn.Module
    kind: str
    plan: Mapping[str, TablePlan]
    blocks: dict[str, tuple[Block, ...]]

    @classmethod
    def of(cls, module: Any) -> FullWidth:
        pooled = isinstance(module, EmbeddingBagCollection | ShardedEmbeddingBagCollection)
        kind = "embedding_bags" if pooled else "embeddings"
        shapes = [(name, *weight.size()) for name, weight in table_weights(module, kind).items()]
        return cls(
            module,
            kind,
            {name: TablePlan(name, n, d, (Bucket(d, n),)) for name, n, d in shapes},
            {name: (Block(name, name, 0, n, 0, d),) for name, n, d in shapes},
        )

    bases = None

    def block_weights(self) -> dict[str, Any]:
        return table_weights(self.module, self.kind)


def collection_of(module: Any) -> Any:
    """What has a plan and blocks, for any collection.

    Raises:
        InvalidInputError: it is none.
    """
    if isinstance(module, Collection):
        return module
    if isinstance(module, _PLAIN):
        return FullWidth.of(module)
    raise InvalidInputError(
        "expected an EmbeddingBagCollection or EmbeddingCollection, sharded or not, or a budgeted "
        f"one, got {type(module).__name__}: of a model in DistributedModelParallel, give the "
        "collection inside, like model.module.tables"
    )


@dataclass(frozen=True)
class Lot:
    """A part of a table's weights on this rank, found by id.

    ids: int64, ascending. rows: the part's row of each. columns: of the full table.
    """

    part: Part
    held: Held | None
    ids: NDArray[np.int64]
    rows: NDArray[np.int64]
    columns: slice

    def within(self, first: int, end: int) -> tuple[Tensor, Tensor]:
        """(places in [first, end), rows of the part) of the ids there, on the part's device."""
        some = slice(*np.searchsorted(self.ids, (first, end)))
        device = self.part.values.device
        places = torch.from_numpy(self.ids[some] - first).to(device)
        return places, torch.from_numpy(self.rows[some]).to(device)

    def values(self, state: str | None) -> Tensor:
        """Its weights or a state of them, in place: (rows, width) or (rows,)."""
        if state is None:
            return self.part.values
        assert self.held is not None
        return self.held.view(state, self.part.values)


class TableRows:
    """One table of a collection as this rank holds it."""

    def __init__(self, collection: Any, table: str, states: OptimizerStates) -> None:
        self.plan: TablePlan = collection.plan[table]
        self.bases: Bases | None = collection.bases
        self.states = states
        self.lots = list(_lots(collection, table, states))

    @property
    def axes(self) -> Tensor | None:
        """(w, d) of the table; None where it has no basis."""
        return None if self.bases is None else self.bases.axes(self.plan.name)

    @property
    def roles(self) -> dict[str, Role]:
        """Of the optimizer states here."""
        held = [lot.held for lot in self.lots if lot.held is not None]
        return {name: role for one in held for name, role in one.roles().items()}

    @property
    def rule(self) -> str | None:
        """Of the optimizer of the rows here; None without one, or without rows."""
        return next((lot.held.rule for lot in self.lots if lot.held is not None), None)

    def single(self, state: str) -> float:
        """The largest of a state that is one value a part."""
        values = [
            float(lot.held.state[state].item())
            for lot in self.lots
            if lot.held is not None and state in lot.held.state
        ]
        return max(values, default=0.0)

    def read(self, into: Tensor, first: int, state: str | None, *, replicas: bool) -> None:
        """Put what is here of ids [first, first + rows) into (rows, columns).

        replicas: whether parts that every rank holds count here. A value a row fills its columns.
        """
        for lot in self.lots:
            width = max(0, min(lot.columns.stop, into.shape[1]) - lot.columns.start)
            if width == 0 or (lot.part.replicated and not replicas):
                continue
            places, rows = lot.within(first, first + len(into))
            found = lot.values(state)[rows]
            found = found[:, :width] if found.ndim == 2 else found[:, None].expand(-1, width)
            columns = slice(lot.columns.start, lot.columns.start + width)
            into[places.to(into.device), columns] = found.to(into.device, into.dtype)

    def write(self, values: Tensor, first: int, state: str | None, sizes: Tensor) -> None:
        """Take what is here of ids [first, first + rows) from (rows, columns).

        sizes: (rows,), how many columns of each row are to be taken; others stay. A value a row
            becomes the mean of the columns taken.
        """
        for lot in self.lots:
            width = max(0, min(lot.columns.stop, values.shape[1]) - lot.columns.start)
            if width == 0 or (state is not None and not _has(lot, state)):
                continue
            places, rows = lot.within(first, first + len(values))
            columns = torch.arange(lot.columns.start, lot.columns.start + width)
            places = places.to(values.device)
            taken = columns.to(values.device) < sizes.to(values.device)[places, None]
            new = values[places, lot.columns.start : lot.columns.start + width]
            own = lot.values(state)
            if own.ndim == 1:
                mean = (new * taken).sum(1) / taken.sum(1).clamp_min(1)
                kept = own[rows].to(values.device, values.dtype)
                own[rows] = mean.where(taken.any(1), kept).to(own.device, own.dtype)
                continue
            kept = own[rows]
            kept[:, :width] = new.to(own.device, own.dtype).where(
                taken.to(own.device), kept[:, :width]
            )
            own[rows] = kept


def _has(lot: Lot, state: str) -> bool:
    return lot.held is not None and state in lot.held.state


def _lots(collection: Any, table: str, states: OptimizerStates) -> Iterator[Lot]:
    parts = local_parts(collection)
    for block in collection.blocks[table]:
        if not parts[block.name]:
            continue
        all_ids = block.ids(collection.plan[table])
        for part in parts[block.name]:
            ids = all_ids[part.rows]
            rows = np.argsort(ids, kind="stable")
            first = block.first_column + part.column
            columns = slice(first, first + part.values.shape[1])
            yield Lot(part, states.of(part.values), ids[rows], rows, columns)


def spread_over(*modules: Any) -> dist.ProcessGroup | None:
    """The group that a sharded collection is spread over; None if none is sharded."""
    for module in modules:
        env = getattr(module, "env", None) or getattr(module, "_env", None)
        if env is not None and env.process_group is not None and env.process_group.size() > 1:
            return env.process_group
    return None
