"""A collection's slots, tables and blocks as the kernels read them: see rows.h.

Plain int64 tensors, so that operators take them like any other argument.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...planning.table_plan import TablePlan
from ..layout import Block

if TYPE_CHECKING:
    from ..routing import Slot


DECODERS = ("fp32", "fp16", "int8", "int4", "int2", "columns")  # in the order of rows.h


@dataclass(frozen=True, eq=False)
class Laid:
    """How tables lie in memory.

    slots: int64 (S, 4). tables: int64 (T, 5). blocks: int64 (K, 10), table by table. Fields are
    those of the structs in rows.h.
    """

    slots: Tensor
    tables: Tensor
    blocks: Tensor

    def of_slot(self, slot: int) -> Laid:
        """One slot alone, whose columns begin at 0, with its table and blocks."""
        table, _, dim, mean = self.slots[slot].tolist()
        rows, start, first, end, alone = self.tables[table].tolist()
        return Laid(
            integers([(0, 0, dim, mean)], 4),
            integers([(rows, start, 0, end - first, alone)], 5),
            self.blocks[first:end].clone(),
        )


def laid(
    slots: Sequence[Slot],
    plans: Mapping[str, TablePlan],
    blocks: Mapping[str, Sequence[Block]],
    row_bytes: Mapping[str, int],
    precisions: Mapping[str, str],
    map_starts: Mapping[str, int],
) -> Laid:
    """Describe tables to the kernels.

    slots: in output order. plans, blocks: by table, the latter in the order of memory. row_bytes,
    precisions: by block name: from one row to the next, and how a row is to be read. map_starts:
    by table, where its id map begins among all; ids of other tables are ranks.
    """
    names = list(blocks)
    column, slot_rows = 0, []
    for slot in slots:
        dim = plans[slot.table].embedding_dim
        slot_rows.append((names.index(slot.table), column, dim, int(slot.mean)))
        column += dim
    table_rows: list[tuple[int, ...]] = []
    block_rows: list[tuple[int, ...]] = []
    for name in names:
        own = blocks[name]
        first = len(block_rows)
        alone = all(block.first_column == 0 for block in own)
        start = map_starts.get(name, -1)
        table_rows.append((plans[name].rows, start, first, first + len(own), int(alone)))
        for block in own:
            decoder = DECODERS.index(precisions[block.name])
            end = block.first_rank + block.rows
            where = (block.first_rank, end, block.stride, block.rows)
            shape = (block.first_column, block.width, row_bytes[block.name], decoder, 0, 0)
            block_rows.append((*where, *shape))
    return Laid(
        integers(slot_rows, 4),
        integers(table_rows, 5),
        integers(block_rows, 10),
    )


def integers(rows: Sequence[tuple[int, ...]], fields: int) -> Tensor:
    # On the CPU whatever the default device is.
    return torch.tensor(rows, dtype=torch.int64, device="cpu").view(-1, fields)
