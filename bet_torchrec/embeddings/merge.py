"""From the blocks' pooled rows to the output of one full-width table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torchrec.sparse.jagged_tensor import KeyedTensor

from .layout import Block
from .routing import Slot, block_key

_ORDERS = 16  # of pooled keys, remembered by device


@dataclass(frozen=True)
class Piece:
    """One block's columns of the pooled values, and where they go in the output.

    Between one's columns and the next's there may be columns that only pad a real table.
    """

    source: int
    target: int
    width: int


@dataclass(frozen=True)
class Run:
    """Mean-pooled outputs side by side, of one width: the ``first`` and following of all such."""

    first: int
    count: int
    column: int
    width: int


@dataclass(frozen=True)
class Columns:
    """A merge by a kernel or two, whatever the number of pieces.

    source: int64, the columns to take; None for all. target: int64, where each of those goes.
    inverse: int64 (width,), if each column of the output is exactly one of the source's.
    """

    source: Tensor | None
    target: Tensor
    inverse: Tensor | None


def columns_of(
    pieces: Sequence[Piece], source_width: int, width: int, device: torch.device
) -> Columns:
    """All pieces' columns, on a device."""
    source = [column for p in pieces for column in range(p.source, p.source + p.width)]
    target = [column for p in pieces for column in range(p.target, p.target + p.width)]
    inverse = None
    if sorted(target) == list(range(width)):
        inverse = [at for _, at in sorted(zip(target, source, strict=True))]

    def on_device(columns: list[int] | None) -> Tensor | None:
        if columns is None:
            return None
        return torch.tensor(columns, dtype=torch.int64, device="cpu").to(device)

    whole = source == list(range(source_width))
    found = on_device(target)
    assert found is not None
    return Columns(None if whole else on_device(source), found, on_device(inverse))


class Merger:
    """Puts blocks' pooled rows together; columns that no block holds are zeros.

    slots: in output order. widths: {table: embedding_dim}. blocks: by table.
    """

    def __init__(
        self,
        slots: Sequence[Slot],
        widths: Mapping[str, int],
        blocks: Mapping[str, Sequence[Block]],
    ) -> None:
        self.keys = [slot.key for slot in slots]
        self.widths = [widths[slot.table] for slot in slots]
        self.width = sum(self.widths)
        starts = [sum(self.widths[:i]) for i in range(len(slots))]
        self._pieces = {
            block_key(slot, block): (start + block.first_column, block.width)
            for slot, start in zip(slots, starts, strict=True)
            for block in blocks[slot.table]
        }
        self._means = _runs([slot.mean for slot in slots], self.widths)
        self._columns: dict[tuple[torch.device, tuple[str, ...], int], Columns] = {}

    def __call__(self, pooled: KeyedTensor, scale: Tensor | None = None) -> KeyedTensor:
        """Merge. ``pooled`` may have its keys in any order.

        scale: (B, mean-pooled slots), multiplied to their outputs; None if there is none.
        """
        pieces, source = [], 0
        for key, width in zip(pooled.keys(), pooled.length_per_key(), strict=True):
            pieces.append(Piece(source, *self._pieces[key]))
            source += width
        values = pooled.values()
        side_by_side = all(piece.source == piece.target for piece in pieces)
        if side_by_side and values.shape[1] == self.width == sum(p.width for p in pieces):
            if scale is not None:
                values = _Scaled.apply(values, scale, self._means)
        elif by_index(values):
            columns = self._columns_on(values, pooled.keys(), pieces)
            values = _Gathered.apply(values, columns, self.width, scale, self._means)
        else:
            values = _Placed.apply(values, tuple(pieces), self.width, scale, self._means)
        return self.output(values)

    def _columns_on(self, values: Tensor, keys: Sequence[str], pieces: Sequence[Piece]) -> Columns:
        # A tensor made of a list waits for its device, so it is made once for each order of keys.
        key = (values.device, tuple(keys), values.shape[1])
        if key not in self._columns:
            if len(self._columns) >= _ORDERS:
                self._columns.clear()
            self._columns[key] = columns_of(pieces, values.shape[1], self.width, values.device)
        return self._columns[key]

    def output(self, values: Tensor) -> KeyedTensor:
        """Values (B, width) under the slots' names."""
        return KeyedTensor(keys=self.keys, length_per_key=self.widths, values=values)


