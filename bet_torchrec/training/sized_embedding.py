"""Plain-torch tables in which every row has a size of its own, for probes and one process.

Each table is one flat fp32 parameter that holds exactly the rows' own entries, row by row. Reading
copies it into a (rows, D) table of zeros, D being the largest size in use: small plans compute
with few columns, any number of widths costs the same, and the optimizer touches nothing that isn't
there. The equivalent with masks (full table times mask) keeps every entry and its optimizer state.
A lookup of few ids in a large table copies the rows that it names alone, and a table whose rows are
all of one size is read as it lies.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ..errors import InvalidInputError
from ..evaluation.quantisation import fake_quantise_sized
from ..planning.tables import TableSpec

SPREAD_ROWS = 2  # a table of at most so many rows a looked-up id is read through as a whole
_LAYOUT = ("begins", "sizes", "places")


class TensorTables:
    """An embedding module over plain tensors {name: (rows, D)}, read as they are."""

    def __init__(self, tables: Mapping[str, Tensor]) -> None:
        widths = {table.shape[1] for table in tables.values()}
        if len(widths) != 1:
            raise InvalidInputError(f"expected tables of one common width, got {sorted(widths)}")
        self._tables = dict(tables)
        self.width = widths.pop()

    @property
    def names(self) -> tuple[str, ...]:
        """The tables."""
        return tuple(self._tables)

    def table(self, name: str) -> Tensor:
        return self._tables[name]

    def lookup(self, name: str, ids: Tensor) -> Tensor:
        return gather_rows(self._tables[name], ids)


class SizedEmbedding(nn.Module):
    """Tables whose row n has ``sizes[name][n]`` entries; fits ``models.EmbeddingModule``.

    sizes: {table: (rows,) integers >= 0 in id order}. width: D, the columns of a read; the largest
    size in use (at least 1) unless given, never less. Starts as zeros: ``draw`` or ``load_prefix``.
    """

    def __init__(self, sizes: Mapping[str, ArrayLike], *, width: int | None = None) -> None:
        super().__init__()
        if not sizes:
            raise InvalidInputError("expected sizes of at least one table, got none")
        self._sizes = {name: _checked(name, values) for name, values in sizes.items()}
        largest = max(int(values.max(initial=0)) for values in self._sizes.values())
        self.width = max(1, largest) if width is None else width
        if self.width < max(1, largest):
            raise InvalidInputError(
                f"width should be at least the largest size, {largest}, got {width}"
            )
        self.values = nn.ParameterDict()
        for name, values in self._sizes.items():
            self.values[_key(name)] = nn.Parameter(torch.zeros(int(values.sum())))
            layout: tuple[Tensor | None, ...] = (None, None, None)
            if values.min(initial=self.width) != values.max(initial=0):
                begins = torch.from_numpy(np.cumsum(values, dtype=np.int64) - values)
                layout = (
                    begins,
                    torch.from_numpy(values.astype(np.int64)),
                    _places(values, self.width),
                )
            for what, buffer in zip(_LAYOUT, layout, strict=True):
                self.register_buffer(f"{what}_{_key(name)}", buffer, persistent=False)

    @classmethod
    def full(cls, tables: Sequence[TableSpec]) -> SizedEmbedding:
        """All rows at their tables' full width."""
        return cls({t.name: np.full(t.num_embeddings, t.embedding_dim, np.int32) for t in tables})

    @property
    def names(self) -> tuple[str, ...]:
        """The tables."""
        return tuple(self._sizes)

    def sizes(self, name: str) -> np.ndarray:
        """int32 (rows,), in id order."""
        return self._sizes[name]

    def num_weights(self) -> int:
        """Entries of all tables: what a plan in parameters counts."""
        return sum(values.numel() for values in self.values.values())

    def _weights(self, name: str) -> nn.Parameter:
        found: nn.Parameter = self.values[_key(name)]
        return found

    def table(self, name: str) -> Tensor:
        values, rows = self._weights(name), len(self._sizes[name])
        places = getattr(self, f"places_{_key(name)}")
        if places is None:
            return self._widened(self._as_it_lies(name))
        return _Spread.apply(values, None, places, rows, self.width)

    def lookup(self, name: str, ids: Tensor) -> Tensor:
        count = len(self._sizes[name])
        if getattr(self, f"places_{_key(name)}") is None:
            table = self._as_it_lies(name)
            # torch looks at no id where rows have no columns
            if not table.numel() and ids.numel() and not 0 <= ids.min() <= ids.max() < count:
                raise IndexError(
                    f"table {name!r} has rows 0 to {count - 1}, got {ids.min()} to {ids.max()}"
                )
            return self._widened(gather_rows(table, ids))
        if count <= SPREAD_ROWS * ids.numel():
            # One streaming copy of everything beats a gather of scattered entries.
            return gather_rows(self.table(name), ids)
        distinct, inverse = ids.unique(return_inverse=True)
        return gather_rows(self._rows(name, distinct), inverse)

    def _as_it_lies(self, name: str) -> Tensor:
        """The (rows, size) table of rows of one size."""
        return self._weights(name).view(len(self._sizes[name]), -1)

    def _widened(self, rows: Tensor) -> Tensor:
        missing = self.width - rows.shape[-1]
        return F.pad(rows, (0, missing)) if missing else rows

    def _rows(self, name: str, ids: Tensor) -> Tensor:
        """Rows of distinct ids (n,), as (n, D), without a look at any others."""
        begins, sizes, _ = (getattr(self, f"{what}_{_key(name)}") for what in _LAYOUT)
        sizes = sizes.index_select(0, ids)
        ends = sizes.cumsum(0)
        entries = torch.arange(int(sizes.sum()), device=ids.device)
        # Of each entry: where it lies in the flat parameter, and where among these rows.
        shifts = begins.index_select(0, ids) - (ends - sizes)
        rows = torch.arange(len(ids), device=ids.device) * self.width - (ends - sizes)
        source, places = (
            entries + shift.repeat_interleave(sizes, output_size=len(entries))
            for shift in (shifts, rows)
        )
        return _Spread.apply(self._weights(name), source, places, len(ids), self.width)

    @torch.no_grad()
    def draw(self, std: float, generator: torch.Generator | None = None) -> SizedEmbedding:
        """Draw every entry from N(0, std^2); returns itself."""
        if not (math.isfinite(std) and std > 0):
            raise InvalidInputError(f"std should be positive and finite, got {std}")
        for values in self.values.values():
            # Drawn on the CPU, so that a seed gives the same start on every device.
            values.copy_(torch.randn(values.shape, generator=generator) * std)
        return self

    @torch.no_grad()
    def load_prefix(self, tables: Mapping[str, Tensor]) -> SizedEmbedding:
        """Fill each row with the first entries of its row in full tables (rows, d); returns itself.

        Raises:
            InvalidInputError: other tables or rows, or a size above d.
        """
        if set(tables) != set(self._sizes):
            raise InvalidInputError(f"expected tables {sorted(self._sizes)}, got {sorted(tables)}")
        for name in self._sizes:
            values = self._weights(name)
            full, sizes = tables[name].detach(), self._sizes[name]
            if full.ndim != 2 or len(full) != len(sizes) or full.shape[1] < sizes.max(initial=0):
                raise InvalidInputError(
                    f"table {name!r}: expected {len(sizes)} rows at least "
                    f"{int(sizes.max(initial=0))} wide, got shape {tuple(full.shape)}"
                )
            places = _places(sizes, full.shape[1])
            values.copy_(full.reshape(-1)[places.to(full.device)])
        return self

    @torch.no_grad()
    def full_tables(self, width: int | None = None) -> dict[str, Tensor]:
        """Copies of the tables, zero-padded to ``width`` columns (D without it)."""
        missing = (self.width if width is None else width) - self.width
        if missing < 0:
            raise InvalidInputError(f"width should be at least {self.width}, got {width}")
        return {name: F.pad(self.table(name), (0, missing)).clone() for name in self._sizes}

    @torch.no_grad()
    def quantised(self, precisions: Mapping[str, ArrayLike | str]) -> TensorTables:
        """The tables as they read after row-wise quantisation, as an embedding module of its own.

        precisions: {table: one precision, or one a row, (rows,) of str in id order}.
        """
        tables = {}
        for name, sizes in self._sizes.items():
            table = self.table(name).detach().clone()
            rows = np.broadcast_to(np.asarray(precisions.get(name, "fp32"), dtype=str), sizes.shape)
            for precision in np.unique(rows):
                chosen = torch.from_numpy(np.flatnonzero(rows == precision)).to(table.device)
                own = torch.from_numpy(sizes[rows == precision]).to(table.device)
                table[chosen] = fake_quantise_sized(table[chosen], own, str(precision))
            tables[name] = table
        return TensorTables(tables)

    def extra_repr(self) -> str:
        tables = ", ".join(f"{name}: {len(sizes)} rows" for name, sizes in self._sizes.items())
        return f"{tables}, width {self.width}, {self.num_weights()} weights"


