"""The search's history: an append-only file of JSON lines that is also all of its state.

The first line says what search it is; then a line a probe and a line a retraining. A line is
written and synced before the next iteration starts, so a crash loses at most the running one.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ....errors import BetError
from ....files.lines import LineError, append_line, read_lines
from ....outcome import Outcome, State
from ....strict import typed
from ..workbench import Start
from .sampler import Candidates

FORMAT = 3


class HistoryError(BetError, ValueError):
    """A history file that cannot be read or belongs to another search."""


@dataclass(frozen=True, kw_only=True)
class Probe:
    """A candidate that was tried.

    strategy: why it was tried. state: what came of it; only "ok" ones are learnt from.
    fitness: Eq. 12; None where it diverged. predicted: the fitness that the predictor expected, if
    it was asked. seconds: its cost. families, beta, shares, precisions: one a table.
    buckets: a table: (width, rows), widest first.
    """

    iteration: int
    strategy: str
    state: State
    fitness: float | None
    predicted: float | None
    seconds: float
    families: list[str]
    beta: list[float]
    shares: list[float]
    precisions: list[str]
    buckets: list[list[tuple[int, int]]]

    def __post_init__(self) -> None:
        _check(self.state, self.fitness)
        if self.iteration < 0 or any(n < 0 for table in self.buckets for b in table for n in b):
            raise ValueError("iterations, widths and rows should be 0 or more")

    @property
    def ok(self) -> bool:
        """Whether its fitness can be compared with others."""
        return self.state == "ok"


@dataclass(frozen=True, kw_only=True)
class Retraining:
    """One full training of the plan that was tried at ``iteration``."""

    iteration: int
    start: Start
    seed: int
    state: State
    quality: float | None

    def __post_init__(self) -> None:
        _check(self.state, self.quality)
        if self.iteration < 0 or self.seed < 0:
            raise ValueError("iteration and seed should be 0 or more")


def _check(state: State, measured: float | None) -> None:
    if state == "ok" and measured is None:
        raise ValueError('a state of "ok" should come with a number')


Key = tuple[int, Start, int]  # iteration, start, seed


@dataclass(eq=False)
class History:
    """Probes and retrainings, in memory and, given a path, on disk.

    On several ranks each has its own over the same content, and only the first has a path.
    """

    header: Mapping[str, Any]
    path: Path | None = None
    probes: list[Probe] = field(default_factory=list)
    retrained: dict[Key, Retraining] = field(default_factory=dict)
    checksum: int = 0  # of the last line of the file

    @classmethod
    def open(cls, path: Path | None, header: Mapping[str, Any], *, resume: bool) -> History:
        """Start a history, or take one up again.

        Raises:
            HistoryError: the file exists but resume is False, is of another search, or is broken
                anywhere but in its last line.
        """
        header = {"kind": "search", "format": FORMAT, **header}
        history = cls(header=header, path=path)
        if path is None:
            return history
        if path.exists() and path.stat().st_size:
            if not resume:
                raise HistoryError(
                    f"{path} already holds a search. Pass resume to continue it, or another run "
                    "folder to start afresh."
                )
            history._load(path)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            history._append(header)
        return history

    @property
    def ok(self) -> list[Probe]:
        """The probes that can be learnt from, in order."""
        return [probe for probe in self.probes if probe.ok]

    def fitness(self) -> list[float]:
        """Of the probes that are ok."""
        return [_known(probe.fitness) for probe in self.ok]

    def best(self, n: int = 1) -> list[Probe]:
        """The n fittest that are ok, earlier ones first among equals."""
        return sorted(self.ok, key=lambda p: -_known(p.fitness))[:n]

    def equal_sizes(self) -> Probe | None:
        """The fittest of equal sizes, in whatever precision."""
        return next((p for p in self.best(len(self.ok)) if p.strategy == "anchor"), None)

    def quality(self, iteration: int, start: Start) -> float | None:
        """The mean quality over the seeds of a retraining, None unless all of them were ok."""
        found = [r for r in self.retrained.values() if (r.iteration, r.start) == (iteration, start)]
        if not found or any(r.state != "ok" for r in found):
            return None
        return math.fsum(_known(r.quality) for r in found) / len(found)

    def prediction_correlation(self) -> float | None:
        """Spearman's, of the fitness that was predicted and the one that was got.

        None where fewer than five predictions were tried, or all said or got the same.
        """
        pairs = [(p.predicted, p.fitness) for p in self.ok if p.predicted is not None]
        ranks = [_ranks(np.array(column, dtype=np.float64)) for column in zip(*pairs, strict=True)]
        if len(pairs) < 5 or any(np.ptp(column) == 0 for column in ranks):
            return None
        return float(np.asarray(np.corrcoef(ranks))[0, 1])

    def add(self, probe: Probe) -> None:
        """Append a probe."""
        self._append({"kind": "probe", **vars(probe)})
        self.probes.append(probe)

    def add_retrained(self, key: Key, outcome: Outcome) -> None:
        """Append a retraining."""
        iteration, start, seed = key
        line = Retraining(
            iteration=iteration,
            start=start,
            seed=seed,
            state=outcome.state,
            quality=outcome.quality if math.isfinite(outcome.quality) else None,
        )
        self._append({"kind": "retrained", **vars(line)})
        self.retrained[key] = line

    def _append(self, line: Mapping[str, Any]) -> None:
        if self.path is None:
            return
        self.checksum = append_line(self.path, line, self.checksum)

    def _load(self, path: Path) -> None:
        try:
            found = read_lines(path)
        except LineError as error:
            raise _broken(path, error) from error
        if found.size != path.stat().st_size:
            os.truncate(path, found.size)
        if not found.values:  # not even the header survived
            self._append(self.header)
            return
        different = list(_differences(found.values[0], self.header))
        if different:
            raise HistoryError(
                f"{path} is of another search ({'; '.join(different)}). Resume with the same "
                "settings, data and way to try a plan, or use another run folder."
            )
        for number, line in enumerate(found.values[1:], 2):
            try:
                self._take(line.pop("kind", None), line)
            except ValueError as error:
                raise _broken(path, f"line {number}: {error}") from error
        self.checksum = found.checksum

    def _take(self, kind: Any, line: dict[str, Any]) -> None:
        """One line after the header; raises ValueError where it makes no sense."""
        if kind == "probe":
            probe = typed(line, Probe, kind)
            if probe.iteration != len(self.probes):
                raise ValueError(f"iteration should be {len(self.probes)}, got {probe.iteration}")
            self.probes.append(probe)
        elif kind == "retrained":
            again = typed(line, Retraining, kind)
            if not again.iteration < len(self.probes):
                raise ValueError("it retrains nothing that was tried")
            self.retrained[(again.iteration, again.start, again.seed)] = again
        else:
            raise ValueError(f"kind should be 'probe' or 'retrained', got {kind!r}")


def _broken(path: Path, why: object) -> HistoryError:
    return HistoryError(
        f"{path} is not what a search's history holds, {why}. Move the file away to start afresh."
    )


def _known(number: float | None) -> float:
    assert number is not None
    return number


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """From 1; equal values share the mean of theirs."""
    _, place, times = np.unique(values, return_inverse=True, return_counts=True)
    return np.asarray((times.cumsum() - (times - 1) / 2)[place])


def _differences(there: Any, now: Any, name: str = "") -> Iterator[str]:
    """What differs between two headers, in words, down to single settings."""
    if isinstance(there, Mapping) and isinstance(now, Mapping):
        for key in sorted({*there, *now}):
            yield from _differences(there.get(key), now.get(key), f"{name}.{key}".lstrip("."))
    elif there != now:
        yield f"{name}: {there!r} there, {now!r} now"


def to_buckets(boundaries: torch.Tensor, widths: torch.Tensor) -> list[list[tuple[int, int]]]:
    """(F, W) boundaries as (width, rows) pairs, widest first, empty ones left out."""
    rows = boundaries.diff(dim=-1, append=boundaries.new_zeros(len(boundaries), 1)).neg()
    return [
        [(int(widths[k]), int(table[k])) for k in reversed(range(len(widths))) if table[k]]
        for table in rows
    ]


def to_boundaries(buckets: list[list[tuple[int, int]]], widths: torch.Tensor) -> torch.Tensor:
    """(F, W) again, from what to_buckets made."""
    rows = torch.zeros(len(buckets), len(widths), dtype=torch.int64)
    place = {int(w): k for k, w in enumerate(widths)}
    for t, table in enumerate(buckets):
        for width, number in table:
            rows[t, place[width]] = number
    return rows.flip(-1).cumsum(-1).flip(-1)


def to_candidates(
    probes: Sequence[Probe], widths: torch.Tensor, families: list[str], precisions: list[str]
) -> Candidates:
    """The probes' candidates, m = len(probes)."""

    def table(name: str) -> torch.Tensor:
        return torch.tensor([getattr(p, name) for p in probes], dtype=torch.float64)

    return Candidates(
        boundaries=torch.stack([to_boundaries(p.buckets, widths) for p in probes]),
        precision=torch.tensor([[precisions.index(x) for x in p.precisions] for p in probes]),
        family=torch.tensor([[families.index(x) for x in p.families] for p in probes]),
        beta=table("beta"),
        shares=table("shares"),
    )
