"""The kernels as operators of torch, ``torch.ops.bet_torchrec``, with fake kernels for tracing.

A batch is always (count, bags, ids, lengths, offsets, weights): F features, B bags each; ids int32
or int64 (V,); lengths (F * B,) and offsets (F * B + 1,), of which one may be None; weights (V,) or None. Tables are always (slots,
tables, blocks, map), see tables.py. Everything is on the CPU.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .calls import Bags, Tables, integer, integers, pointer, run, threads

_LIBRARY = torch.library.Library("bet_torchrec", "DEF")
_BATCH = "int count, int bags, Tensor ids, Tensor? lengths, Tensor? offsets, Tensor? weights"
_TABLES = "Tensor slots, Tensor tables, Tensor blocks, Tensor? map"
_Kernel = Callable[..., Any]


def _operator(schema: str, fake: _Kernel) -> Callable[[_Kernel], _Kernel]:
    def register(kernel: _Kernel) -> _Kernel:
        name = schema.split("(")[0]
        _LIBRARY.define(schema)
        _LIBRARY.impl(name, kernel, "CPU")
        torch.library.register_fake(f"bet_torchrec::{name}", fake, lib=_LIBRARY)
        return kernel

    return register


def _pooled(rows: Tensor, starts: Tensor, features: list[int], width: int, *batch: Any) -> Tensor:
    return rows.new_empty(batch[1], width, dtype=torch.float32)


@_operator(
    f"serve(Tensor rows, Tensor starts, int[] features, int width, {_BATCH}, {_TABLES}) -> Tensor",
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
    weights: Tensor | None,
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
        Bags(count, bags, ids, lengths, offsets, weights),
        ctypes.byref(Tables(slots, tables, blocks, map, rows, starts)),
        integers(features),
        pointer(out),
        integer(width),
        None,
        threads(),
    )
    return out
