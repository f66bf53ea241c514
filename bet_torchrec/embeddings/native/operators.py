"""The kernels as operators of torch, ``torch.ops.bet_torchrec``, with fake kernels for tracing.

A batch is always (count, bags, ids, lengths, offsets, bag_weights): F features of B bags each; ids
int32 or int64 (V,); lengths (F * B,) and offsets (F * B + 1,), one of which may be None; weights
(V,) or None. Tables are always (slots, tables, blocks, map), see tables.py. All is on the CPU.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .calls import Bags, Tables, addresses, integer, integers, pointer, run, threads

LIBRARY = torch.library.Library("bet_torchrec", "DEF")
BATCH = "int count, SymInt bags, Tensor ids, Tensor? lengths, Tensor? offsets, Tensor? bag_weights"
TABLES = "Tensor slots, Tensor tables, Tensor blocks, Tensor? map"
_Kernel = Callable[..., Any]


def operator(schema: str, fake: _Kernel, backend: str = "CPU") -> Callable[[_Kernel], _Kernel]:
    """Register a kernel under its schema, and what it returns while tracing."""

    def register(kernel: _Kernel) -> _Kernel:
        name = schema.split("(")[0]
        LIBRARY.define(schema)
        LIBRARY.impl(name, kernel, backend)
        torch.library.register_fake(f"bet_torchrec::{name}", fake, lib=LIBRARY)
        return kernel

    return register


def _pooled(rows: Tensor, starts: Tensor, features: list[int], width: int, *batch: Any) -> Tensor:
    return rows.new_empty(batch[1], width, dtype=torch.float32)


@operator(
    f"serve(Tensor rows, Tensor starts, int[] features, int width, {BATCH}, {TABLES}) -> Tensor",
    _pooled,
)
def serve(
    rows: Tensor,
    starts: Tensor,
    features: list[int],
    width: int,
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
) -> Tensor:
    """Pooled rows (B, width), fp32, from packed rows of any widths and formats.

    rows: uint8, all blocks' memory; block k begins at starts[k]. features: each slot's feature in
    the batch.
    """
    out = torch.empty(bags, width)
    run(
        "bet_lookup",
        Bags(count, bags, ids, lengths, offsets, bag_weights),
        ctypes.byref(Tables(starts, rows, slots, tables, blocks, map)),
        integers(features),
        pointer(out),
        integer(width),
        None,
        threads(),
    )
    return out


def _looked_up(weights: list[Tensor], width: int, *batch: Any) -> tuple[Tensor, Tensor]:
    _, bags, ids = batch[:3]
    return ids.new_empty(bags, width, dtype=torch.float32), torch.empty_like(ids, dtype=torch.int64)


@operator(f"lookup(Tensor[] weights, int width, {BATCH}, {TABLES}) -> (Tensor, Tensor)", _looked_up)
def lookup(
    weights: list[Tensor],
    width: int,
    count: int,
    bags: int,
    ids: Tensor,
    lengths: Tensor | None,
    offsets: Tensor | None,
    bag_weights: Tensor | None,
    *tables: Tensor,
) -> tuple[Tensor, Tensor]:
    """Pooled rows (B, width) of trained weights, one fp32 tensor a block, and ids' places (V,).

    Slots' features are the batch's, in order.
    """
    out, places = torch.empty(bags, width), torch.empty(ids.shape, dtype=torch.int64)
    run(
        "bet_lookup",
        Bags(count, bags, ids, lengths, offsets, bag_weights),
        ctypes.byref(Tables(addresses(weights), None, *tables)),
        integers(range(count)),
        pointer(out),
        integer(width),
        pointer(places),
        threads(),
    )
    return out, places


@operator(
    "update_(Tensor(a!)[] weights, Tensor(b!)[] states, Tensor gradient, Tensor places, "
    f"int optimizer, float lr, float eps, {BATCH}, {TABLES}) -> ()",
    lambda *_: None,
)
def update_(
    weights: list[Tensor],
    states: list[Tensor],
    gradient: Tensor,
    places: Tensor,
    optimizer: int,
    lr: float,
    eps: float,
    count: int,
    bags: int,
    ids: Tensor,
    lengths: Tensor | None,
    offsets: Tensor | None,
    bag_weights: Tensor | None,
    *tables: Tensor,
) -> None:
    """Update the rows that ``lookup`` found at ``places``, and the optimizer's states of them.

    gradient: of its output, contiguous. optimizer: 0 SGD, 1 row-wise Adagrad (states (rows,)), 2
    Adagrad (states as weights).
    """
    run(
        "bet_update",
        Bags(count, bags, ids, lengths, offsets, bag_weights),
        ctypes.byref(Tables(addresses(weights), None, *tables)),
        addresses(states),
        pointer(places),
        pointer(gradient),
        integer(gradient.shape[1]),
        integer(optimizer),
        ctypes.c_float(lr),
        ctypes.c_float(eps),
        threads(),
    )


def _routed(
    features: list[int], firsts: list[int], pairs: int, places: bool, *batch: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    _, bags, ids = batch[:3]
    count = torch.library.get_ctx().new_dynamic_size()
    return (
        ids.new_empty(count),
        ids.new_empty(pairs * bags, dtype=torch.int32),
        ids.new_empty(pairs, dtype=torch.int64),
        ids.new_empty(count if places else 0, dtype=torch.int64),
    )


@operator(
    "route(int[] features, int[] firsts, int pairs, bool places, "
    f"{BATCH}, {TABLES}) -> (Tensor, Tensor, Tensor, Tensor)",
    _routed,
)
def route(
    features: list[int],
    firsts: list[int],
    pairs: int,
    places: bool,
    count: int,
    bags: int,
    ids: Tensor,
    lengths: Tensor | None,
    offsets: Tensor | None,
    bag_weights: Tensor | None,
    *tables: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Ids as rows of blocks: values, of the ids' type; int32 lengths (pairs * B,); int64 totals
    (pairs,); and if ``places`` is true, which id each value is of.

    A slot has one pair a block of its table, slot s's from firsts[s] on; features: its feature in
    the batch.
    """
    batch = Bags(count, bags, ids, lengths, offsets, bag_weights)
    described = ctypes.byref(Tables(integers([]), None, *tables))
    own = integers(features), integers(firsts)
    routed = torch.empty(pairs * bags, dtype=torch.int32)
    totals = torch.empty(pairs, dtype=torch.int64)
    run("bet_route_count", batch, described, *own, pointer(routed), pointer(totals), threads())
    ends = totals.cumsum(0)
    values = torch.empty(int(ends[-1]) if pairs else 0, dtype=ids.dtype)
    chosen = torch.empty(len(values) if places else 0, dtype=torch.int64)
    run(
        "bet_route_write",
        batch,
        described,
        *own,
        pointer(ends),
        integer(pairs),
        pointer(values),
        pointer(chosen) if places else None,
        threads(),
    )
    return values, routed, totals, chosen
