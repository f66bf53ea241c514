"""A click log's arrays, in memory or mapped from files, and any of their rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Rows = slice | NDArray[np.int64]
"""Which examples: a slice with both ends and no step, or positions."""


class Bag(NamedTuple):
    """A multi-hot field: example i has values[offsets[i]:offsets[i + 1]].

    values: int32. offsets: int64 (N + 1,), from 0.
    """

    values: NDArray[np.int32]
    offsets: NDArray[np.int64]


@dataclass(frozen=True, eq=False, kw_only=True)
class Store:
    """N examples, column by column; nothing is checked here.

    labels: float32 (N,). ids: int32 (N, S). bags: {name: Bag}. dense: float32 (N, K) or None.
    timestamps: int64 (N,) or None.
    """

    labels: NDArray[np.float32]
    ids: NDArray[np.int32]
    bags: Mapping[str, Bag] = field(default_factory=dict)
    dense: NDArray[np.float32] | None = None
    timestamps: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def gather(self, rows: Rows) -> Store:
        """These examples: views for a slice (but for offsets), copies for positions."""
        return Store(
            labels=self.labels[rows],
            ids=self.ids[rows],
            bags={name: _gathered(bag, rows) for name, bag in self.bags.items()},
            dense=None if self.dense is None else self.dense[rows],
            timestamps=None if self.timestamps is None else self.timestamps[rows],
        )


def _gathered(bag: Bag, rows: Rows) -> Bag:
    if isinstance(rows, slice):
        offsets = bag.offsets[rows.start : rows.stop + 1]
        return Bag(bag.values[offsets[0] : offsets[-1]], offsets - offsets[0])
    starts = bag.offsets[rows]
    lengths = bag.offsets[rows + 1] - starts
    offsets = np.concatenate(([0], np.cumsum(lengths)))
    at = np.repeat(starts - offsets[:-1], lengths) + np.arange(offsets[-1])
    return Bag(bag.values[at], offsets)


def joined(stores: list[Store]) -> Store:
    """One after the other, in memory."""

    def one(parts: list[Any]) -> Any:
        return None if parts[0] is None else np.concatenate(parts)

    bags: dict[str, Bag] = {}
    for name in stores[0].bags:
        own = [store.bags[name] for store in stores]
        lengths = np.concatenate([np.diff(bag.offsets) for bag in own])
        offsets = np.concatenate(([0], np.cumsum(lengths)))
        bags[name] = Bag(np.concatenate([bag.values for bag in own]), offsets)
    return Store(
        labels=one([store.labels for store in stores]),
        ids=one([store.ids for store in stores]),
        bags=bags,
        dense=one([store.dense for store in stores]),
        timestamps=one([store.timestamps for store in stores]),
    )
