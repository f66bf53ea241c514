"""One training run on the ranks of a process group: what ``train_bpr`` asks of them.

Each rank takes its part of the same global batch. Its loss is its examples' sum over B / R (B
examples in the global batch, R ranks), so that the mean of the ranks' losses is the global batch's
loss, exactly, whatever the parts' sizes. Gradients follow: sharded tables come averaged over ranks
from TorchRec, those of ``PartitionedGraph`` reach the tables as a sum over ranks, which TorchRec
divides, and weights that every rank holds are averaged here. A sharded run then does what one
process would, step by step, but for dropout masks, which are drawn by each rank for its own rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from ..team import Team
from .sampling import Batch


class Ranks(Protocol):
    """The processes of a run, as one of them sees them. rank: which it is. size: how many."""

    rank: int
    size: int

    def start(self, facts: Callable[[], Mapping[str, Any]], weights: Sequence[Tensor]) -> None:
        """Make sure that all ranks do the same run, from the same weights that each holds."""
        ...

    def part(self, batch: Batch) -> Batch:
        """This rank's examples."""
        ...

    def seed(self, seed: int, step: int) -> int:
        """Of this rank's dropout in a step."""
        ...

    def average(self, weights: Sequence[Tensor]) -> None:
        """Average the gradients of weights that each rank holds, in place."""
        ...

    def mean(self, what: str, work: Callable[[], float]) -> float:
        """The mean of all ranks' numbers, on each; an error on one is one on all."""
        ...


class Alone:
    """One process."""

    rank, size = 0, 1

    def start(self, facts: Callable[[], Mapping[str, Any]], weights: Sequence[Tensor]) -> None:
        """Nobody to agree with."""

    def part(self, batch: Batch) -> Batch:
        return batch

    def seed(self, seed: int, step: int) -> int:
        return (seed << 32) + step

    def average(self, weights: Sequence[Tensor]) -> None:
        """One process's gradients are the mean."""

    def mean(self, what: str, work: Callable[[], float]) -> float:
        return work()


class Peers:
    """The ranks of a process group, gloo or NCCL.

    An error in a validation is one on all ranks (``CollectiveError`` on the others). An error in
    the middle of a step cannot be told to ranks that wait inside a collective: let it end the
    process, then theirs fail too as the connection closes; or else they wait for the group's
    timeout (``init_process_group(timeout=...)``).
    """

    def __init__(self, pg: dist.ProcessGroup) -> None:
        self._pg = pg
        self._team = Team(pg)
        self.rank, self.size = dist.get_rank(pg), dist.get_world_size(pg)

    def start(self, facts: Callable[[], Mapping[str, Any]], weights: Sequence[Tensor]) -> None:
        """Raises CollectiveError unless facts are equal; weights become the first rank's."""
        shapes = [list(weight.shape) for weight in weights]
        self._team.agree(
            "seed, settings, data and weights", {**facts(), "weights on every rank": shapes}
        )
        for weight in weights:
            dist.broadcast(weight.detach(), dist.get_global_rank(self._pg, 0), group=self._pg)

    def part(self, batch: Batch) -> Batch:
        return Batch(*(np.ascontiguousarray(ids[self.rank :: self.size]) for ids in batch))

    def seed(self, seed: int, step: int) -> int:
        drawn = np.random.SeedSequence([seed, step, self.rank]).generate_state(1, np.uint64)
        return int(drawn[0] >> 1)

    def average(self, weights: Sequence[Tensor]) -> None:
        if not weights:
            return
        # One message for all; a rank whose examples don't reach a weight has zeros for it.
        gradients = [torch.zeros_like(w) if w.grad is None else w.grad for w in weights]
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
        dist.all_reduce(flat, group=self._pg)
        flat /= self.size
        for weight, mean in zip(weights, flat.split([w.numel() for w in weights]), strict=True):
            weight.grad = mean.view_as(weight)

    def mean(self, what: str, work: Callable[[], float]) -> float:
        return self._team.mean(what, work)

    def gather(self, what: str, work: Callable[[], Any]) -> list[Any]:
        """Every rank's result in rank order, on each; an error on one is one on all."""
        return self._team.gather(self._team.together(what, work))
