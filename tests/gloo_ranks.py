"""Functions run on real gloo processes."""

from __future__ import annotations

import os
import socket
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

# torch._dynamo: any optimizer's first step imports it.
PRELOADED = (
    "pytest",
    "torch._dynamo",
    "torch.distributed.checkpoint",
    "torchrec.distributed.planner",
    "bet_torchrec.embeddings",
    "bet_torchrec.training",
    "bet_torchrec.tasks",
)


@dataclass(frozen=True)
class Failed:
    """What a rank died of."""

    kind: str
    text: str
    traceback: str


def gloo_context() -> Any:
    """For processes that find already imported what takes seconds each otherwise."""
    context = mp.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOADED))
    return context


def free_port() -> int:
    """One that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    return port


def join_group(rank: int, world: int, port: int, backend: str = "gloo") -> None:
    """Join the default group as torchrun would have it; one thread a rank."""
    os.environ.update(
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        RANK=str(rank),
        WORLD_SIZE=str(world),
        LOCAL_RANK=str(rank),
        LOCAL_WORLD_SIZE=str(world),
    )
    torch.set_num_threads(1)
    dist.init_process_group(backend, rank=rank, world_size=world)


def on_ranks(
    function: Callable[..., Any], ranks: int, *args: Any, failures: bool = False
) -> list[Any]:
    """What ``function(pg, *args)``, of a module's top level, returns on each rank.

    failures: a rank that raises has ``Failed`` there, and the others are not stopped; else it is
        an error here.
    """
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        context = gloo_context()
        processes = [
            context.Process(target=_run, args=(rank, ranks, port, folder, function, args))
            for rank in range(ranks)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        # Files, not a queue: tensors in a queue die with the process that sent them.
        found = [torch.load(Path(folder) / str(r), weights_only=False) for r in range(ranks)]
    if not failures:
        failed = [result.traceback for result in found if isinstance(result, Failed)]
        assert not failed, "\n".join(failed)
    return found


def _run(
    rank: int, ranks: int, port: int, folder: str, function: Callable[..., Any], args: Any
) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"tcp://127.0.0.1:{port}",
        rank=rank,
        world_size=ranks,
        timeout=timedelta(seconds=60),
    )
    try:
        result = function(dist.group.WORLD, *args)
    except Exception as error:
        result = Failed(type(error).__name__, str(error), traceback.format_exc())
    torch.save(result, Path(folder) / str(rank))
    # A rank that has failed just ends, as it would in a user's run.
    if not isinstance(result, Failed):
        dist.barrier()
        dist.destroy_process_group()
