"""Rows of several sizes that grow: e_(k+1) = W_k e_k, all read at the largest (ESAPN, SIGIR 2020).

Shapes: R rows of a table, K sizes s_k, the largest D.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..weights import TableWeights


class GrowingRows(nn.Module):
    """Tables whose rows have one of ``sizes`` each, the smallest at first; an embedding module.

    A row of level k is read as tanh(BN(M_k e)): M_k, (s_k, D), and the W_k of growth are a table's
    own, the batch norm is shared and starts at the scale of ``init_std``.

    rows: {table: R}. levels: {table: (R,)} where in ``sizes`` each row is.
    """

    def __init__(
        self,
        rows: Mapping[str, int],
        sizes: Sequence[int],
        *,
        init_std: float,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.sizes, self.width = tuple(sizes), sizes[-1]
        self.levels = {name: torch.zeros(n, dtype=torch.int64) for name, n in rows.items()}
        self._tried: Mapping[str, Tensor] | None = None
        values = {}
        for name, n in rows.items():
            values[name] = torch.zeros(n, self.width)
            values[name][:, : sizes[0]] = torch.randn(n, sizes[0], generator=generator) * init_std
        self.values = TableWeights(values)

        def maps(start: int, end: int) -> TableWeights:
            drawn = {n: torch.randn(start, end, generator=generator) / start**0.5 for n in rows}
            return TableWeights(drawn)

        self.reading = nn.ModuleList(maps(size, self.width) for size in self.sizes)
        steps = zip(self.sizes, self.sizes[1:], strict=False)
        self.growing = nn.ModuleList(maps(start, end) for start, end in steps)
        self.norm = nn.BatchNorm1d(self.width)
        nn.init.constant_(self.norm.weight, init_std)

    def table(self, name: str) -> Tensor:
        return self._read(name, self.values[name], slice(None))

    def lookup(self, name: str, ids: Tensor) -> Tensor:
        return self._read(name, F.embedding(ids, self.values[name]), ids)

    def _read(self, name: str, values: Tensor, ids: Tensor | slice) -> Tensor:
        levels = self.levels[name][ids]
        found = values.new_zeros(len(values), self.width)
        for level, size in enumerate(self.sizes):
            own = values[:, :size] @ self._map(self.reading, level, name)
            if self._tried is not None and level + 1 < len(self.sizes):
                grown = values[:, :size] @ self._map(self.growing, level, name)
                grown = grown @ self._map(self.reading, level + 1, name)
                own = torch.lerp(own, grown, self._tried[name][ids][:, None])
            found = torch.where((levels == level)[:, None], own, found)
        if self.training and len(found) < 2:  # a batch of one has no variance
            return torch.tanh(found * self.norm.weight + self.norm.bias)
        read: Tensor = torch.tanh(self.norm(found))
        return read

    @staticmethod
    def _map(maps: nn.ModuleList, level: int, name: str) -> Tensor:
        found: Tensor = maps[level][name]  # type: ignore[index]
        return found

    @contextmanager
    def trying(self, shares: Mapping[str, Tensor]) -> Iterator[None]:
        """Within, rows are read in this share as they would be one size up: {table: (R,)}."""
        self._tried = shares
        try:
            yield
        finally:
            self._tried = None

    @torch.no_grad()
    def grow(self, name: str, ids: Tensor) -> None:
        """These rows, none twice, one size up; those of the largest size stay."""
        levels = self.levels[name][ids].clone()
        for level in range(len(self.sizes) - 1):
            own = ids[levels == level]
            mapped = self.values[name][own, : self.sizes[level]]
            mapped = mapped @ self._map(self.growing, level, name)
            self.values[name][own, : self.sizes[level + 1]] = mapped
            self.levels[name][own] = level + 1

    def entries(self) -> int:
        """Of all rows at their sizes."""
        sizes = torch.tensor(self.sizes)
        return sum(int(sizes[levels].sum()) for levels in self.levels.values())
