"""Rows: under DistributedModelParallel. What needs several ranks is in tests/embeddings; here is
one, of real gloo.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from conformance_kinds import (
    KINDS,
    Kind,
    Model,
    assert_alike,
    assert_same_output,
    batch,
    fill,
    fused,
    group,
    kept_rows,
    sharded,
    sharder,
    trained,
)
from conformance_table import TABLE, missing, refused
from gloo_ranks import on_ranks
from torch import nn
from torchrec import KeyedJaggedTensor
from torchrec.distributed.types import EmbeddingModuleShardingPlan
from torchrec.streamable import Pipelineable

GROUP = "Sharded"
PIPELINES = "Pipelines"
FILES = "Checkpoints of a sharded model"


def both(kind: Kind, **options: Any) -> tuple[Any, Any]:
    """Ours and TorchRec's, sharded, of the same rows."""
    ours, theirs = kind.ours(device="meta"), kind.plain(tables=kind.tables())
    return sharded(kind, ours, **options), sharded(kind, theirs, **options)


@TABLE.row(GROUP, "`DistributedModelParallel`, table-wise and data-parallel")
def parallel(kind: Kind) -> None:
    with group():
        assert_same_output(kind, *both(kind))
        dense = [
            sharded(kind, made, how="data_parallel", sharders=[sharder(kind, own, None)])
            for made, own in zip(kind.both(), (True, False), strict=True)
        ]
        one = batch(3)
        ours = kind.rows_of(dense[0](one))
        if kind.pooled:
            assert_alike(ours, kind.rows_of(dense[1](one)))
        else:  # TorchRec's own pools there, in silence: see embeddings/sequence/dense.py
            assert_alike(ours, kind.rows_of(kind.theirs()(one)))


FORGOTTEN = "give DistributedModelParallel and the planner sharders="


@TABLE.row(
    GROUP, "our sharder is forgotten", pooled=refused(FORGOTTEN), unpooled=refused(FORGOTTEN)
)
def forgotten(kind: Kind) -> None:
    from torchrec.distributed import DistributedModelParallel

    with group():
        DistributedModelParallel(Model(kind.ours()), device=torch.device("cpu"))


NO_OPTIMIZER = "trains with SGD at 0.01 in silence"


@TABLE.row(
    GROUP,
    "fused tables without an optimizer",
    pooled=refused(NO_OPTIMIZER),
    unpooled=refused(NO_OPTIMIZER),
)
def without_optimizer(kind: Kind) -> None:
    with group():
        sharded(kind, kind.ours(), sharders=[sharder(kind, True, None)])


@TABLE.row(GROUP, "`apply_optimizer_in_backward`, fused")
def in_backward(kind: Kind) -> None:
    from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward

    with group():
        made, theirs = kind.both()
        apply_optimizer_in_backward(torch.optim.SGD, made.parameters(), {"lr": 0.1})
        model = sharded(kind, made, sharders=[sharder(kind, True, None)])
        trained(kind, theirs, torch.optim.SGD(theirs.parameters(), lr=0.1))
        assert_alike(kept_rows(kind, trained(kind, model, None)), kind.table(theirs))


@TABLE.row(
    GROUP,
    "dynamic resharding (`DistributedModelParallel.reshard`)",
    unpooled=missing("TorchRec reshards pooled collections only"),
)
def resharded(kind: Kind) -> None:
    for before, after, moved in on_ranks(_resharded, 2, kind.name):
        assert moved
        assert_alike(after, before)


def _resharded(pg: dist.ProcessGroup, name: str) -> Any:
    """Every block goes to the other rank."""
    kind = next(one for one in KINDS if one.name == name)
    found = []
    for own in (True, False):
        model = sharded(kind, kind.ours() if own else kind.theirs(), world=2)
        before = kept_rows(kind, model) if own else None
        plan = EmbeddingModuleShardingPlan()
        for table, how in dict(model.plan.plan["tables"]).items():
            other = 1 - how.ranks[0]
            shards = [
                replace(shard, placement=f"rank:{other}/cpu") for shard in how.sharding_spec.shards
            ]
            spec = replace(how.sharding_spec, shards=shards)
            plan[table] = replace(how, ranks=[other], sharding_spec=spec)
        model.reshard({"tables": (0.0, plan)}, "tables")
        if own:
            found = [before, kept_rows(kind, model), len(plan) > 0]
    return found


