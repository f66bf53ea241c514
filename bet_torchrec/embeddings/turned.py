"""Pooled lookups in tables that are kept in axes of their own.

A composition, so that any collection will do: it holds coordinates, pools them, and this multiplies
each table's pooled columns by its axes, once a batch. Pooling is linear, so that is the same as
turning every row. Sharding, checkpoints and quantisation reach the collection inside as they would
anywhere in a model; the axes are plain weights beside it, which DistributedModelParallel keeps on
every rank.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import get_embedding_names_by_table
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor, KeyedTensor

from ..axes import Basis
from ..errors import InvalidInputError
from ..planning.budget import Budget, MemoryModel


class TurnedEmbeddingBagCollection(nn.Module):
    """A collection of coordinates, read as rows: row = coordinates @ axes.

    Takes a KeyedJaggedTensor and returns a KeyedTensor as the collection would, but each table with
    a basis as wide as the rows that it stands for.

    Args:
        collection: of the tables that ``coordinate_tables`` gives: a
            BudgetedEmbeddingBagCollection, TorchRec's own, or another of this interface. What
            stands in its place later, sharded or quantised, is called alike.
        bases: {table: basis}; tables without one stay as they are.
        train: whether the axes are trained, or stay fixed.

    Raises:
        InvalidInputError: bases of other tables, or of another width than their table.
    """

    def __init__(
        self, collection: nn.Module, bases: Mapping[str, Basis], *, train: bool = False
    ) -> None:
        super().__init__()
        configs: list[EmbeddingBagConfig] = _method(collection, "embedding_bag_configs")()
        _check(configs, bases)
        self.collection = collection
        self._number = {name: number for number, name in enumerate(bases)}
        self._tables = {
            key: config.name
            for config, keys in zip(configs, get_embedding_names_by_table(configs), strict=True)
            for key in keys
        }
        self._configs = [
            dataclasses.replace(config, embedding_dim=bases[config.name].dim)
            if config.name in bases
            else config
            for config in configs
        ]
        device = next((weight.device for weight in collection.parameters()), None)
        for number, basis in enumerate(bases.values()):
            axes = (
                basis.axes.clone()
                if device is None or device.type == "meta"
                else basis.axes.to(device, copy=True)
            )
            if train:
                self.register_parameter(f"axes_{number}", nn.Parameter(axes))
            else:
                self.register_buffer(f"axes_{number}", axes)

    def forward(self, features: KeyedJaggedTensor) -> KeyedTensor:
        """Look up, pool, turn."""
        pooled = self.collection(features)
        keys, parts = [], []
        for key, columns in pooled.to_dict().items():
            axes = self.axes(self._tables[key])
            keys.append(key)
            parts.append(columns if axes is None else columns @ axes.to(columns.dtype))
        return KeyedTensor(
            keys=keys,
            length_per_key=[part.shape[1] for part in parts],
            values=torch.cat(parts, dim=1),
        )

    def axes(self, table: str) -> Tensor | None:
        """(coordinates, embedding_dim) of a table; None of one without."""
        if table not in self._number:
            return None
        found: Tensor = getattr(self, f"axes_{self._number[table]}")
        return found

    def bases(self) -> dict[str, Basis]:
        """{table: its axes as they are now}."""
        return {
            name: Basis(getattr(self, f"axes_{n}").detach()) for name, n in self._number.items()
        }

    def embedding_bag_configs(self) -> list[EmbeddingBagConfig]:
        """Of the rows that come out, not of the coordinates."""
        return list(self._configs)

    def is_weighted(self) -> bool:
        """Whether bags have weights."""
        return bool(_method(self.collection, "is_weighted")())

    def load_full_tables(self, tables: Mapping[str, Tensor]) -> TurnedEmbeddingBagCollection:
        """Fill the collection with full tables' rows {name: (rows, embedding_dim)}, turned."""
        bases = self.bases()
        _method(self.collection, "load_full_tables")(
            {
                name: bases[name].coordinates(table) if name in bases else table
                for name, table in tables.items()
            }
        )
        return self

    def full_tables(self) -> dict[str, Tensor]:
        """Copies {name: (rows, embedding_dim)}, turned back; on every rank of a sharded one."""
        bases, found = self.bases(), _method(self.collection, "full_tables")()
        return {
            name: bases[name].rows(table) if name in bases else table
            for name, table in found.items()
        }


def coordinate_tables(
    tables: Sequence[EmbeddingBagConfig], bases: Mapping[str, Basis]
) -> list[EmbeddingBagConfig]:
    """The tables as their coordinates: as wide as the axes are many. Plan and build these."""
    missing = sorted(set(bases) - {table.name for table in tables})
    if missing:
        raise InvalidInputError(f"expected bases of the tables, got one of {missing[0]!r} too")
    return [
        dataclasses.replace(table, embedding_dim=bases[table.name].width)
        if table.name in bases
        else table
        for table in tables
    ]


def budget_beside(budget: Budget, bases: Mapping[str, Basis], *, train: bool = False) -> Budget:
    """What is left of a budget for the coordinates, once all axes are paid for.

    Axes are fp32. In training bytes, trained ones have the optimizer's state a weight too (and what
    it keeps a row, for every axis).

    Raises:
        InvalidInputError: the axes alone take more, or the budget is a sparsity, a share of tables
            that are no longer the same.
    """
    if budget.unit == "sparsity":
        raise InvalidInputError(
            "a sparsity is a share of tables whose widths axes change: use Budget.parameters(n)"
        )
    model = MemoryModel.for_budget(budget)
    cost = 0
    for basis in bases.values():
        if train and budget.purpose == "training":
            cost += basis.width * model.row_cost(basis.dim, "fp32")
        else:
            cost += basis.nbytes if budget.unit == "bytes" else basis.width * basis.dim
    if cost > budget.amount:
        raise InvalidInputError(
            f"axes take {cost} {budget.cost_unit}, more than the budget's {budget.amount}: allow "
            "more, or cut the bases to fewer axes"
        )
    return dataclasses.replace(budget, amount=int(budget.amount) - cost)


def _check(configs: Sequence[EmbeddingBagConfig], bases: Mapping[str, Basis]) -> None:
    widths = {config.name: config.embedding_dim for config in configs}
    for name, basis in bases.items():
        if widths.get(name) != basis.width:
            raise InvalidInputError(
                f"table {name!r}: expected a collection of its {basis.width} coordinates, got "
                + (f"{widths[name]} columns" if name in widths else f"tables {sorted(widths)}")
                + ": make it of coordinate_tables(tables, bases)"
            )


def _method(collection: nn.Module, name: str) -> Any:
    found = getattr(collection, name, None)
    if found is None:
        raise InvalidInputError(
            f"expected a collection that has {name}, got {type(collection).__name__}"
        )
    return found
