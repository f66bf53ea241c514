"""From ids to rows of blocks: which of a table's real tables holds an id, and where.

The whole batch is routed at once, whatever the number of features and blocks: on the CPU by an
operator of our own, which takes no memory but for what comes out; elsewhere, and without a
compiler, by torch's (see routing_torch.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from ..errors import IdRangeError, InvalidInputError
from ..planning.table_plan import TablePlan
from .layout import Block
from .native.batch import batch_of
from .native.build import available
from .native.calls import IdFault
from .native.tables import laid
from .routing_torch import check_total, permuted, route

_ORDERS = 16  # of batches' keys, remembered by device


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
        counts = [len(own) for own in per_slot]
        self._firsts = [sum(counts[:s]) for s in range(len(counts))]
        # (block, slot) pairs block by block, as the torch way makes them, in slot-major order.
        self._pairs = [k * len(self.slots) + s for s, n in enumerate(counts) for k in range(n)]
        self._rows = [plans[slot.table].rows for slot in self.slots]
        table = np.zeros((4, most, len(self.slots)), dtype=np.int64)
        table[2:] = 1  # where a slot has fewer blocks than others, an empty range
        for s, own in enumerate(per_slot):
            for k, block in enumerate(own):
                ends = block.first_rank + block.rows
                table[:, k, s] = block.first_rank, ends, block.stride, block.rows
        self._host = {
            "blocks": torch.from_numpy(table),
            "rows": _on_cpu(self._rows),
            "pairs": _on_cpu(self._pairs).int(),
            "means": _on_cpu([s for s, slot in enumerate(self.slots) if slot.mean]),
        }
        self._add_id_maps(plans)
        self.laid = laid(
            self.slots,
            plans,
            {name: blocks[name] for name in dict.fromkeys(slot.table for slot in self.slots)},
            {block.name: 4 * block.real_width for own in per_slot for block in own},
            {block.name: "fp32" for own in per_slot for block in own},
            self.map_starts,
        )
        self._orders: dict[tuple[torch.device, tuple[int, ...]], Tensor] = {}
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
        mapped = [slot.table in starts for slot in self.slots]
        self._map_places = {n: slice(at, at + plans[n].rows) for n, at in starts.items()}
        self.map_starts = starts
        if maps:
            self._host["map"] = torch.cat(maps) if len(maps) > 1 else maps[0]
            self._host["starts"] = _on_cpu([starts.get(slot.table, 0) for slot in self.slots])
            if not all(mapped):
                self._host["mapped"] = torch.tensor(mapped, device="cpu")

    def id_map(self, table: str) -> Tensor | None:
        """int32 (rows,), on the CPU and not to be changed: ids' ranks; None where ids are ranks."""
        place = self._map_places.get(table)
        return None if place is None else self._host["map"][place]

    @property
    def map(self) -> Tensor | None:
        """int32, on the CPU, not to be changed: all id maps, a table's from ``map_starts`` on."""
        return self._host.get("map")

    def map_on(self, device: torch.device) -> Tensor | None:
        """The same on a device."""
        return self.map if device.type == "cpu" else self.to(device).get("map")

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
        """Route. Ids keep their type, lengths are int32; ids are checked against the tables' rows.

        Raises:
            IdRangeError: an id is out of range. InvalidInputError: a feature is missing, weights
                are missing, batch sizes differ between features, or the batch contradicts itself.
        """
        if features.device().type == "cpu" and available():
            values, lengths, totals, weights = self._by_operator(features)
        else:
            features = self.select(features)
            at = self.to(features.device())
            values, lengths, totals, weights, wrong = route(
                features, at, self._pairs, self._host["blocks"]
            )
            if wrong:
                self.report(features)
        return KeyedJaggedTensor(
            keys=self.keys,
            values=values,
            weights=weights,
            lengths=lengths,
            stride=features.stride(),
            length_per_key=totals,
        )

    def _by_operator(
        self, features: KeyedJaggedTensor
    ) -> tuple[Tensor, Tensor, list[int], Tensor | None]:
        try:
            values, lengths, totals, places = torch.ops.bet_torchrec.route(
                self.order(features),
                self._firsts,
                len(self.keys),
                self.is_weighted,
                *batch_of(features, weighted=self.is_weighted),
                self.laid.slots,
                self.laid.tables,
                self.laid.blocks,
                self.map,
            )
        except IdFault:
            self.report(self.select(features))
            raise
        # Gathered by torch, so that weights get gradients.
        weights = features.weights().index_select(0, places) if self.is_weighted else None
        return values, lengths, totals.tolist(), weights

    def scale(self, features: KeyedJaggedTensor) -> Tensor | None:
        """(B, mean-pooled slots): 1 / length of each bag; None if no slot is mean-pooled."""
        means = self.to(features.device())["means"]
        if not len(means):
            return None
        lengths = features.lengths().view(len(features.keys()), features.stride())
        if features.keys() != self._features:
            order = self.order(features)
            lengths = lengths.index_select(0, self._order_on(features.device(), tuple(order)))
        lengths = lengths.index_select(0, means)
        return lengths.T.clamp_min(1).float().reciprocal()

    def select(self, features: KeyedJaggedTensor) -> KeyedJaggedTensor:
        """The slots' features in the slots' order, checked; what it returned passes as it is."""
        order = self.order(features)
        if order != list(range(len(features.keys()))):
            check_total(features)
            features = permuted(features, order, self._order_on(features.device(), tuple(order)))
        if not self.is_weighted and features.weights_or_none() is not None:
            features = KeyedJaggedTensor(
                keys=features.keys(),
                values=features.values(),
                lengths=features.lengths(),
                stride=features.stride(),
            )
        return features

    def _order_on(self, device: torch.device, order: tuple[int, ...]) -> Tensor:
        # A tensor made of a list waits for its device, so it is made once for each order of keys.
        if (device, order) not in self._orders:
            if len(self._orders) >= _ORDERS:
                self._orders.clear()
            self._orders[device, order] = _on_cpu(order).int().to(device)
        return self._orders[device, order]

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


def rank_of_id(order: NDArray[np.int32]) -> NDArray[np.int32]:
    """The inverse of order[rank] = id."""
    ranks = np.empty_like(order)
    ranks[order] = np.arange(len(order), dtype=order.dtype)
    return ranks


def _on_cpu(values: Sequence[int]) -> Tensor:
    """int64, on the CPU whatever the default device is."""
    return torch.tensor(values, dtype=torch.int64, device="cpu")
