"""From ids to rows of blocks: which of a table's real tables holds an id, and where.

The whole batch is routed at once, whatever the number of features and blocks: V values times K
blocks, a handful of kernels, and one synchronisation with the host.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from ..errors import InvalidInputError
from ..planning.table_plan import TablePlan
from .layout import Block


class IdRangeError(InvalidInputError, IndexError):
    """An id is negative or not below its table's rows."""


@dataclass(frozen=True)
class Slot:
    """One feature looked up in one table. key: its name in the output. mean: pooled by mean.

    number: its place in the output, which alone tells a feature twice on one table apart.
    """

    feature: str
    table: str
    key: str
    mean: bool = False
    number: int = 0


def block_key(slot: Slot, block: Block) -> str:
    """The name of a slot's lookups in one block; no two share one, whatever users call things."""
    return f"{slot.number}:{slot.feature}/{block.name}"


class Router:
    """Turns a KeyedJaggedTensor of ids into one of block rows, a key a (slot, block).

    slots: in output order. plans, blocks: by table. is_weighted: weights are routed along.

    No module: its tensors follow the plan, not the weights, so they are neither saved nor emptied
    when a module is made on the meta device; they are copied once to every device that asks.
    """

    def __init__(
        self,
        slots: Sequence[Slot],
        plans: Mapping[str, TablePlan],
        blocks: Mapping[str, Sequence[Block]],
        *,
        is_weighted: bool = False,
    ) -> None:
        self.slots = tuple(slots)
        self.is_weighted = is_weighted
        self._features = [slot.feature for slot in self.slots]
        most = max(len(blocks[slot.table]) for slot in self.slots)
        per_slot = [blocks[slot.table] for slot in self.slots]
        self.keys = [
            block_key(slot, block)
            for slot, own in zip(self.slots, per_slot, strict=True)
            for block in own
        ]
        # (block, slot) pairs in the router's order that exist, as places in slot-major order.
        self._pairs = [
            k * len(self.slots) + s for s, own in enumerate(per_slot) for k in range(len(own))
        ]
        every_pair = range(most * len(self.slots))
        self._pair_keys = [str(pair) for pair in every_pair]
        self._in_slot_order = self._pairs == list(every_pair)
        self._rows = [plans[slot.table].rows for slot in self.slots]
        table = np.zeros((4, most, len(self.slots)), dtype=np.int64)
        table[2:] = 1  # where a slot has fewer blocks than others, an empty range
        for s, own in enumerate(per_slot):
            for k, block in enumerate(own):
                ends = block.first_rank + block.rows
                table[:, k, s] = block.first_rank, ends, block.stride, block.rows
        self._lower_bounded = any(b.first_rank for own in per_slot for b in own)
        self._interleaved = any(b.stride != 1 for own in per_slot for b in own)
        self._host = {"blocks": torch.from_numpy(table), "rows": torch.tensor(self._rows)}
        self._add_id_maps(plans)
        self._on: dict[torch.device, dict[str, Tensor]] = {torch.device("cpu"): self._host}

    def _add_id_maps(self, plans: Mapping[str, TablePlan]) -> None:
        # One map for all tables whose ids are no ranks; ranked tables take no room in it.
        starts: dict[str, int] = {}
        maps = []
        total = 0
        for name in dict.fromkeys(slot.table for slot in self.slots):
            if (order := plans[name].order) is not None:
                starts[name], total = total, total + len(order)
                maps.append(torch.from_numpy(rank_of_id(order)))
        self._mapped = [slot.table in starts for slot in self.slots]
        self._map_places = {n: slice(at, at + plans[n].rows) for n, at in starts.items()}
        self.map_starts = starts
        if maps:
            self._host["map"] = torch.cat(maps) if len(maps) > 1 else maps[0]
            self._host["starts"] = torch.tensor([starts.get(s.table, 0) for s in self.slots])
            self._host["mapped"] = torch.tensor(self._mapped)

    def id_map(self, table: str) -> Tensor | None:
        """int32 (rows,), on the CPU and not to be changed: ids' ranks; None where ids are ranks."""
        place = self._map_places.get(table)
        return None if place is None else self._host["map"][place]

    @property
    def map(self) -> Tensor | None:
        """int32, on the CPU and not to be changed: all id maps, a table's from ``map_starts`` on."""
        return self._host.get("map")

    @property
    def id_map_bytes(self) -> int:
        """Bytes of the id maps on one device."""
        return self._host["map"].nbytes if "map" in self._host else 0

    def to(self, device: torch.device) -> dict[str, Tensor]:
        """The tensors on a device, copied there once."""
        if device not in self._on:
            self._on[device] = {name: value.to(device) for name, value in self._host.items()}
        return self._on[device]

    def __call__(self, features: KeyedJaggedTensor) -> KeyedJaggedTensor:
        """Route. Ids are checked against the tables' rows.

        Raises:
            IdRangeError: an id is out of range. InvalidInputError: a feature is missing, weights
                are missing, or batch sizes differ between features.
        """
        features = self.select(features)
        ids, lengths = features.values().long(), features.lengths()
        at = self.to(ids.device)
        count, batch = len(self.slots), features.stride()
        slot_of = None
        if count > 1:
            per_slot = lengths.view(count, batch).sum(dim=1)  # (S,)
            slot_of = torch.repeat_interleave(per_slot, output_size=ids.numel())
        bad = _out_of_range(ids, at["rows"] if slot_of is None else at["rows"][slot_of])
        ranks = self._ranks(ids, slot_of, at)
        first, end, stride, rows = (
            part if slot_of is None else part[:, slot_of] for part in at["blocks"].unbind()
        )
        inside = ranks < end
        if self._lower_bounded:
            inside &= ranks >= first
        local = ranks - first if self._lower_bounded else ranks.expand(len(end), -1)
        if self._interleaved:
            local = local * stride % rows
        routed, host = _bag_lengths(inside, features, bad)
        if host.pop():
            self.report(features)
        chosen = _true_places(inside.view(-1), sum(host))
        weights = features.weights_or_none()
        if weights is not None:
            weights = weights.expand(len(first), -1).reshape(-1).index_select(0, chosen)
        by_block = KeyedJaggedTensor(
            keys=self._pair_keys,
            values=local.reshape(-1).index_select(0, chosen),
            weights=weights,
            lengths=routed.view(-1),
            stride=batch,
            length_per_key=host,
        )
        if not self._in_slot_order:
            by_block = _permuted(by_block, self._pairs)
        return KeyedJaggedTensor(
            keys=self.keys,
            values=by_block.values(),
            weights=by_block.weights_or_none(),
            lengths=by_block.lengths(),
            stride=batch,
            length_per_key=by_block.length_per_key(),
        )

    def scale(self, features: KeyedJaggedTensor) -> Tensor | None:
        """(B, slots): 1 / length of each mean-pooled bag, else 1; None if none is mean-pooled."""
        if not any(slot.mean for slot in self.slots):
            return None
        lengths = self.select(features).lengths().view(len(self.slots), features.stride()).T
        mean = torch.tensor([slot.mean for slot in self.slots], device=lengths.device)
        return torch.where(mean, 1 / lengths.clamp_min(1).float(), 1.0)

    def select(self, features: KeyedJaggedTensor) -> KeyedJaggedTensor:
        """The slots' features in the slots' order, checked; what it returned passes as it is."""
        order = self.order(features)
        if order != list(range(len(features.keys()))):
            features = _permuted(features, order)
        if not self.is_weighted and features.weights_or_none() is not None:
            features = KeyedJaggedTensor(
                keys=features.keys(),
                values=features.values(),
                lengths=features.lengths(),
                stride=features.stride(),
            )
        return features

    def order(self, features: KeyedJaggedTensor) -> list[int]:
        """Each slot's feature, as a place among the batch's keys.

        Raises:
            InvalidInputError: as on a call.
        """
        if features.variable_stride_per_key() or features.inverse_indices_or_none() is not None:
            raise InvalidInputError(
                "every feature should have the same batch size (no stride_per_key_per_rank and no "
                "inverse_indices), got a KeyedJaggedTensor with variable batch sizes: pad with "
                "empty bags, or look such features up in a collection of their own"
            )
        if self.is_weighted and features.weights_or_none() is None:
            raise InvalidInputError(
                "is_weighted=True expects a KeyedJaggedTensor with weights, got one without"
            )
        keys = features.keys()
        if keys == self._features:
            return list(range(len(keys)))
        place = {key: i for i, key in enumerate(keys)}
        missing = [name for name in dict.fromkeys(self._features) if name not in place]
        if missing:
            raise InvalidInputError(
                f"expected features {', '.join(dict.fromkeys(self._features))}, got "
                f"{', '.join(keys)}: {', '.join(missing)} missing"
            )
        return [place[name] for name in self._features]

    def _ranks(self, ids: Tensor, slot_of: Tensor | None, at: dict[str, Tensor]) -> Tensor:
        if not any(self._mapped):
            return ids
        if slot_of is None:
            # An id out of range is reported later; here it must only not crash.
            return at["map"][ids.clamp(0, self._rows[0] - 1)].long()
        mapped = at["mapped"][slot_of]
        place = ids.clamp_min(0).minimum(at["rows"][slot_of] - 1) + at["starts"][slot_of]
        ranks = at["map"][place.where(mapped, 0)].long()
        return ranks if all(self._mapped) else ranks.where(mapped, ids)

    def report(self, features: KeyedJaggedTensor) -> None:
        """Raise IdRangeError for the first feature with an id out of range."""
        per_slot = features.values().split(features.length_per_key())
        for slot, rows, ids in zip(self.slots, self._rows, per_slot, strict=True):
            wrong = ids[(ids < 0) | (ids >= rows)]
            if len(wrong):
                raise IdRangeError(
                    f"feature {slot.feature!r}: ids of table {slot.table!r} should be 0 to "
                    f"{rows - 1}, got {wrong[0].item()} (and {len(wrong) - 1} more): map unknown "
                    "ids to a row of their own, or leave them out of the bag"
                )


