"""Torch's own writers over our collections' state: asynchronous, and to a remote file system."""

from __future__ import annotations

import pytest
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from checkpoint_cases import difference, everything, plain_model, run_ranks, sharded_model, train
from torch.distributed.checkpoint._fsspec_filesystem import FsspecReader, FsspecWriter


def write(how, state, folder):
    """A state_dict by one of torch's ways, and the reader of what it wrote."""
    if how == "async":
        # Its own stager: torch's newer one deep-copies ShardedTensors, which these cannot be.
        dcp.async_save(state, storage_writer=dcp.FileSystemWriter(folder)).result()
        return dcp.FileSystemReader(folder)
    url = f"file://{folder}"
    dcp.save(state, storage_writer=FsspecWriter(url))
    return FsspecReader(url)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("how", ["async", "fsspec"])
def test_one_process(tmp_path, how) -> None:
    model, optimizers = plain_model("sgd", "bucketed")
    train(model, optimizers, range(2))
    saved = everything(model)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        reader = write(how, model.state_dict(), tmp_path)
        train(model, optimizers, range(2, 3))
        assert difference(everything(model), saved) > 0
        state = model.state_dict()
        dcp.load(state, storage_reader=reader)
        model.load_state_dict(state)
    finally:
        dist.destroy_process_group()
    assert difference(everything(model), saved) == 0


def two_ranks(rank, world, keep, folder):
    found = {}
    for how in ("async", "fsspec"):
        model, optimizers = sharded_model("row_wise", "sgd", "prefix", world)
        train(model, optimizers, range(2), rank, world)
        saved = everything(model)
        reader = write(how, model.state_dict(), f"{folder}/{how}")
        train(model, optimizers, range(2, 3), rank, world)
        moved = difference(everything(model), saved)
        state = model.state_dict()
        dcp.load(state, storage_reader=reader)
        model.load_state_dict(state)
        found[how] = moved, difference(everything(model), saved)
    return found


@pytest.mark.distributed
def test_sharded(tmp_path) -> None:
    for found in run_ranks(2, two_ranks, str(tmp_path)):
        assert set(found) == {"async", "fsspec"}
        for moved, left in found.values():
            assert moved > 0
            assert left == 0
