"""Ids relabelled to ranks, most frequent first: then a plan needs no id maps.

A map costs 4 bytes a row, which is more than a row is worth under a tiny budget. Relabel the ids
once, where the data are read, and the maps are gone from the model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as save_safetensors

from ..errors import InvalidInputError, PlanFileError
from ..files.atomic import replace_file
from .counts import RowCounts, check_order

FORMAT = "bet_torchrec.relabelling"


@dataclass(frozen=True, eq=False)
class Relabelling:
    """Which id has which rank, by table.

    orders: {table: int32 (rows,), order[rank] = id}; None where ids are ranks already.

    >>> relabelling = Relabelling.from_counts({"item": [1, 5, 3]})
    >>> relabelling.ranks("item", np.array([1, 2, 0, 1]))
    array([0, 1, 2, 0], dtype=int32)
    """

    orders: Mapping[str, NDArray[np.int32] | None]

    def __post_init__(self) -> None:
        for name, order in self.orders.items():
            if order is not None:
                try:
                    check_order(order, len(order))
                except InvalidInputError as error:
                    raise InvalidInputError(f"table {name!r}: {error}") from None
        object.__setattr__(self, "orders", MappingProxyType(dict(self.orders)))

    @classmethod
    def from_counts(cls, counts: Mapping[str, Any]) -> Relabelling:
        """From counts by table name, one integer a row in id order, or RowCounts."""
        made = {
            name: given if isinstance(given, RowCounts) else RowCounts.from_rows(given)
            for name, given in counts.items()
        }
        return cls({name: each.order for name, each in made.items()})

    def ranks(self, table: str, ids: Any) -> Any:
        """The ranks of ids, in the ids' own kind: a torch tensor (any device) or a NumPy array.

        Shape and dtype stay, for NumPy int32. A KeyedJaggedTensor is relabelled feature by
        feature: its values are such ids.

        Raises:
            InvalidInputError: unknown table, or an id that it does not have.
        """
        order = self._order(table)
        rank_of = None
        if order is not None:
            rank_of = np.empty_like(order)
            rank_of[order] = np.arange(len(order), dtype=order.dtype)
        return _looked_up(table, rank_of, ids)

    def ids(self, table: str, ranks: Any) -> Any:
        """The ids of ranks: the inverse of ``ranks``."""
        return _looked_up(table, self._order(table), ranks)

    def rows(self, table: str, by_id: Any) -> Any:
        """A table (rows, d) or counts (rows,) in id order, in rank order."""
        order = self._order(table)
        if order is None:
            return by_id
        if len(by_id) != len(order):
            raise InvalidInputError(
                f"table {table!r}: expected {len(order)} rows, got {len(by_id)}"
            )
        if isinstance(by_id, torch.Tensor):
            return by_id[torch.from_numpy(order.astype(np.int64)).to(by_id.device)]
        return np.asarray(by_id)[order]

    def save(self, path: str | Path) -> Path:
        """Write one file (safetensors, no pickle), whole or not at all; returns its path."""
        path = Path(path)
        arrays = {
            f"{'ranked' if order is None else 'order'}.{name}": (
                np.zeros(0, np.int32) if order is None else order
            )
            for name, order in self.orders.items()
        }
        data = save_safetensors(arrays, {"format": FORMAT, "version": "1"})
        replace_file(path, bytes(data))
        return path

    @classmethod
    def load(cls, path: str | Path) -> Relabelling:
        """Read one back.

        Raises:
            PlanFileError: corrupted or foreign. FileNotFoundError: no such file.
        """
        try:
            with safe_open(str(path), framework="numpy") as file:
                said = (file.metadata() or {}).get("format")
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise PlanFileError(f"{path} should be a saved Relabelling, but {error}") from None
        if said != FORMAT:
            raise PlanFileError(f"{path} should be a saved Relabelling, got a file of {said!r}")
        try:
            found = {}
            for name, array in arrays.items():
                kind, table = name.split(".", 1)
                if array.dtype != np.int32 or array.ndim != 1:
                    raise InvalidInputError(f"{name} is {array.dtype} of {array.shape}")
                found[table] = None if kind == "ranked" else array
            return cls(found)
        except ValueError as error:
            raise PlanFileError(f"{path} holds no relabelling: {error}") from None

    def _order(self, table: str) -> NDArray[np.int32] | None:
        if table not in self.orders:
            names = ", ".join(map(repr, self.orders))
            raise InvalidInputError(f"table should be one of {names}, got {table!r}")
        return self.orders[table]


def _looked_up(table: str, places: NDArray[np.int32] | None, at: Any) -> Any:
    if places is None:
        return at
    tensor = at if isinstance(at, torch.Tensor) else None
    index = np.asarray(at.detach().cpu().numpy() if tensor is not None else at)
    if index.dtype.kind not in "iu" and index.size:
        raise InvalidInputError(f"table {table!r}: ids should be integers, got {index.dtype}")
    if index.size and (index.min() < 0 or index.max() >= len(places)):
        raise InvalidInputError(
            f"table {table!r}: ids should be from 0 to {len(places) - 1}, got {index.min()} to "
            f"{index.max()}"
        )
    found = places[index.astype(np.int64)]
    return found if tensor is None else torch.from_numpy(found).to(tensor.device, tensor.dtype)
