"""Clicks: examples of ids in fields with a label, in memory or larger than it.

Shapes: N examples, S single-hot fields, K dense columns, B a batch. A log is a view: it takes some
examples of a store and may rename their rows; splits, relabelling and trimming cost no copy.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import DataError
from .batch import ClickBatch
from .check import checked_store
from .fields import Field, check_names
from .passes import count_rows, digest
from .store import Bag, Rows, Store, joined

if TYPE_CHECKING:
    from .vocabulary import Vocabulary

BLOCK = 1 << 14  # examples read at a time


@dataclass(frozen=True, eq=False, kw_only=True)
class ClickLog:
    """Examples for a click model. Make one by ``from_arrays``, ``load`` or a loader.

    Attributes:
        fields: the tables that the ids are rows of, single-hot and multi-hot ones.
        store: the arrays as they are kept. rows: which of their examples these are.
        maps: {field: int32, one a stored row: its row now}; a field that is absent has its own.
        dense_names: of the K dense columns. vocabularies: {field: which value has which row},
            where known.
        name: what reports call it. notes: what was dropped or changed on the way here.
    """

    fields: tuple[Field, ...]
    store: Store
    rows: Rows
    maps: Mapping[str, NDArray[np.int32]] = field(default_factory=dict)
    dense_names: tuple[str, ...] = ()
    vocabularies: Mapping[str, Vocabulary] = field(default_factory=dict)
    name: str = "clicks"
    notes: tuple[str, ...] = ()

    @classmethod
    def from_arrays(
        cls,
        fields: Sequence[Field],
        *,
        labels: ArrayLike,
        ids: ArrayLike | None = None,
        bags: Mapping[str, tuple[ArrayLike, ArrayLike]] | None = None,
        dense: ArrayLike | None = None,
        dense_names: Sequence[str] = (),
        timestamps: ArrayLike | None = None,
        vocabularies: Mapping[str, Vocabulary] | None = None,
        name: str = "clicks",
        notes: Sequence[str] = (),
    ) -> ClickLog:
        """A log of these arrays, checked and not copied where their types fit; maps of files too.

        Args:
            labels: (N,), each 0 or 1.
            ids: integers (N, S), a column for each single-hot field in the order of ``fields``.
            bags: {multi-hot field: (values, offsets (N + 1,))}.
            dense: numbers (N, K), finite. dense_names: their names, dense_0 ... by default.
            timestamps: (N,) integers that grow with time, in any unit.

        Raises:
            DataError: no examples, shapes that don't fit, ids beyond their field, other labels.
        """
        fields = tuple(fields)
        check_names([field.name for field in fields], f"{name}: fields")
        store = checked_store(fields, labels, ids, bags or {}, dense, timestamps, name)
        width = 0 if store.dense is None else store.dense.shape[1]
        named = tuple(dense_names) or tuple(f"dense_{i}" for i in range(width))
        if len(named) != width:
            raise DataError(f"{name}: dense_names should be {width}, got {len(named)}")
        return cls(
            fields=fields,
            store=store,
            rows=slice(0, len(store)),
            dense_names=named,
            vocabularies=dict(vocabularies or {}),
            name=name,
            notes=tuple(notes),
        )

    @property
    def num_examples(self) -> int:
        """N."""
        if isinstance(self.rows, slice):
            return int(self.rows.stop - self.rows.start)
        return len(self.rows)

    def __len__(self) -> int:
        return self.num_examples

    def __repr__(self) -> str:
        return (
            f"ClickLog({self.name!r}: {len(self):,} examples, {len(self.fields)} fields, "
            f"{sum(field.rows for field in self.fields):,} rows)"
        )

    @property
    def single(self) -> tuple[str, ...]:
        """Names of the single-hot fields, in the order of the columns of ``ids``."""
        return tuple(field.name for field in self.fields if not field.multi_hot)

    @property
    def multi(self) -> tuple[str, ...]:
        """Names of the multi-hot fields."""
        return tuple(field.name for field in self.fields if field.multi_hot)

    def field(self, name: str) -> Field:
        """The field of this name."""
        found = [field for field in self.fields if field.name == name]
        if not found:
            known = ", ".join(field.name for field in self.fields)
            raise DataError(f"{self.name}: field should be one of {known}, got {name!r}")
        return found[0]

    @cached_property
    def labels(self) -> NDArray[np.float32]:
        """float32 (N,), 0 or 1."""
        return self.store.labels[self.rows]

    @cached_property
    def timestamps(self) -> NDArray[np.int64] | None:
        """int64 (N,), or None where the data has no times."""
        return None if self.store.timestamps is None else self.store.timestamps[self.rows]

    @property
    def ids(self) -> NDArray[np.int32]:
        """int32 (N, S), a copy unless the log is compact; ``blocks`` never takes so much."""
        return self._view(self.rows).ids

    @property
    def bags(self) -> dict[str, Bag]:
        """{multi-hot field: (values int32, offsets int64 (N + 1,))}, as ``ids``."""
        return dict(self._view(self.rows).bags)

    @property
    def dense(self) -> NDArray[np.float32] | None:
        """float32 (N, K), or None, as ``ids``."""
        return None if self.store.dense is None else self.store.dense[self.rows]

    def blocks(self, size: int = BLOCK) -> Iterator[Store]:
        """The examples in order, so many at a time."""
        for start in range(0, len(self), size):
            stop = min(start + size, len(self))
            if isinstance(self.rows, slice):
                yield self._view(slice(self.rows.start + start, self.rows.start + stop))
            else:
                yield self._view(self.rows[start:stop])

    def batch(self, rows: ArrayLike) -> ClickBatch:
        """These examples as tensors. rows: integers (B,), from 0 to N - 1, in any order.

        Raises:
            DataError: a position that there is not.
        """
        # Here, not above: counting and splitting must not pay for torch's import.
        import torch

        part = self._view(self._positions(rows))
        return ClickBatch(
            single=self.single,
            ids=torch.from_numpy(part.ids.astype(np.int64)),
            bags={
                name: (
                    torch.from_numpy(bag.values.astype(np.int64)),
                    torch.from_numpy(np.ascontiguousarray(bag.offsets)),
                )
                for name, bag in part.bags.items()
            },
            dense=None if part.dense is None else torch.from_numpy(np.array(part.dense)),
            labels=torch.from_numpy(np.array(part.labels)),
        )

    def take(self, rows: slice | ArrayLike) -> ClickLog:
        """Some of the examples, over the same arrays. rows: a slice without a step, or (n,) ids."""
        if not isinstance(rows, slice):
            return replace(self, rows=self._positions(rows))
        start, stop, step = rows.indices(len(self))
        if step != 1:
            raise DataError(f"a slice of examples should have no step, got {step}")
        stop = max(start, stop)
        if isinstance(self.rows, slice):
            first = self.rows.start
            return replace(self, rows=slice(first + start, first + stop))
        return replace(self, rows=self.rows[start:stop])

    def counts(self) -> dict[str, NDArray[np.int64]]:
        """{field: int64 (rows,), how often each row occurs}, in one pass over blocks."""
        return count_rows(self)

    def relabelled(
        self,
        maps: Mapping[str, NDArray[np.int32]],
        fields: Sequence[Field],
        vocabularies: Mapping[str, Vocabulary] | None = None,
    ) -> ClickLog:
        """Rows renamed, over the same arrays. maps: {field: the new row of each row now}."""
        composed = dict(self.maps)
        for name, new in maps.items():
            old = composed.get(name)
            composed[name] = new if old is None else new[old]
        return replace(
            self,
            fields=tuple(fields),
            maps=composed,
            vocabularies=self.vocabularies if vocabularies is None else vocabularies,
        )

    def compact(self) -> ClickLog:
        """The same log with arrays of its own in memory: faster batches where it fits."""
        if isinstance(self.rows, slice) and not self.maps and type(self.store.ids) is np.ndarray:
            return self
        store = joined(list(self.blocks())) if len(self) else self._view(self.rows)
        return replace(self, store=store, rows=slice(0, len(store)), maps={})

    def fingerprint(self) -> str:
        """16 hex digits of the SHA-256 of fields, ids, labels and dense values, in their order."""
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        return digest(self)

    def save(self, folder: str | Path) -> Path:
        """Write a folder of plain .npy files and a header; see ``load``."""
        from .files import save_log

        return save_log(self, Path(folder))

    @classmethod
    def load(cls, folder: str | Path, *, verify: bool = False) -> ClickLog:
        """What ``save`` wrote, mapped from its files. verify: read all of it, and compare.

        Raises:
            DataError: the folder is damaged or something else.
        """
        from .files import load_log

        return load_log(Path(folder), verify=verify)

    def _positions(self, rows: ArrayLike) -> NDArray[np.int64]:
        """Positions in the store of positions in the log."""
        at = np.asarray(rows)
        if at.size == 0:
            at = at.astype(np.int64)
        if at.ndim != 1 or at.dtype.kind not in "iu":
            raise DataError(
                f"examples should be chosen by integers (B,), got shape {at.shape} of {at.dtype}"
            )
        if at.size and not (at.min() >= 0 and at.max() < len(self)):
            raise DataError(
                f"examples should be from 0 to {len(self) - 1}, got {at.min()} to {at.max()}"
            )
        at = at.astype(np.int64, copy=False)
        return at + self.rows.start if isinstance(self.rows, slice) else self.rows[at]

    @cached_property
    def _table(self) -> tuple[NDArray[np.int64], NDArray[np.int32]] | None:
        """All single-hot maps end to end, and where each column's starts: one gather does all."""
        if not any(name in self.maps for name in self.single):
            return None
        rows = {field.name: np.arange(field.rows, dtype=np.int32) for field in self.fields}
        maps = [self.maps.get(name, rows[name]) for name in self.single]
        starts = np.cumsum([0, *map(len, maps[:-1])])
        return starts, np.concatenate(maps)

    def _view(self, rows: Rows) -> Store:
        """Examples of the store under today's rows."""
        part = self.store.gather(rows)
        if not self.maps:
            return part
        ids, bags = part.ids, dict(part.bags)
        if self._table is not None:
            starts, table = self._table
            ids = table[ids + starts]
        for name in self.multi:
            if name in self.maps:
                bags[name] = Bag(self.maps[name][bags[name].values], bags[name].offsets)
        return replace(part, ids=ids, bags=bags)
