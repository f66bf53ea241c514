"""A user's loader as a function of (seed, step), so that training resumes exactly."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeAlias

import numpy as np
import torch

from ...errors import InvalidInputError

Source: TypeAlias = "Iterable[Any] | Callable[[int, int], Iterable[Any]]"


class Batches:
    """Epoch after epoch of a source of batches.

    source: what a ``for`` loop takes anew every epoch (a DataLoader, a list of batches), or a
        function (seed, epoch) -> iterable of an epoch's batches. A DataLoader's shuffling draws
        from torch's global generator, which is seeded by (seed, epoch) while an epoch begins; a
        sampler with ``set_epoch`` is told the epoch. Whatever else is random in a source has to be
        the source's own function of (seed, epoch).
    what: its name in messages. steps: batches an epoch, found out where the source has no length.
    """

    def __init__(self, source: Source, what: str, steps: int | None = None) -> None:
        if isinstance(source, Iterator):
            raise InvalidInputError(
                f"{what} should be iterable anew for every epoch, got the iterator {source!r}, "
                "which ends with the first: pass the DataLoader itself, a list of batches, or a "
                "function (seed, epoch) -> batches"
            )
        if not callable(source) and not isinstance(source, Iterable):
            raise InvalidInputError(
                f"{what} should be an iterable of batches or a function (seed, epoch) -> batches, "
                f"got {type(source).__name__}"
            )
        self._source, self._what = source, what
        self._steps = _length(source) if steps is None else steps
        self._open: tuple[int, int, Iterator[Any]] | None = None  # seed, next step, the rest

    @property
    def known_steps(self) -> int | None:
        """Batches an epoch, None where that isn't known yet."""
        return self._steps

    @property
    def steps(self) -> int:
        """Batches an epoch."""
        if self._steps is None:
            self._steps = sum(1 for _ in self.epoch(0, 0))
        if self._steps < 1:
            raise InvalidInputError(f"{self._what} should have at least one batch, got none")
        return self._steps

    def epoch(self, seed: int, epoch: int) -> Iterator[Any]:
        """The batches of an epoch."""
        source: Any = self._source
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0]))
            if callable(source) and not isinstance(source, Iterable):
                batches = iter(source(seed, epoch))
            else:
                if hasattr(getattr(source, "sampler", None), "set_epoch"):
                    source.sampler.set_epoch(epoch)
                batches = iter(source)
            # A sampler draws its seed with the first batch, not before.
            first = next(batches, None)
        if first is None:
            return
        yield first
        yield from batches

    def batch(self, seed: int, step: int) -> Any:
        """The batch of a step, counted from 0 over all epochs; cheap when asked for in order."""
        epoch, place = divmod(step, self.steps)
        if self._open is None or self._open[:2] != (seed, step) or not place:
            rest = self.epoch(seed, epoch)
            for _ in range(place):
                self._next(rest)
            self._open = seed, step, rest
        rest = self._open[2]
        found = self._next(rest)
        self._open = seed, step + 1, rest
        return found

    def _next(self, rest: Iterator[Any]) -> Any:
        try:
            return next(rest)
        except StopIteration:
            raise InvalidInputError(
                f"{self._what} should have {self.steps} batches in every epoch, got fewer: give it "
                "the same number each time, or drop the last one"
            ) from None


def _length(source: Any) -> int | None:
    if inspect.isfunction(source):
        return None
    try:
        return len(source)
    except TypeError:  # iterable data sets have none
        return None