@TABLE.row(GROUP, "planner statistics (`EmbeddingStats`)")
def statistics(kind: Kind) -> None:
    from torchrec.distributed.planner import EmbeddingShardingPlanner, Topology
    from torchrec.distributed.planner.stats import EmbeddingStats

    with group():
        for made, own in zip(kind.both(), (True, False), strict=True):
            stats = EmbeddingStats()
            planner = EmbeddingShardingPlanner(
                topology=Topology(world_size=1, compute_device="cpu"), stats=[stats]
            )
            planner.collective_plan(Model(made), [sharder(kind, own, fused())], dist.group.WORLD)
            text = str(getattr(stats, "_stats_table", None) or planner.last_storage_context)
            assert text


NOT_COPIED = missing("TorchRec's own fails too: a process group cannot be copied")
TABLE.row(GROUP, "`copy.deepcopy` of a sharded model", pooled=NOT_COPIED, unpooled=NOT_COPIED)(
    lambda kind: None
)


@TABLE.row(
    GROUP,
    "batches that contradict themselves",
    pooled=refused("a batch contradicts itself"),
    unpooled=refused("a batch contradicts itself"),
)
def contradictory(kind: Kind) -> None:
    one = KeyedJaggedTensor(
        keys=["f1", "f2", "f3"],
        values=torch.zeros(4, dtype=torch.int64),
        lengths=torch.tensor([1, 1, 1, 1, 1, 1]),
    )
    with group():
        ours, theirs = both(kind)
        if kind.pooled:  # TorchRec's unpooled does not look
            with pytest.raises(ValueError, match="lengths"):
                theirs(one)
        ours(one)


@TABLE.row(GROUP, "half-precision communication (`qcomm_codecs_registry`)")
def codecs(kind: Kind) -> None:
    from torchrec.distributed.fbgemm_qcomm_codec import (
        CommType,
        QCommsConfig,
        get_qcomm_codecs_registry,
    )

    registry = get_qcomm_codecs_registry(
        QCommsConfig(forward_precision=CommType.FP16, backward_precision=CommType.FP16)
    )
    with group():
        for made, own in zip(kind.both(), (True, False), strict=True):
            kind_of = type(sharder(kind, own, fused()))
            model = sharded(kind, made, sharders=[kind_of(fused(), qcomm_codecs_registry=registry)])
            expected = kind.rows_of(made(batch()))
            for name, rows in kind.rows_of(model(batch())).items():
                torch.testing.assert_close(rows, expected[name], atol=0.01, rtol=0.01)


@TABLE.row(FILES, "`torch.distributed.checkpoint.save` and `load`")
def dcp(kind: Kind) -> None:
    import torch.distributed.checkpoint as dcp

    with group(), tempfile.TemporaryDirectory() as folder:
        for name, model in zip(("ours", "theirs"), both(kind), strict=True):
            expected = kept_rows(kind, trained(kind, model, None))
            dcp.save(model.state_dict(), checkpoint_id=f"{folder}/{name}")
            fill(kind, model)
            state = model.state_dict()
            dcp.load(state, checkpoint_id=f"{folder}/{name}")
            model.load_state_dict(state)
            assert_alike(kept_rows(kind, model), expected)


NOT_STAGED = missing("TorchRec's own fails too: torch 2.13 stages no ShardedTensor on CPU")
TABLE.row(
    FILES, "`torch.distributed.checkpoint.async_save`", pooled=NOT_STAGED, unpooled=NOT_STAGED
)(lambda kind: None)


@TABLE.row(FILES, "`torch.distributed.checkpoint` on an fsspec path")
def fsspec(kind: Kind) -> None:
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint._fsspec_filesystem import FsspecReader, FsspecWriter

    with group(), tempfile.TemporaryDirectory() as folder:
        for name, model in zip(("ours", "theirs"), both(kind), strict=True):
            expected = kept_rows(kind, trained(kind, model, None))
            path = f"file://{folder}/{name}"
            dcp.save(model.state_dict(), storage_writer=FsspecWriter(path))
            fill(kind, model)
            state = model.state_dict()
            dcp.load(state, storage_reader=FsspecReader(path))
            model.load_state_dict(state)
            assert_alike(kept_rows(kind, model), expected)


