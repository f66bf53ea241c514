"""Rows: TorchRec's way to inference, and ours."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from conformance_kinds import Kind, Model, assert_alike, assert_same_output, batch
from conformance_table import TABLE, refused
from scriptable_model import Scriptable
from torchrec.distributed.global_settings import get_propogate_device, set_propogate_device
from torchrec.fx import symbolic_trace
from torchrec.inference.modules import quantize_inference_model, shard_quant_model

from bet_torchrec.embeddings import quantize

GROUP = "Inference"
NO_SCRIPT = refused("cannot be scripted, because its routing is Python: serve it in Python")


def _close(kind: Kind, ours: Any, theirs: Any) -> None:
    """To what int8 keeps of rows between -3 and 3."""
    found, expected = (kind.rows_of(made(batch())) for made in (ours, theirs))
    assert set(found) == set(expected)
    for name, rows in expected.items():
        torch.testing.assert_close(found[name].float(), rows.float(), atol=0.1, rtol=0.02)


def _quantized(make: Callable[[], Any]) -> Any:
    return quantize_inference_model(Scriptable(make()).eval())


def _own(kind: Kind, **options: Any) -> Any:
    return quantize(Scriptable(kind.ours()), precision="int8", **options)


def _loaded(model: Any) -> Any:
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(symbolic_trace(model)), file)
    file.seek(0)
    return torch.jit.load(file)


@TABLE.row(GROUP, "our `quantize` of a model, int8")
def own_int8(kind: Kind) -> None:
    ours, theirs = (Model(one).eval() for one in kind.both())
    _close(kind, quantize(ours, precision="int8"), theirs)


@TABLE.row(GROUP, "`quantize_inference_model` (the rows are int8)")
def int8(kind: Kind) -> None:
    _close(kind, _quantized(kind.ours), _quantized(kind.theirs))


@TABLE.row(
    GROUP,
    "`quantize_inference_model`, traced and scripted, saved and loaded",
    pooled=NO_SCRIPT,
    unpooled=NO_SCRIPT,
)
def int8_scripted(kind: Kind) -> None:
    for make in (kind.theirs, kind.ours):
        own = _quantized(make)
        _close(kind, _loaded(own), own)


@TABLE.row(
    GROUP,
    "our quantised model, traced and scripted, saved and loaded",
    pooled=NO_SCRIPT,
    unpooled=NO_SCRIPT,
)
def own_scripted(kind: Kind) -> None:
    _close(kind, _loaded(_own(kind)), _own(kind))


def _rows_once_sharded(kind: Kind, make: Callable[[], Any]) -> dict[str, torch.Tensor]:
    """Of a model from ``make``, over two shards that get the weights of another one."""
    before = get_propogate_device()
    set_propogate_device(True)  # else TorchRec takes the shards to be on CUDA
    try:
        made, _ = shard_quant_model(
            make(), world_size=2, compute_device="cpu", sharding_device="cpu"
        )
        weights = make().state_dict()
        for name, value in made.state_dict().items():
            if not name.endswith(".weight"):
                continue
            shards = value.local_shards() if hasattr(value, "local_shards") else [value]
            for shard in shards:
                getattr(shard, "tensor", shard).copy_(weights[name])
        return kind.rows_of(made(batch()))
    finally:
        set_propogate_device(before)


@TABLE.row(GROUP, "`shard_quant_model` of `quantize_inference_model`'s, on two CPU shards")
def sharded_int8(kind: Kind) -> None:
    for one in (kind.theirs, kind.ours):
        make = partial(_quantized, one)
        assert_alike(_rows_once_sharded(kind, make), kind.rows_of(make()(batch())))


@TABLE.row(GROUP, "`shard_quant_model` of our quantised model, on two CPU shards")
def sharded_own(kind: Kind) -> None:
    make = partial(_own, kind, alignment=16)
    assert_alike(_rows_once_sharded(kind, make), kind.rows_of(make()(batch())))


@TABLE.row(GROUP, "saved and loaded without pickle")
def saved(kind: Kind) -> None:
    own = quantize(kind.ours(), precision="int4")
    with tempfile.TemporaryDirectory() as folder:
        again = type(own).load(own.save(f"{folder}/tables"))
    assert_same_output(kind, again, own)
