"""Rows: TorchRec's way to inference, and ours."""

from __future__ import annotations

import io
from typing import Any

import torch
from conformance_kinds import Kind, Model, assert_same_output, batch
from conformance_table import TABLE
from torchrec.distributed.global_settings import get_propogate_device, set_propogate_device
from torchrec.fx import symbolic_trace
from torchrec.inference.modules import quantize_inference_model, shard_quant_model

from bet_torchrec.embeddings import quantize

GROUP = "Inference"


def _close(kind: Kind, ours: Any, theirs: Any) -> None:
    """To what int8 keeps of rows between -3 and 3."""
    found, expected = (kind.rows_of(made(batch())) for made in (ours, theirs))
    assert set(found) == set(expected)
    for name, rows in expected.items():
        torch.testing.assert_close(found[name].float(), rows.float(), atol=0.1, rtol=0.02)


def _sharded(model: Any) -> Any:
    before = get_propogate_device()
    set_propogate_device(True)  # else TorchRec takes the shards to be on CUDA
    try:
        return shard_quant_model(model, world_size=2, compute_device="cpu", sharding_device="cpu")[
            0
        ]
    finally:
        set_propogate_device(before)


@TABLE.row(GROUP, "our `quantize` of a model, int8")
def own_int8(kind: Kind) -> None:
    ours, theirs = (Model(one).eval() for one in kind.both())
    _close(kind, quantize(ours, precision="int8"), theirs)


@TABLE.row(GROUP, "`quantize_inference_model` (the rows are int8)")
def int8(kind: Kind) -> None:
    ours, theirs = (quantize_inference_model(Model(one).eval()) for one in kind.both())
    _close(kind, ours, theirs)


@TABLE.row(GROUP, "`quantize_inference_model`, traced and scripted, saved and loaded")
def int8_scripted(kind: Kind) -> None:
    for one in reversed(kind.both()):
        own = quantize_inference_model(Model(one).eval())
        file = io.BytesIO()
        torch.jit.save(torch.jit.script(symbolic_trace(own)), file)
        file.seek(0)
        _close(kind, torch.jit.load(file), own)


@TABLE.row(GROUP, "our quantised model, traced and scripted, saved and loaded")
def own_scripted(kind: Kind) -> None:
    own = quantize(Model(kind.ours()), precision="int8")
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(symbolic_trace(own)), file)
    file.seek(0)
    _close(kind, torch.jit.load(file), own)


@TABLE.row(GROUP, "`shard_quant_model` of `quantize_inference_model`'s, on two CPU shards")
def sharded_int8(kind: Kind) -> None:
    for one in reversed(kind.both()):
        own = quantize_inference_model(Model(one).eval())
        before = kind.rows_of(own(batch()))
        for name, rows in kind.rows_of(_sharded(own)(batch())).items():
            torch.testing.assert_close(rows, before[name], atol=1e-3, rtol=1e-3)


@TABLE.row(GROUP, "`shard_quant_model` of our quantised model, on two CPU shards")
def sharded_own(kind: Kind) -> None:
    own = quantize(Model(kind.ours()), precision="int8", alignment=16)
    before = kind.rows_of(own(batch()))
    for name, rows in kind.rows_of(_sharded(own)(batch())).items():
        torch.testing.assert_close(rows, before[name], atol=1e-3, rtol=1e-3)


@TABLE.row(GROUP, "saved and loaded without pickle")
def saved(kind: Kind) -> None:
    import tempfile

    own = quantize(kind.ours(), precision="int4")
    with tempfile.TemporaryDirectory() as folder:
        again = type(own).load(own.save(f"{folder}/tables"))
    assert_same_output(kind, again, own)
