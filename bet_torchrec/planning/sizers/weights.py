"""Weights by table, whatever the tables are called: torch has names of its own, and no dots."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import Tensor, nn


def attribute(name: str) -> str:
    """A name that a module may hold a table's tensor by: no module has an attribute like it."""
    return "table_" + name.replace(".", "\u2024")


class TableWeights(nn.Module):
    """One parameter a table, read as a mapping of the tables' own names."""

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._names = tuple(weights)
        for name, weight in weights.items():
            self.register_parameter(attribute(name), nn.Parameter(weight))

    def __getitem__(self, name: str) -> nn.Parameter:
        if name not in self._names:
            raise KeyError(name)
        found: nn.Parameter = getattr(self, attribute(name))
        return found

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def items(self) -> Iterator[tuple[str, nn.Parameter]]:
        """(table, its weights), in the order that they came in."""
        return ((name, self[name]) for name in self._names)
