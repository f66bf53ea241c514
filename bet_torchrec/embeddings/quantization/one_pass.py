"""The lookup of quantised rows by our own kernel, in the memory of TorchRec's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torchrec.quant.embedding_modules import EmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from ...planning.table_plan import TablePlan
from ..layout import Block
from ..native.batch import batch_of
from ..native.build import available
from ..native.calls import IdFault
from ..native.tables import laid
from ..routing import Router


class OnePass:
    """How blocks lie in that memory, and the lookup there.

    plans, blocks: by table, as stored. rows: {block name: its packed rows there}.
    """

    def __init__(
        self,
        router: Router,
        plans: Mapping[str, TablePlan],
        blocks: Mapping[str, Sequence[Block]],
        rows: Mapping[str, Tensor],
    ) -> None:
        self._router = router
        self._blocks = [block for own in blocks.values() for block in own]
        self._laid = laid(
            router.slots,
            plans,
            blocks,
            {name: own.stride(0) for name, own in rows.items()},
            {block.name: block.precision for block in self._blocks},
            router.map_starts,
        )
        starts = [rows[block.name].storage_offset() for block in self._blocks]
        self._starts = torch.tensor(starts, dtype=torch.int64, device="cpu")

    @staticmethod
    def takes(collection: Any, features: KeyedJaggedTensor) -> bool:
        """TorchRec's serve on other devices, once sharded, or without a compiler."""
        return (
            features.device().type == "cpu"
            and type(collection) is EmbeddingBagCollection
            and available()
        )

    def __call__(
        self, collection: Any, features: KeyedJaggedTensor, width: int, *, weighted: bool
    ) -> Tensor:
        """Pooled columns, (B, width).

        Raises:
            IdRangeError: an id is out of range. InvalidInputError: a batch contradicts itself.
        """
        order = self._router.order(features)
        try:
            return torch.ops.bet_torchrec.serve(
                _memory(collection),
                self._starts,
                order,
                width,
                *batch_of(features, weighted=weighted),
                self._laid.slots,
                self._laid.tables,
                self._laid.blocks,
                self._router.map,
            )
        except IdFault:
            self._router.report(self._router.select(features))
            raise

    def tie(self, collection: Any) -> None:
        """Make the blocks' tensors views of that memory again, with what they hold.

        Tensors that are assigned or unpickled have memory of their own, which nobody would read.
        """
        if type(collection) is not EmbeddingBagCollection:
            return
        memory = _memory(collection)
        for start, block in zip(self._starts.tolist(), self._blocks, strict=True):
            holder = collection.embedding_bags[block.name]
            rows = holder.weight.view(torch.uint8)
            own = memory[start : start + rows.numel()].view(rows.shape)
            if rows.data_ptr() != own.data_ptr():
                own.copy_(rows)
                holder.weight = (
                    own if holder.weight.dtype == torch.uint8 else type(holder.weight)(own)
                )


def _memory(collection: EmbeddingBagCollection) -> Tensor:
    """uint8, all blocks' rows: what TorchRec's kernel reads, one at most, as all are summed."""
    kernels = collection._emb_modules
    if not kernels:
        return torch.empty(0, dtype=torch.uint8)
    return kernels[0].weights_host if kernels[0].host_size else kernels[0].weights_dev