@TABLE.row(FILES, "our `save_checkpoint` with optimizer state")
def own_checkpoint(kind: Kind) -> None:
    from bet_torchrec.embeddings import load_checkpoint, save_checkpoint

    with group(), tempfile.TemporaryDirectory() as folder:
        first, second = (sharded(kind, kind.ours(device="meta")) for _ in range(2))
        trained(kind, first, None)
        save_checkpoint(first, folder)
        load_checkpoint(second, folder)
        assert_alike(kept_rows(kind, second), kept_rows(kind, first))


REMOTE = refused("path should be a folder, local or mounted, that all ranks share")


@TABLE.row(FILES, "our `save_checkpoint` to a remote path", pooled=REMOTE, unpooled=REMOTE)
def own_remote(kind: Kind) -> None:
    from bet_torchrec.embeddings import save_checkpoint

    with group():
        save_checkpoint(sharded(kind, kind.ours(device="meta")), "memory://somewhere/run")


@dataclass
class Batch(Pipelineable):
    """As pipelines take them."""

    features: KeyedJaggedTensor

    def to(self, device: torch.device, non_blocking: bool = False) -> Batch:
        return self

    def record_stream(self, stream: torch.Stream) -> None: ...

    def pin_memory(self) -> Batch:
        return self


class Losses(nn.Module):
    """A model as pipelines run it."""

    def __init__(self, kind: Kind, tables: Any) -> None:
        super().__init__()
        self.kind, self.tables = kind, tables

    def forward(self, one: Batch) -> Any:
        found = self.tables(one.features)
        rows = [
            found[key] if self.kind.pooled else found[key].values() for key in ("f1", "f2", "f3")
        ]
        loss = (torch.cat(rows) - 0.3).square().sum() / 6
        return loss, loss.detach()


def _piped(kind: Kind, name: str, steps: int = 4) -> None:
    from torchrec.distributed import DistributedModelParallel
    from torchrec.distributed.train_pipeline import train_pipelines

    batches = [Batch(batch(seed)) for seed in range(steps)]
    plain = Losses(kind, kind.theirs())
    expected = []
    for one in batches:
        loss, detached = plain(one)
        expected.append(detached)
        if not name.startswith("Eval"):
            loss.backward()
            torch.optim.SGD(plain.parameters(), lr=0.1).step()
            plain.zero_grad()
    pipelined = []
    for own in (False, True):
        with group():
            made = kind.ours() if own else kind.theirs()
            model: Any = DistributedModelParallel(
                Losses(kind, made),
                device=torch.device("cpu"),
                sharders=[sharder(kind, own, fused())],
                init_parameters=False,
            )
            fill(kind, model)
            idle = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
            pipeline = getattr(train_pipelines, name)(model, idle, torch.device("cpu"))
            some = iter(batches)
            losses = [pipeline.progress(some) for _ in range(steps)]
            pipelined.append(len(getattr(pipeline, "_pipelined_modules", [])))
            if own:
                torch.testing.assert_close(torch.stack(losses), torch.stack(expected))
                assert_alike(kept_rows(kind, model), kind.table(plain.tables))
    assert pipelined[0] == pipelined[1]


NO_STREAMS = missing("TorchRec's own fails too without CUDA streams")

for name in (
    "TrainPipelineFusedSparseDist",
    "TrainPipelineSemiSync",
    "PrefetchTrainPipelineSparseDist",
):
    TABLE.row(PIPELINES, f"`{name}`", pooled=NO_STREAMS, unpooled=NO_STREAMS)(lambda kind: None)

for name in (
    "TrainPipelineBase",
    "TrainPipelineSparseDist",
    "TrainPipelineSparseDistLite",
    "EvalPipelineSparseDist",
):
    TABLE.row(PIPELINES, f"`{name}`")(lambda kind, name=name: _piped(kind, name))