def gather_rows(table: Tensor, ids: Tensor) -> Tensor:
    """Rows (..., D) of ids (...).

    On a CPU its gradient takes a third to two thirds of the time of torch's embedding.
    """
    if table.device.type != "cpu" or not table.shape[1]:
        return F.embedding(ids, table)
    return table.index_select(0, ids.reshape(-1)).view(*ids.shape, table.shape[1])


def _key(name: str) -> str:
    """A table's name as torch allows names: a dot would be a path, "items" a method."""
    return name.replace(".", "\u2024") + ("\u2024" if hasattr(nn.ParameterDict, name) else "")


def _checked(name: str, sizes: ArrayLike) -> np.ndarray:
    values = np.asarray(sizes)
    if values.ndim != 1 or not np.issubdtype(values.dtype, np.integer) or (values < 0).any():
        raise InvalidInputError(
            f"table {name!r}: sizes should be a flat array of integers >= 0, got "
            f"{values.dtype} of shape {values.shape}"
        )
    return values.astype(np.int32)


def _places(sizes: np.ndarray, width: int) -> Tensor:
    """int64 (entries,): where each entry of the flat parameter lies in a flat (rows, width)."""
    starts = np.arange(len(sizes), dtype=np.int64) * width
    begins = np.cumsum(sizes, dtype=np.int64) - sizes
    return torch.from_numpy(np.arange(int(sizes.sum())) + np.repeat(starts - begins, sizes))


class _Spread(torch.autograd.Function):
    """Entries to their places in a table of zeros; the gradient is read back from there.

    source: which of the values, no two alike; None is all of them.
    """

    @staticmethod
    def forward(
        ctx: Any, values: Tensor, source: Tensor | None, places: Tensor, rows: int, width: int
    ) -> Tensor:
        ctx.save_for_backward(source, places)
        ctx.entries = len(values)
        table = values.new_zeros(rows * width)
        chosen = values if source is None else values.index_select(0, source)
        table.index_copy_(0, places, chosen)
        return table.view(rows, width)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None, None]:
        source, places = ctx.saved_tensors
        chosen = gradient.reshape(-1).index_select(0, places)
        if source is not None:
            chosen = chosen.new_zeros(ctx.entries).index_copy_(0, source, chosen)
        return chosen, None, None, None, None