def by_index(values: Tensor) -> bool:
    """On devices, where each call of a kernel costs; on the CPU copies of whole pieces are faster.

    On CUDA sums come in no fixed order, unless torch is asked for deterministic algorithms.
    """
    return values.device.type != "cpu"


class _Placed(torch.autograd.Function):
    """Columns to their places, summed where they meet; the gradient is read back from there."""

    @staticmethod
    def forward(
        ctx: Any,
        values: Tensor,
        pieces: tuple[Piece, ...],
        width: int,
        scale: Tensor | None,
        means: tuple[Run, ...],
    ) -> Tensor:
        ctx.pieces, ctx.source_width = pieces, values.shape[1]
        ctx.scale, ctx.means = scale, means
        out = values.new_zeros(values.shape[0], width)
        for piece in pieces:
            out.narrow(1, piece.target, piece.width).add_(
                values.narrow(1, piece.source, piece.width)
            )
        return out if scale is None else _scale(out, scale, means)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None, None]:
        if ctx.scale is not None:
            gradient = _scale(gradient.clone(), ctx.scale, ctx.means)
        parts = [gradient.narrow(1, piece.target, piece.width) for piece in ctx.pieces]
        # Pieces come in the order of the source: side by side they are its columns, all of them.
        if sum(piece.width for piece in ctx.pieces) == ctx.source_width:
            return torch.cat(parts, dim=1), None, None, None, None
        back = gradient.new_zeros(len(gradient), ctx.source_width)
        for piece, part in zip(ctx.pieces, parts, strict=True):
            back.narrow(1, piece.source, piece.width).copy_(part)
        return back, None, None, None, None


class _Gathered(torch.autograd.Function):
    """The same by one call of a kernel, or three, whatever the number of pieces."""

    @staticmethod
    def forward(
        ctx: Any,
        values: Tensor,
        columns: Columns,
        width: int,
        scale: Tensor | None,
        means: tuple[Run, ...],
    ) -> Tensor:
        ctx.columns, ctx.source_width = columns, values.shape[1]
        ctx.scale, ctx.means = scale, means
        if columns.inverse is not None:
            out = values.index_select(1, columns.inverse)
        else:
            taken = values if columns.source is None else values.index_select(1, columns.source)
            out = values.new_zeros(values.shape[0], width).index_add_(1, columns.target, taken)
        return out if scale is None else _scale(out, scale, means)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None, None]:
        if ctx.scale is not None:
            gradient = _scale(gradient.clone(), ctx.scale, ctx.means)
        columns: Columns = ctx.columns
        back = gradient.index_select(1, columns.target)
        if columns.source is not None:
            whole = gradient.new_zeros(len(gradient), ctx.source_width)
            back = whole.index_copy_(1, columns.source, back)
        return back, None, None, None, None


class _Scaled(torch.autograd.Function):
    """Mean-pooled columns times their scales; nothing as wide as the output is kept."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, scale: Tensor, means: tuple[Run, ...]) -> Tensor:
        ctx.scale, ctx.means = scale, means
        return _scale(values.clone(), scale, means)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return _scale(gradient.clone(), ctx.scale, ctx.means), None, None


def _scale(values: Tensor, scale: Tensor, means: tuple[Run, ...]) -> Tensor:
    """In place, in whatever type the values are."""
    for run in means:
        columns = values.narrow(1, run.column, run.count * run.width)
        own = scale.narrow(1, run.first, run.count).unsqueeze(2)
        columns.unflatten(1, (run.count, run.width)).mul_(own)
    return values


def _runs(mean: Sequence[bool], widths: Sequence[int]) -> tuple[Run, ...]:
    found: list[Run] = []
    first = column = 0
    for is_mean, width in zip(mean, widths, strict=True):
        if is_mean:
            last = found[-1] if found else None
            if last and (last.column + last.count * last.width, last.width) == (column, width):
                found[-1] = Run(last.first, last.count + 1, last.column, width)
            else:
                found.append(Run(first, 1, column, width))
            first += 1
        column += width
    return tuple(found)
