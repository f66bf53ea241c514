"""Rows: tracing, scripting, exporting and compiling."""

from __future__ import annotations

import io

import torch
from conformance_kinds import (
    FEATURES,
    LR,
    Kind,
    Model,
    assert_alike,
    assert_same_output,
    batch,
)
from conformance_table import TABLE, refused
from scriptable_model import Scriptable
from torch._dynamo.testing import CompileCounterWithBackend
from torchrec import KeyedJaggedTensor
from torchrec.fx import symbolic_trace

GROUP = "Traced, scripted, exported, compiled"
NO_SCRIPT = refused("cannot be scripted, because its routing is Python: serve it in Python")


@TABLE.row(GROUP, "`torchrec.fx.symbolic_trace`, the collection a leaf")
def traced_leaf(kind: Kind) -> None:
    made = kind.both()
    leaves = [type(one).__name__ for one in made]
    traced = [symbolic_trace(Model(one), leaf_modules=leaves) for one in made]
    assert_same_output(kind, *traced)


@TABLE.row(GROUP, "`torchrec.fx.symbolic_trace`")
def traced(kind: Kind) -> None:
    theirs, ours = (symbolic_trace(Model(one)) for one in reversed(kind.both()))
    assert_same_output(kind, ours, theirs)


@TABLE.row(GROUP, "`torch.jit.script` of the traced model", pooled=NO_SCRIPT, unpooled=NO_SCRIPT)
def scripted(kind: Kind) -> None:
    theirs, ours = (
        torch.jit.script(symbolic_trace(Scriptable(one))) for one in reversed(kind.both())
    )
    assert_same_output(kind, ours, theirs)


class Flat(torch.nn.Module):
    """Tensors in, tensors out, as torch.export takes them."""

    def __init__(self, kind: Kind, tables: torch.nn.Module) -> None:
        super().__init__()
        self.kind, self.tables = kind, tables

    def forward(self, ids: torch.Tensor, lengths: torch.Tensor) -> list[torch.Tensor]:
        features = KeyedJaggedTensor(keys=list(FEATURES), values=ids, lengths=lengths)
        return list(self.kind.rows_of(self.tables(features)).values())


@TABLE.row(GROUP, "`torch.export` (non-strict), saved and loaded", slow=True)
def exported(kind: Kind) -> None:
    one = batch()
    found = []
    for made in kind.both():
        program = torch.export.export(Flat(kind, made), (one.values(), one.lengths()), strict=False)
        file = io.BytesIO()
        torch.export.save(program, file)
        file.seek(0)
        found.append(torch.export.load(file).module()(one.values(), one.lengths()))
    for own, other in zip(*found, strict=True):
        torch.testing.assert_close(own, other)


@TABLE.row(GROUP, "`torch.compile(fullgraph=True)`, forward and backward", slow=True)
def compiled(kind: Kind) -> None:
    one = batch()
    found, tables = [], []
    for made in kind.both():
        torch._dynamo.reset()
        own = torch.compile(Flat(kind, made), fullgraph=True, backend="aot_eager")
        rows = own(one.values(), one.lengths())
        torch.cat([r.flatten() for r in rows]).square().sum().backward()
        torch.optim.SGD(made.parameters(), lr=LR).step()
        found.append(rows)
        tables.append(kind.table(made))
    for own, other in zip(*found, strict=True):
        torch.testing.assert_close(own, other)
    assert_alike(*tables)


@TABLE.row(GROUP, "`torch.compile`, graphs may break: no more of them than TorchRec's", slow=True)
def compiled_in_parts(kind: Kind) -> None:
    made, graphs = [], []
    for one in kind.both():
        torch._dynamo.reset()
        counter = CompileCounterWithBackend("eager")
        made.append(torch.compile(one, backend=counter))
        assert_same_output(kind, made[-1], one)
        graphs.append(counter.frame_count)
    assert_same_output(kind, *made)
    assert graphs[0] <= graphs[1], graphs
