"""Routing by torch's own kernels, with one synchronisation with the host.

A batch is routed as a whole, by a handful of kernels that take some 15 times its ids' memory; a
large one slot by slot, twice over the ids, first to count and then to write, so that next to
nothing is kept but what comes out.

V ids, K blocks a table at most, S slots, B bags, P (slot, block) pairs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from ..errors import InvalidInputError

Routed = tuple[Tensor, Tensor, list[int], "Tensor | None", int]

# Ids times blocks of a batch that is routed slot by slot: a GPU has more room, and waits for every
# one of the kernels, some twenty a block.
LARGE, LARGE_ON_DEVICE = 1 << 18, 1 << 25
_PIECE = 1 << 15  # ids that are looked at together then


def route(
    features: KeyedJaggedTensor,
    at: Mapping[str, Tensor],
    pairs: Sequence[int],
    blocks: Tensor,
) -> Routed:
    """Values, int32 lengths, totals, weights, and how many ids are out of range.

    features: the slots', in order. at: the router's tensors on their device. pairs: in the order of
    the result, each a block * S + slot. blocks: (4, K, S), as in ``at``, on the CPU.
    """
    on_cpu = features.device().type == "cpu"
    counted = on_cpu or features.length_per_key_or_none() is not None
    large = LARGE if on_cpu else LARGE_ON_DEVICE
    if counted and features.values().numel() * blocks.shape[1] > large:
        return _slot_by_slot(features, at, pairs, blocks)
    return _at_once(features, at, pairs)


def _at_once(features: KeyedJaggedTensor, at: Mapping[str, Tensor], pairs: Sequence[int]) -> Routed:
    ids, lengths = features.values(), features.lengths()
    blocks, rows = at["blocks"], at["rows"]
    most, slots = blocks.shape[1:]
    check_total(features)
    slot_of = torch.repeat_interleave(
        lengths.view(slots, features.stride()).sum(dim=1), output_size=ids.numel()
    )
    own_rows = rows.index_select(0, slot_of)
    wrong = ((ids < 0) | (ids >= own_rows)).sum().view(1)
    ranks = _ranks(ids, slot_of, own_rows, at)
    inside = torch.empty(most, ids.numel(), dtype=torch.bool, device=ids.device)
    firsts, ends, *_ = blocks.unbind()
    for own, first, end in zip(inside.unbind(), firsts.unbind(), ends.unbind(), strict=True):
        torch.lt(ranks, end.index_select(0, slot_of), out=own)
        own &= ranks >= first.index_select(0, slot_of)
    del own_rows
    routed = _bag_lengths(inside, features)
    sums = routed.view(most * slots, features.stride()).sum(dim=1)
    said = lengths.sum().view(1)
    *totals, bad, count = on_host(torch.cat([sums, wrong, said]))
    _check_total(count, ids.numel())
    chosen = _true_places(inside.view(-1), sum(totals))
    del inside
    block_of = chosen.div(max(1, ids.numel()), rounding_mode="floor")
    place = chosen.sub_(block_of * ids.numel())
    pair_of = block_of.mul_(slots).add_(slot_of.index_select(0, place))
    first, _, stride, modulus = (part.index_select(0, pair_of) for part in blocks.view(4, -1))
    values = ranks.index_select(0, place).sub_(first).mul_(stride).remainder_(modulus)
    weights = features.weights_or_none()
    by_block = KeyedJaggedTensor(
        keys=[str(pair) for pair in range(most * slots)],
        values=values.to(ids.dtype),
        weights=None if weights is None else weights.index_select(0, place),
        lengths=routed.view(-1),
        stride=features.stride(),
        length_per_key=totals,
    )
    if list(pairs) != list(range(most * slots)):
        by_block = permuted(by_block, list(pairs), at["pairs"])
    return (
        by_block.values(),
        by_block.lengths(),
        by_block.length_per_key(),
        by_block.weights_or_none(),
        bad,
    )


def _slot_by_slot(
    features: KeyedJaggedTensor, at: Mapping[str, Tensor], pairs: Sequence[int], blocks: Tensor
) -> Routed:
    check_total(features)
    ids, lengths, bags = features.values(), features.lengths(), features.stride()
    routed = torch.zeros(len(pairs), bags, dtype=torch.int32, device=ids.device)
    wrong = torch.zeros(1, dtype=torch.int64, device=ids.device)
    pieces: list[_Piece] = []
    held: list[Tensor] = []
    start = 0
    for slot, count in enumerate(features.length_per_key()):
        own = [number for number, pair in enumerate(pairs) if pair % blocks.shape[2] == slot]
        described = blocks[:, [pairs[p] // blocks.shape[2] for p in own], slot].T.tolist()
        ends = lengths[slot * bags : (slot + 1) * bags].cumsum(0, dtype=torch.int64)
        offsets = F.pad(ends, (1, 0))
        for first in range(0, count, _PIECE):
            piece = _Piece(slot, start + first, min(count - first, _PIECE), own, described)
            pieces.append(piece)
            places = offsets.clamp(first, first + piece.count) - first
            wrong += piece.wrong(ids, at)
            for pair, inside in zip(own, piece.inside(piece.ranks(ids, at)), strict=True):
                until = F.pad(inside.cumsum(0, dtype=torch.int32), (1, 0)).index_select(0, places)
                routed[pair] += until.diff()
                held.append(inside.sum().view(1))
        start += count
    *counts, bad, said = on_host(torch.cat([*held, wrong, lengths.sum().view(1)]))
    _check_total(said, ids.numel())
    totals = [0] * len(pairs)
    for pair, count in zip((p for piece in pieces for p in piece.pairs), counts, strict=True):
        totals[pair] += count
    nexts = [sum(totals[:pair]) for pair in range(len(pairs))]
    values = ids.new_empty(sum(totals))
    weights = features.weights_or_none()
    chosen = ids.new_empty(0 if weights is None else len(values), dtype=torch.int64)
    numbers = iter(counts)
    for piece in pieces:
        ranks = piece.ranks(ids, at)
        masks = zip(piece.pairs, piece.blocks, piece.inside(ranks), strict=True)
        for pair, (first, _, stride, modulus), inside in masks:
            place = _true_places(inside, next(numbers))
            here = slice(nexts[pair], nexts[pair] + len(place))
            nexts[pair] = here.stop
            rows = ranks.index_select(0, place).sub_(first)
            values[here] = rows if stride == 1 else rows.mul_(stride).remainder_(modulus)
            if weights is not None:
                chosen[here] = place + piece.start
    weights = None if weights is None else weights.index_select(0, chosen)
    return values, routed.view(-1), totals, weights, bad


@dataclass(frozen=True)
class _Piece:
    """Ids [start, start + count) of a batch, which are one slot's.

    pairs: the slot's. blocks: of each (first, end, stride, rows).
    """

    slot: int
    start: int
    count: int
    pairs: list[int]
    blocks: list[list[int]]

    def wrong(self, ids: Tensor, at: Mapping[str, Tensor]) -> Tensor:
        """(1,): how many ids are out of range."""
        own = ids[self.start : self.start + self.count]
        return ((own < 0) | (own >= at["rows"][self.slot])).sum().view(1)

    def ranks(self, ids: Tensor, at: Mapping[str, Tensor]) -> Tensor:
        """int64 (count,)."""
        slot = torch.full((1,), self.slot, device=ids.device)
        own = ids[self.start : self.start + self.count]
        return _ranks(own, slot, at["rows"].index_select(0, slot), at)

    def inside(self, ranks: Tensor) -> Iterator[Tensor]:
        """Which ids are in each of the blocks."""
        for first, end, *_ in self.blocks:
            yield (ranks >= first).logical_and_(ranks < end)


def on_host(counts: Tensor) -> list[int]:
    """The only place where routing waits for the device."""
    found: list[int] = counts.tolist()
    return found


def check_total(features: KeyedJaggedTensor) -> None:
    """On the CPU, where kernels of torch and FBGEMM read and write on; those for a device assert.

    Raises:
        InvalidInputError: lengths contradict the ids.
    """
    lengths = features.lengths()
    if lengths.device.type == "cpu":
        _check_total(int(lengths.sum()), features.values().numel())
        if bool((lengths < 0).any()):
            raise InvalidInputError(
                f"lengths should be numbers from 0 on, got {int(lengths.min())}: make the "
                "KeyedJaggedTensor anew"
            )


def permuted(
    features: KeyedJaggedTensor, keys: list[int], on_device: Tensor | None = None
) -> KeyedJaggedTensor:
    """``features.permute``, whose backward (FBGEMM 1.8) writes out of bounds if keys are some only.

    So weights with gradients are gathered here. on_device: the keys as an int32 tensor, which torch
    would wait for.
    """
    weights = features.weights_or_none()
    if weights is None or not weights.requires_grad:
        return features.permute(keys, on_device)
    places = KeyedJaggedTensor(
        keys=features.keys(),
        values=torch.arange(len(weights), device=weights.device),
        lengths=features.lengths(),
        stride=features.stride(),
        length_per_key=features.length_per_key(),
    ).permute(keys, on_device)
    return KeyedJaggedTensor(
        keys=places.keys(),
        values=features.values()[places.values()],
        weights=weights[places.values()],
        lengths=places.lengths(),
        stride=places.stride(),
        length_per_key=places.length_per_key(),
    )


def _ranks(ids: Tensor, slot_of: Tensor, rows: Tensor, at: Mapping[str, Tensor]) -> Tensor:
    """int64 (V,). An id out of range is reported later; here it must only not crash."""
    if "map" not in at:
        return ids.long()
    place = ids.clamp_min(0).minimum(rows - 1) + at["starts"].index_select(0, slot_of)
    if "mapped" not in at:  # all are
        return at["map"].index_select(0, place).long()
    mapped = at["mapped"].index_select(0, slot_of)
    ranks = at["map"].index_select(0, place.where(mapped, 0))
    return torch.where(mapped, ranks, ids.long())


def _bag_lengths(inside: Tensor, features: KeyedJaggedTensor) -> Tensor:
    """int32 (K, S * B): how many of a bag's ids are in each block."""
    lengths = features.lengths()
    if lengths.device.type == "cpu" and _all_one(lengths, inside.shape[1]):
        return inside.int()
    # Not those that came along: they may contradict the lengths.
    offsets = F.pad(lengths.cumsum(0, dtype=torch.int64), (1, 0)).clamp_(0, inside.shape[1])
    found = torch.empty(len(inside), lengths.numel(), dtype=torch.int32, device=inside.device)
    for own, out in zip(inside.unbind(), found.unbind(), strict=True):
        until = F.pad(own.cumsum(0, dtype=torch.int32), (1, 0)).index_select(0, offsets)
        torch.diff(until, out=out)
    return found


def _check_total(said: int, ids: int) -> None:
    if said != ids:
        raise InvalidInputError(
            f"lengths or offsets should say as many ids as there are, {ids}, got {said}: make the "
            "KeyedJaggedTensor anew"
        )


def _all_one(lengths: Tensor, values: int) -> bool:
    return lengths.numel() == values and values > 0 and bool((lengths == 1).all())


def _true_places(mask: Tensor, count: int) -> Tensor:
    """int64 (count,): where ``mask`` is true."""
    if mask.device.type == "cpu":
        return mask.nonzero().squeeze(1)
    return torch.nonzero_static(mask, size=count).squeeze(1)  # does not wait for the device
