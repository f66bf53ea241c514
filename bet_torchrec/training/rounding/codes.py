"""Column codes that train: rows, steps and offsets learn, and every read is what codes would say.

Shapes: n rows, C columns of codes, K blocks of ranks.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import InvalidInputError
from ...serving.column_codes import CodedBlock, CodedTable, float_axes, pack_codes
from ..sized_embedding import SPREAD_ROWS
from .straight_through import as_half, coded, codes_of

STRIDE = 5.0
"""Sizes of its column that a coordinate moves by where the learning rate is one: between coarse
codes it has far to go. Of 1, 3, 5 and 10 the best on Frappe's FM at 1 and 3 bytes a row; with 5
instead of 1 MovieLens-1M's FM, d 64, ends at test AUC .8897 instead of .8859 at 1 byte a row."""


class _Table(nn.Module):
    """One table: values (rows, C) in id order, and K blocks' grids (K, C).

    What learns is relative, so that one learning rate suits all: a coordinate is value * unit, the
    column's size at first times ``STRIDE``; scale = first scale * exp(stretch), offset = first
    offset + first scale * shift.
    """

    base_scale: Tensor
    base_offset: Tensor
    last: Tensor
    unit: Tensor
    block: Tensor | None
    axes: Tensor | None

    def __init__(self, form: CodedTable, coordinates: Tensor) -> None:
        super().__init__()
        self.form = form
        columns = len(form.blocks[0].bits)
        if coordinates.shape != (form.rows, columns):
            raise InvalidInputError(
                f"table {form.name!r}: expected coordinates ({form.rows}, {columns}), got "
                f"{tuple(coordinates.shape)}"
            )
        scale = torch.from_numpy(np.stack([block.scale for block in form.blocks]))
        offset = torch.from_numpy(np.stack([block.offset for block in form.blocks]))
        self._half = scale.dtype == torch.float16
        scale, offset = scale.float(), offset.float()
        bits = torch.from_numpy(np.stack([block.bits for block in form.blocks]).astype(np.int32))
        block = None
        if len(form.blocks) > 1:
            edges = np.array([own.first_rank for own in form.blocks[1:]])
            ranks = np.arange(form.rows) if form.id_map is None else form.id_map
            block = torch.from_numpy(np.searchsorted(edges, ranks, side="right"))
        axes = None if form.axes is None else torch.from_numpy(float_axes(form.axes))
        values = coordinates.detach().float()
        unit = values.square().mean(dim=0).sqrt() * STRIDE if form.rows else torch.ones(columns)
        for name, buffer in (
            ("base_scale", torch.where(scale > 0, scale, 1.0)),  # one level: any step reads alike
            ("base_offset", offset),
            ("last", (2.0**bits) - 1),
            ("block", block),
            ("axes", axes),
            ("unit", torch.where(unit > 0, unit, 1.0)),
        ):
            self.register_buffer(name, buffer, persistent=False)
        self.values = nn.Parameter(values / self.unit)
        self.stretch = nn.Parameter(torch.zeros_like(scale))
        self.shift = nn.Parameter(torch.zeros_like(offset))

    def read(self, ids: Tensor | None) -> Tensor:
        if ids is not None and self.form.rows <= SPREAD_ROWS * ids.numel():
            return F.embedding(ids, self.read(None))  # rounds every row once
        values = self.values if ids is None else F.embedding(ids, self.values)
        coordinates = coded(values * self.unit, *self._grids(ids))
        if self.axes is not None:
            return coordinates @ self.axes
        return F.pad(coordinates, (0, self.form.embedding_dim - coordinates.shape[1]))

    def _grids(self, ids: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Scales, offsets and last codes of these rows, (C,) or (n, C)."""
        scale, offset = self._kept_grids()
        if self.block is None:
            return scale[0], offset[0], self.last[0]
        block = self.block if ids is None else self.block[ids]
        return (F.embedding(block, scale), F.embedding(block, offset), self.last[block])

    def _kept_grids(self) -> tuple[Tensor, Tensor]:
        """(K, C) both, as what is written keeps them."""
        scale = self.base_scale * self.stretch.exp()
        offset = self.base_offset + self.base_scale * self.shift
        return (as_half(scale), as_half(offset)) if self._half else (scale, offset)

    @torch.no_grad()
    def coded(self) -> CodedTable:
        values = self.values * self.unit
        codes = codes_of(values, *self._grids(None)).to(torch.uint8).cpu().numpy()
        if self.form.id_map is not None:
            codes = codes[np.argsort(self.form.id_map, kind="stable")]
        dtype = np.float16 if self._half else np.float32
        scale, offset = (grid.cpu().numpy().astype(dtype) for grid in self._kept_grids())
        blocks = []
        for k, block in enumerate(self.form.blocks):
            own = codes[block.first_rank : block.first_rank + block.rows]
            packed = pack_codes(own, block.bits)
            blocks.append(
                CodedBlock(block.first_rank, block.bits, scale[k].copy(), offset[k].copy(), packed)
            )
        form = self.form
        return CodedTable(form.name, form.embedding_dim, tuple(blocks), form.axes, form.id_map)


class ColumnCodes(nn.Module):
    """Tables in column codes, trained on; fits ``models.EmbeddingModule``, as wide as the widest.

    Axes, bits, blocks and id maps stay as they are; rows, scales and offsets learn. Training takes
    4 bytes a coordinate and the optimizer's state beside the axes: what is small is the result.

    Args:
        forms: the codes to begin from, as ``choose_codes`` or ``encode_tables`` make them.
        coordinates: {name: (rows, C)} in id order, what the codes are the roundings of.
    """

    def __init__(self, forms: Mapping[str, CodedTable], coordinates: Mapping[str, Tensor]) -> None:
        super().__init__()
        if set(forms) != set(coordinates):
            raise InvalidInputError(
                f"expected coordinates of tables {sorted(forms)}, got {sorted(coordinates)}"
            )
        self.width = max(form.embedding_dim for form in forms.values())
        self._numbers = {name: number for number, name in enumerate(forms)}
        self.parts = nn.ModuleList(_Table(form, coordinates[name]) for name, form in forms.items())

    def lookup(self, name: str, ids: Tensor) -> Tensor:
        return self._widened(self._part(name).read(ids))

    def table(self, name: str) -> Tensor:
        return self._widened(self._part(name).read(None))

    def coded(self) -> dict[str, CodedTable]:
        """The codes as they are now: ``CodedEmbedding`` of them reads exactly as this does."""
        return {name: self._part(name).coded() for name in self._numbers}

    @torch.no_grad()
    def full_tables(self, width: int | None = None) -> dict[str, Tensor]:
        """Copies of the tables as they read, zero-padded to ``width`` columns if given."""
        missing = 0 if width is None else width - self.width
        if missing < 0:
            raise InvalidInputError(f"width should be at least {self.width}, got {width}")
        return {name: F.pad(self.table(name), (0, missing)).clone() for name in self._numbers}

    def _widened(self, rows: Tensor) -> Tensor:
        missing = self.width - rows.shape[1]
        return F.pad(rows, (0, missing)) if missing else rows

    def _part(self, name: str) -> _Table:
        part = self.parts[self._numbers[name]]
        assert isinstance(part, _Table)
        return part