def _permuted(features: KeyedJaggedTensor, keys: list[int]) -> KeyedJaggedTensor:
    """``features.permute``, whose backward (FBGEMM 1.8) writes out of bounds if keys are some only.

    So weights with gradients are gathered here.
    """
    weights = features.weights_or_none()
    if weights is None or not weights.requires_grad:
        return features.permute(keys)
    places = KeyedJaggedTensor(
        keys=features.keys(),
        values=torch.arange(len(weights), device=weights.device),
        lengths=features.lengths(),
        stride=features.stride(),
        length_per_key=features.length_per_key(),
    ).permute(keys)
    return KeyedJaggedTensor(
        keys=places.keys(),
        values=features.values()[places.values()],
        weights=weights[places.values()],
        lengths=places.lengths(),
        stride=places.stride(),
        length_per_key=places.length_per_key(),
    )


def rank_of_id(order: NDArray[np.int32]) -> NDArray[np.int32]:
    """The inverse of order[rank] = id."""
    ranks = np.empty_like(order)
    ranks[order] = np.arange(len(order), dtype=order.dtype)
    return ranks


def _out_of_range(ids: Tensor, rows: Tensor) -> Tensor:
    """How many ids are, as a tensor (1,)."""
    return ((ids < 0) | (ids >= rows)).sum().view(1)


def _bag_lengths(
    inside: Tensor, features: KeyedJaggedTensor, bad: Tensor
) -> tuple[Tensor, list[int]]:
    """Bag lengths (K, slots * B), and on the host each (block, slot)'s sum, then ``bad``.

    The only place where the host waits for the device.
    """
    lengths, batch = features.lengths(), features.stride()
    if lengths.device.type == "cpu" and _all_one(lengths, inside.shape[1]):
        routed = inside.long()
    else:
        routed = F.pad(inside.cumsum(dim=1), (1, 0))[:, features.offsets()].diff(dim=1)
    sums = routed.view(len(inside) * len(features.keys()), batch).sum(dim=1)
    return routed, torch.cat([sums, bad]).tolist()


def _all_one(lengths: Tensor, values: int) -> bool:
    return lengths.numel() == values and values > 0 and bool((lengths == 1).all())


def _true_places(mask: Tensor, count: int) -> Tensor:
    """int64 (count,): where ``mask`` is true."""
    if mask.device.type == "cpu":
        return mask.nonzero().squeeze(1)
    return torch.nonzero_static(mask, size=count).squeeze(1)  # does not wait for the device
