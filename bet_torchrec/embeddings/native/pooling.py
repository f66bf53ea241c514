"""A whole pooled lookup of trained weights as one operator, with its gradient.

What torch.compile and torch.export see of a collection: its shapes follow from the batch's, so that
no graph breaks where routing counts ids. On the CPU by our kernel; elsewhere, without a compiler
and for other types than fp32 by torch's own, block by block.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from ...errors import IdRangeError, InvalidInputError
from .build import available
from .calls import Bags, IdFault, Tables, addresses, integer, integers, pointer, run, threads
from .operators import BATCH, LIBRARY, TABLES, operator


def _type(weights: Sequence[Tensor]) -> torch.dtype:
    return reduce(torch.promote_types, [weight.dtype for weight in weights])


def _pooled(weights: list[Tensor], features: list[int], width: int, *batch: Any) -> Tensor:
    return weights[0].new_empty(batch[1], width, dtype=_type(weights))


@operator(
    f"pool(Tensor[] weights, int[] features, int width, {BATCH}, {TABLES}) -> Tensor",
    _pooled,
    "CompositeExplicitAutograd",
)
def pool(weights: list[Tensor], features: list[int], width: int, *batch: Any) -> Tensor:
    """Pooled rows (B, width). weights: one a block, (rows, its width or more); at least one.

    features: each slot's feature in the batch.

    Raises:
        IdRangeError: an id is out of range. InvalidInputError: the batch contradicts itself.
    """
    count, bags, ids, *rest = batch[:6]
    if by_kernel(weights, ids):
        out = torch.empty(bags, width)
        try:
            run(
                "bet_lookup",
                Bags(count, bags, ids, *rest),
                ctypes.byref(Tables(addresses(weights), None, *batch[6:])),
                integers(features),
                pointer(out),
                integer(width),
                None,
                threads(),
            )
        except IdFault as fault:
            slot, wrong = fault.args
            slots, tables = batch[6:8]
            raise _out_of_range(slot, wrong, int(tables[int(slots[slot, 0]), 0])) from None
        return out
    pooled = weights[0].new_zeros(bags, width, dtype=_type(weights))
    for found in _lookups(features, *batch):
        rows = weights[found.block][found.rows, : found.width].to(pooled.dtype)
        columns = pooled.narrow(1, found.column, found.width)
        columns.index_add_(0, found.bags, rows * found.scales[:, None].to(pooled.dtype))
    return pooled


def _gradients(
    gradient: Tensor, weights: list[Tensor], features: list[int], *batch: Any
) -> tuple[list[Tensor], Tensor]:
    bag_weights = batch[5]
    of_bags = gradient.new_empty(0) if bag_weights is None else torch.empty_like(bag_weights)
    return [torch.empty_like(weight) for weight in weights], of_bags


@operator(
    f"pool_backward(Tensor gradient, Tensor[] weights, int[] features, {BATCH}, {TABLES}) "
    "-> (Tensor[], Tensor)",
    _gradients,
    "CompositeExplicitAutograd",
)
def pool_backward(
    gradient: Tensor, weights: list[Tensor], features: list[int], *batch: Any
) -> tuple[list[Tensor], Tensor]:
    """Gradients of ``pool``: of the weights, dense, and of the bag weights (empty without any)."""
    bag_weights = batch[5]
    of_weights = [torch.zeros_like(weight) for weight in weights]
    of_bags = gradient.new_zeros(0) if bag_weights is None else torch.zeros_like(bag_weights)
    for found in _lookups(features, *batch):
        own = gradient.narrow(1, found.column, found.width).index_select(0, found.bags)
        if bag_weights is not None:
            rows = weights[found.block][found.rows, : found.width]
            # index_add_: two slots may look one feature up.
            of_bags.index_add_(0, found.ids, ((own * rows).sum(1) * found.means).to(of_bags.dtype))
        columns = of_weights[found.block].narrow(1, 0, found.width)
        columns.index_add_(0, found.rows, (own * found.scales[:, None]).to(columns.dtype))
    return of_weights, of_bags


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    weights, ctx.features, _, ctx.count, ctx.bags, *tensors = inputs
    ctx.given = [tensor is not None for tensor in tensors]
    ctx.save_for_backward(*weights, *(t for t in tensors if t is not None))


def _backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
    saved = list(ctx.saved_tensors)
    number = len(saved) - sum(ctx.given)
    weights, rest = saved[:number], iter(saved[number:])
    tensors = [next(rest) if given else None for given in ctx.given]
    of_weights, of_bags = torch.ops.bet_torchrec.pool_backward(
        gradient.contiguous(), weights, ctx.features, ctx.count, ctx.bags, *tensors
    )
    weighted = tensors[3] is not None
    # weights, features, width, count, bags, ids, lengths, offsets, bag weights, the four of tables
    return of_weights, *[None] * 7, of_bags if weighted else None, *[None] * 4


torch.library.register_autograd("bet_torchrec::pool", _backward, setup_context=_setup, lib=LIBRARY)


@dataclass(frozen=True)
class _Lookups:
    """Some ids' rows of one block, and where they go. means: of MEAN bags, 1 / length; else 1.

    scales: with the bag weights. All tensors are (ids,).
    """

    block: int
    column: int
    width: int
    ids: Tensor
    bags: Tensor
    rows: Tensor
    means: Tensor
    scales: Tensor


def _lookups(
    features: Sequence[int],
    count: int,
    bags: int,
    ids: Tensor,
    lengths: Tensor | None,
    offsets: Tensor | None,
    bag_weights: Tensor | None,
    slots: Tensor,
    tables: Tensor,
    blocks: Tensor,
    map: Tensor | None,
) -> Iterator[_Lookups]:
    starts = _starts(count * bags, len(ids), lengths, offsets)
    for slot, (feature, own) in enumerate(zip(features, slots.tolist(), strict=True)):
        table, column, _, mean = own
        rows, first_of_map, first, end, _ = tables[table].tolist()
        bounds = starts[feature * bags : (feature + 1) * bags + 1].to(ids.device)
        begin, stop = int(bounds[0]), int(bounds[-1])
        ranks = ids[begin:stop].long()
        wrong = ranks[(ranks < 0) | (ranks >= rows)]
        if len(wrong):
            raise _out_of_range(slot, int(wrong[0]), rows)
        if first_of_map >= 0 and map is not None:
            ranks = map.to(ids.device)[first_of_map : first_of_map + rows][ranks].long()
        each = bounds.diff()
        bag = torch.arange(bags, device=ids.device).repeat_interleave(each)
        means = torch.ones(len(ranks), device=ids.device)
        if mean:
            means /= each[bag]
        scales = means if bag_weights is None else means * bag_weights.detach()[begin:stop]
        for block in range(first, end):
            low, high, stride, modulus, at, width, *_ = blocks[block].tolist()
            held = ((ranks >= low) & (ranks < high)).nonzero().squeeze(1)
            yield _Lookups(
                block,
                column + at,
                width,
                held + begin,
                bag[held],
                (ranks[held] - low) * stride % modulus,
                means[held],
                scales[held],
            )


def _starts(bags: int, ids: int, lengths: Tensor | None, offsets: Tensor | None) -> Tensor:
    """int64 (bags + 1,), on the CPU."""
    if offsets is None:
        assert lengths is not None
        offsets = torch.nn.functional.pad(lengths.long().cumsum(0), (1, 0))
    starts = offsets.cpu().long()
    ends = [int(starts[0]), int(starts[-1])] if len(starts) == bags + 1 else []
    if ends != [0, ids] or bool((starts.diff() < 0).any()):
        raise InvalidInputError(
            f"lengths or offsets should say as many ids as there are, {ids}, in {bags} bags: make "
            "the KeyedJaggedTensor anew"
        )
    return starts


def by_kernel(weights: Sequence[Tensor], ids: Tensor) -> bool:
    """Whether our own kernel pools them: fp32 on the CPU, where there is a compiler."""
    return (
        all(t.device.type == "cpu" for t in (ids, *weights))
        and all(w.dtype == torch.float32 and w.is_contiguous() for w in weights)
        and available()
    )


def _out_of_range(slot: int, wrong: int, rows: int) -> IdRangeError:
    return IdRangeError(
        f"lookup {slot}: ids should be 0 to {rows - 1}, got {wrong}: map unknown ids to a row of "
        "their own, or leave them out of the bag"
    )
