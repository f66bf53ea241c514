"""Messages among the ranks of a process group; an error on one rank is one on all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from .errors import CollectiveError, InvalidInputError


class Team:
    """The ranks of a process group. All methods are collective: all ranks call them alike.

    pg: any backend; None is the default group. rank: this process's. size: how many there are.
    """

    def __init__(self, pg: dist.ProcessGroup | None) -> None:
        self._pg = pg
        self.rank, self.size = dist.get_rank(pg), dist.get_world_size(pg)
        if self.rank < 0:
            raise InvalidInputError(
                "what runs on a process group should be called on ranks of that group only"
            )
        self._first = dist.get_global_rank(pg, 0) if pg is not None else 0

    def gather(self, mine: Any) -> list[Any]:
        """Everybody's, in rank order, on every rank."""
        everyone: list[Any] = [None] * self.size
        dist.all_gather_object(everyone, mine, group=self._pg)
        return everyone

    def broadcast(self, message: Any = None) -> Any:
        """The first rank's message, on every rank."""
        box = [message]
        dist.broadcast_object_list(box, src=self._first, group=self._pg)
        return box[0]

    def agree(self, what: str, mine: Any) -> None:
        """Raise CollectiveError on every rank unless all have the same."""
        everyone = self.gather(mine)
        other = [rank for rank, theirs in enumerate(everyone) if theirs != everyone[0]]
        if other:
            raise CollectiveError(
                f"all ranks should agree on {what}, but rank {other[0]} differs from rank 0 "
                f"({everyone[other[0]]} against {everyone[0]}); pass the same on every rank"
            )

    def together(self, what: str, work: Callable[[], Any]) -> Any:
        """This rank's result of work, once all ranks are done; an error on one is one on all."""
        error: BaseException | None = None
        result = None
        try:
            result = work()
        except BaseException as caught:  # Ctrl-C too: the others wait for an answer
            error = caught
        failures = self.gather(None if error is None else f"{type(error).__name__}: {error}")
        if error is not None:
            raise error
        for rank, failure in enumerate(failures):
            if failure is not None:
                raise CollectiveError(f"rank {rank} failed at {what}: {failure}")
        return result

    def first(self, what: str, work: Callable[[], Any]) -> Any:
        """The first rank's result of work, which no other does, on every rank."""
        return self.broadcast(self.together(what, work if self.rank == 0 else lambda: None))

    def mean(self, what: str, work: Callable[[], float]) -> float:
        """The mean over the ranks of their numbers, bit-equal on all of them."""
        everyone = self.gather(self.together(what, work))
        return float(sum(everyone) / len(everyone))

    def sum(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """The sum over the ranks of an array of one shape on all of them."""
        total = torch.from_numpy(numbers.copy())
        if dist.get_backend(self._pg) == "nccl":
            total = total.cuda()
        dist.all_reduce(total, group=self._pg)
        summed: NDArray[np.int64] = total.cpu().numpy()
        return summed

    def share(self, tensors: Sequence[Tensor]) -> None:
        """Overwrite tensors, of equal shapes on all ranks, with the first rank's."""
        for tensor in tensors:
            dist.broadcast(tensor.detach(), src=self._first, group=self._pg)

    def average_gradients(self, weights: Sequence[Tensor]) -> None:
        """Average the gradients of weights that every rank holds, in place."""
        if not weights:
            return
        # One message for all; a rank whose examples don't reach a weight has zeros for it.
        gradients = [torch.zeros_like(w) if w.grad is None else w.grad for w in weights]
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
        dist.all_reduce(flat, group=self._pg)
        flat /= self.size
        for weight, mean in zip(weights, flat.split([w.numel() for w in weights]), strict=True):
            weight.grad = mean.view_as(weight)


class Alone(Team):
    """One process, with or without a process group elsewhere."""

    def __init__(self) -> None:
        self.rank, self.size = 0, 1

    def gather(self, mine: Any) -> list[Any]:
        return [mine]

    def broadcast(self, message: Any = None) -> Any:
        return message

    def sum(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        return numbers

    def share(self, tensors: Sequence[Tensor]) -> None:
        """Nobody to share with."""

    def average_gradients(self, weights: Sequence[Tensor]) -> None:
        """One process's gradients are the mean."""


def group_or_default(pg: dist.ProcessGroup | None) -> dist.ProcessGroup | None:
    """The group, or the one of all processes; None where there is just one process."""
    if pg is None and dist.is_available() and dist.is_initialized():
        pg = dist.group.WORLD
    return pg if pg is not None and pg.size() > 1 else None


def team(pg: dist.ProcessGroup | None) -> Team:
    """Its ranks; None is this process alone."""
    return Alone() if pg is None else Team(pg)
