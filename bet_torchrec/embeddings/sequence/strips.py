"""From ids to rows of strips, and from their rows to the output.

A strip is all blocks of the same columns, whatever their table: TorchRec's EmbeddingCollection
holds tables of one width, so each strip is one collection. An unpooled lookup does not care which
example an id is from, so a batch is routed as one bag a feature, and batch sizes may differ between
features; which row goes where in the output travels with the ids.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedJaggedTensor

from ..layout import Block
from ..native.tables import Laid
from ..routing import Router, Slot, block_key
from .bags import bags_of, named


@dataclass(frozen=True)
class Strip:
    """Blocks of columns [first_column, first_column + width), looked up by ``keys``.

    Their real tables may be padded: to the same width, so still one collection.

    at: places of the keys among the router's.
    """

    name: str
    first_column: int
    width: int
    keys: tuple[str, ...]
    at: tuple[int, ...]


def strips(router: Router, blocks: Mapping[str, Sequence[Block]]) -> tuple[Strip, ...]:
    """All strips of these tables, widest rows or first columns first."""
    columns = {
        block_key(slot, block): (block.first_column, block.width)
        for slot in router.slots
        for block in blocks[slot.table]
    }
    found: dict[tuple[int, int], list[int]] = {}
    for place, key in enumerate(router.keys):
        found.setdefault(columns[key], []).append(place)
    return tuple(
        Strip(
            f"columns_{first}_{first + width}",
            first,
            width,
            tuple(router.keys[place] for place in places),
            tuple(places),
        )
        for (first, width), places in sorted(found.items(), key=lambda one: (one[0][0], -one[0][1]))
    )


@dataclass(frozen=True)
class Routed:
    """One batch. features: of each strip. places: int64, where its rows go among ``rows``.

    bags: of each slot, ids and lengths as they came.
    """

    features: tuple[KeyedJaggedTensor, ...]
    places: tuple[Tensor, ...]
    bags: tuple[JaggedTensor, ...]
    rows: int

    def record_stream(self, stream: torch.Stream) -> None:
        """Keep what the output needs alive for another stream."""
        for places in self.places:
            places.record_stream(stream)
        for bag in self.bags:
            bag.record_stream(stream)


class StripRouter:
    """Routes ids to strips, and puts the strips' rows together.

    router: of the slots and blocks, with weights. width: of the output.
    need_indices: the output's weights are the ids.
    """

    def __init__(
        self,
        router: Router,
        blocks: Mapping[str, Sequence[Block]],
        width: int,
        *,
        need_indices: bool = False,
    ) -> None:
        self.router, self.width, self.need_indices = router, width, need_indices
        self.slots: tuple[Slot, ...] = router.slots
        self.strips = strips(router, blocks)
        alone = [router.laid.of_slot(number) for number in range(len(self.slots))]
        self._laid = [(own, int(own.slots[0, 2])) for own in alone]
        self._order = [place for strip in self.strips for place in strip.at]
        self._orders: dict[torch.device, Tensor] = {}

    def __call__(self, features: KeyedJaggedTensor) -> Routed:
        """Route.

        Raises:
            IdRangeError: an id is out of range. InvalidInputError: a feature is missing.
        """
        bags = bags_of(features, self.slots)
        counts = [bag.values().numel() for bag in bags]
        ids = torch.cat([bag.values() for bag in bags])
        # Weights are copied along, not computed with: their bits may be places.
        places = torch.arange(len(ids), dtype=torch.int32, device=ids.device).view(torch.float32)
        whole = KeyedJaggedTensor(
            keys=[slot.feature for slot in self.slots],
            values=ids,
            weights=places,
            lengths=torch.stack([bag.lengths().sum() for bag in bags]).to(bags[0].lengths().dtype),
            stride=1,
            length_per_key=counts,
        )
        routed = self.router(whole)
        if not self.strips:
            return Routed((), (), bags, len(ids))
        by_strip = routed.permute(self._order, self._order_on(ids.device))
        parts = by_strip.split([len(strip.at) for strip in self.strips])
        return Routed(
            tuple(
                KeyedJaggedTensor(
                    keys=part.keys(),
                    values=part.values(),
                    lengths=part.lengths(),
                    stride=1,
                    length_per_key=part.length_per_key(),
                )
                for part in parts
            ),
            tuple(part.weights().view(torch.int32).long() for part in parts),
            bags,
            len(ids),
        )

    @property
    def id_map_bytes(self) -> int:
        """Bytes of the id maps."""
        return self.router.id_map_bytes

    def as_operators(
        self,
        features: KeyedJaggedTensor,
        weights: Mapping[str, Sequence[Tensor]],
        turned: Callable[[str, Tensor], Tensor],
    ) -> dict[str, JaggedTensor]:
        """The whole lookup, an operator a slot.

        weights: by table, its blocks'. turned: as for ``output``.
        """
        bags = bags_of(features, self.slots)
        stored = [
            self._rows(bag.values(), weights[slot.table], own, width)
            for bag, slot, (own, width) in zip(bags, self.slots, self._laid, strict=True)
        ]
        rows = [turned(slot.table, own) for slot, own in zip(self.slots, stored, strict=True)]
        # Of a table whose rows were all dropped no axes are kept, and a single column of zeros.
        wide = [F.pad(own, (0, self.width - own.shape[1])) for own in rows]
        return named(self.slots, bags, wide, need_indices=self.need_indices)

    def _rows(self, ids: Tensor, weights: Sequence[Tensor], laid: Laid, width: int) -> Tensor:
        """(ids, width): bags of one id each."""
        count = ids.numel()  # not len(ids), which is a number and no symbol
        if not weights:  # every row was dropped: zeros, through which a loss may still be taken
            zeros = torch.zeros(count, width, device=ids.device)
            return zeros.requires_grad_(torch.is_grad_enabled())
        rows: Tensor = torch.ops.bet_torchrec.pool(
            list(weights),
            [0],
            width,
            *(1, count, ids, None, torch.arange(count + 1, device=ids.device), None),
            laid.slots,
            laid.tables,
            laid.blocks,
            self.router.map_on(ids.device),
        )
        return rows.float()

    def _order_on(self, device: torch.device) -> Tensor:
        if device not in self._orders:
            self._orders[device] = torch.tensor(self._order, dtype=torch.int32, device=device)
        return self._orders[device]

    def output(
        self,
        routed: Routed,
        found: Sequence[Mapping[str, JaggedTensor]],
        turned: Callable[[str, Tensor], Tensor],
    ) -> dict[str, JaggedTensor]:
        """What the strips' collections found for ``routed.features``, as one full-width table's.

        Values are fp32 (ids of the slot, width), zeros beyond a row's size.

        turned: (table, what is stored of some rows) to these rows, see ``Bases.rows``.
        """
        rows = [
            _joined([of[key].values().float() for key in strip.keys])
            for strip, of in zip(self.strips, found, strict=True)
        ]
        if rows:
            columns = tuple((strip.first_column, strip.width) for strip in self.strips)
            values = _Placed.apply(columns, routed.rows, self.width, *routed.places, *rows)
        else:  # every row was dropped: zeros, through which a loss may still be taken
            device = routed.bags[0].values().device
            values = torch.zeros(routed.rows, self.width, device=device)
            values.requires_grad_(torch.is_grad_enabled())
        stored = values.split([bag.values().numel() for bag in routed.bags])
        own = [turned(slot.table, rows) for slot, rows in zip(self.slots, stored, strict=True)]
        return named(self.slots, routed.bags, own, need_indices=self.need_indices)


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


class _Placed(torch.autograd.Function):
    """Rows of each strip to their places and columns; the gradient is read back from there."""

    @staticmethod
    def forward(
        ctx: Any, columns: tuple[tuple[int, int], ...], count: int, width: int, *parts: Tensor
    ) -> Tensor:
        places, rows = parts[: len(columns)], parts[len(columns) :]
        ctx.columns, ctx.real = columns, [part.shape[1] for part in rows]
        ctx.save_for_backward(*places)
        out = rows[0].new_zeros(count, width)
        for (first, own), at, part in zip(columns, places, rows, strict=True):
            out.narrow(1, first, own).index_copy_(0, at, part[:, :own])
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        places = ctx.saved_tensors
        parts = [
            F.pad(gradient.narrow(1, first, own).index_select(0, at), (0, real - own))
            for (first, own), at, real in zip(ctx.columns, places, ctx.real, strict=True)
        ]
        return (None, None, None, *(None for _ in places), *parts)
