"""Coded rows read by torch: a lookup that decodes the rows it asks for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import InvalidInputError
from ..serving.column_codes import CodedBlock, CodedTable, code_places, float_axes


class _Decoder(nn.Module):
    """One block's packed rows and its columns' constants, on any device."""

    data: Tensor
    first: Tensor
    second: Tensor
    shift: Tensor
    mask: Tensor
    scale: Tensor
    offset: Tensor

    def __init__(self, block: CodedBlock) -> None:
        super().__init__()
        first, second, shift, mask = code_places(block.bits)
        self.first_rank, self.rows = block.first_rank, block.rows
        self.register_buffer("data", torch.from_numpy(np.array(block.data)))
        for name, array in (
            ("first", first),
            ("second", second),
            ("shift", shift.astype(np.int32)),
            ("mask", mask.astype(np.int32)),
            ("scale", block.scale.astype(np.float32)),
            ("offset", block.offset.astype(np.float32)),
        ):
            self.register_buffer(name, torch.from_numpy(np.array(array)))

    def forward(self, local: Tensor) -> Tensor:
        """Rows of the block, (n,) -> fp32 (n, columns)."""
        return decode_rows(
            self.data[local],
            self.first,
            self.second,
            self.shift,
            self.mask,
            self.scale,
            self.offset,
        )


def decode_rows(
    packed: Tensor,
    first: Tensor,
    second: Tensor,
    shift: Tensor,
    mask: Tensor,
    scale: Tensor,
    offset: Tensor,
) -> Tensor:
    """uint8 (n, bytes) -> fp32 (n, columns), by ``code_places`` and the columns' grids."""
    if not packed.shape[1]:
        return offset.expand(len(packed), -1)
    word = packed[:, first].int() | packed[:, second].int() << 8
    return ((word >> shift) & mask).float() * scale + offset


class CodedEmbedding(nn.Module):
    """Coded tables as an embedding module, for evaluation and serving; see EmbeddingModule.

    width: the widest table's embedding_dim; others' rows end in zeros. Holds the packed rows alone;
    a lookup decodes what it is asked for.
    """

    def __init__(self, tables: Mapping[str, CodedTable]) -> None:
        super().__init__()
        if not tables:
            raise InvalidInputError("expected at least one coded table, got none")
        self.width = max(table.embedding_dim for table in tables.values())
        self._names = {name: number for number, name in enumerate(tables)}
        self._rows = [table.rows for table in tables.values()]
        self._blocks = nn.ModuleList(
            nn.ModuleList(_Decoder(block) for block in table.blocks) for table in tables.values()
        )
        for number, table in enumerate(tables.values()):
            axes = None if table.axes is None else float_axes(table.axes)
            for what, array in (("axes", axes), ("map", table.id_map)):
                buffer = None if array is None else torch.from_numpy(np.array(array))
                self.register_buffer(f"_{what}_{number}", buffer)

    @torch.no_grad()
    def lookup(self, name: str, ids: Tensor) -> Tensor:
        """Rows of int64 ids (n,), fp32 (n, width)."""
        number = self._names[name]
        if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < self._rows[number]:
            raise InvalidInputError(
                f"ids of table {name!r} should be from 0 to {self._rows[number] - 1}, got "
                f"{int(ids.min())} to {int(ids.max())}"
            )
        order, axes = (getattr(self, f"_{what}_{number}") for what in ("map", "axes"))
        ranks = ids if order is None else order[ids].long()
        blocks = self._decoders(name)
        if len(blocks) == 1:
            read = blocks[0](ranks)
        else:
            read = blocks[0].scale.new_empty(len(ids), len(blocks[0].scale))
            for block in blocks:
                local = ranks - block.first_rank
                inside = ((local >= 0) & (local < block.rows)).nonzero().flatten()
                read[inside] = block(local[inside])
        rows = read if axes is None else read @ axes
        missing = self.width - rows.shape[1]
        return F.pad(rows, (0, missing)) if missing else rows

    def table(self, name: str) -> Tensor:
        """The whole table, decoded."""
        device = self._decoders(name)[0].scale.device
        return self.lookup(name, torch.arange(self._rows[self._names[name]], device=device))

    def _decoders(self, name: str) -> list[_Decoder]:
        own = cast(nn.ModuleList, self._blocks[self._names[name]])
        return [cast(_Decoder, block) for block in own]
