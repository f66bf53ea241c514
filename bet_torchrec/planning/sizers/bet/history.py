"""The search's history: an append-only file of JSON lines that is also all of its state.

The first line says what search it is; then a line a probe and a line a retraining. A line is
written and synced before the next iteration starts, so a crash loses at most the running one.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, get_args

import torch

from ....errors import BetError
from ....outcome import Outcome, State
from ..workbench import Start
from .sampler import Candidates

FORMAT = 2


class HistoryError(BetError, ValueError):
    """A history file that cannot be read or belongs to another search."""


@dataclass(frozen=True, kw_only=True)
class Probe:
    """A candidate that was tried.

    strategy: why it was tried. state: what came of it; only "ok" ones are learnt from.
    fitness: Eq. 12; None where it diverged. predicted: the fitness that the predictor expected, if
    it was asked. seconds: its cost. families, beta, shares, precisions: one a table.
    buckets: a table: [width, rows], widest first.
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
    buckets: list[list[list[int]]]

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

    def quality(self, iteration: int, start: Start) -> float | None:
        """The mean quality over the seeds of a retraining, None unless all of them were ok."""
        found = [r for r in self.retrained.values() if (r.iteration, r.start) == (iteration, start)]
        if not found or any(r.state != "ok" for r in found):
            return None
        return math.fsum(_known(r.quality) for r in found) / len(found)

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
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(line, allow_nan=False) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def _load(self, path: Path) -> None:
        lines, whole = read_lines(path)
        if not lines:  # not even the header survived
            os.truncate(path, 0)
            self._append(self.header)
            return
        different = list(_differences(lines[0], self.header))
        if different:
            raise HistoryError(
                f"{path} is of another search ({'; '.join(different)}). Resume with the same "
                "settings, data and way to try a plan, or use another run folder."
            )
        for number, line in enumerate(lines[1:], 2):
            try:
                self._take(line)
            except (ValueError, TypeError, LookupError) as error:
                raise _broken(path, number, error) from None
        if whole != path.stat().st_size:
            os.truncate(path, whole)

    def _take(self, line: Mapping[str, Any]) -> None:
        """One line after the header; raises what its reader turns into a HistoryError."""
        entry = {key: value for key, value in line.items() if key != "kind"}
        if line.get("kind") == "probe":
            probe = Probe(**entry)
            _check(probe)
            if probe.iteration != len(self.probes):
                raise ValueError(f"iteration should be {len(self.probes)}, got {probe.iteration}")
            self.probes.append(probe)
        elif line.get("kind") == "retrained":
            again = Retraining(**entry)
            _check(again)
            if again.start not in get_args(Start) or not again.iteration < len(self.probes):
                raise ValueError("it retrains nothing that was tried")
            self.retrained[(again.iteration, again.start, again.seed)] = again
        else:
            raise ValueError(f"kind should be 'probe' or 'retrained', got {line.get('kind')!r}")


def read_lines(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The JSON objects of a file's whole lines, and how many bytes these are.

    A line that a crash cut short is not a line.

    Raises:
        HistoryError: a line is no JSON object in UTF-8, or holds what JSON has no number for.
    """
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    lines = []
    for number, line in enumerate(data[:whole].split(b"\n")[:-1], 1):
        try:
            entry = json.loads(line.decode("utf-8"), parse_constant=_no_number)
            if not isinstance(entry, dict):
                raise ValueError(f"expected an object, got {type(entry).__name__}")
        except (ValueError, RecursionError) as error:
            raise _broken(path, number, error) from None
        lines.append(entry)
    return lines, whole


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is no number of JSON")


def _broken(path: Path, number: int, error: Exception) -> HistoryError:
    return HistoryError(
        f"{path}, line {number}, is not what a search's history holds "
        f"({type(error).__name__}: {error}). Move the file away to start afresh."
    )


def _check(line: Probe | Retraining) -> None:
    """Raise ValueError unless all fields are of their types."""
    tests = {
        "int": lambda v: _whole(v),
        "str": lambda v: isinstance(v, str),
        "float": lambda v: _finite(v),
        "float | None": lambda v: v is None or _finite(v),
        "State": lambda v: v in get_args(State),
        "Start": lambda v: v in get_args(Start),
        "list[str]": lambda v: isinstance(v, list) and all(isinstance(x, str) for x in v),
        "list[float]": lambda v: isinstance(v, list) and all(_finite(x) for x in v),
        "list[list[list[int]]]": lambda v: isinstance(v, list) and all(map(_is_buckets, v)),
    }
    for each in fields(line):
        value = getattr(line, each.name)
        if not tests[str(each.type)](value):
            raise ValueError(f"{each.name} should be {each.type}, got {value!r}")
    measured = line.fitness if isinstance(line, Probe) else line.quality
    if line.state == "ok" and measured is None:
        raise ValueError('a state of "ok" should come with a number')


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _finite(value: Any) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and abs(value) < 1.8e308


def _is_buckets(value: Any) -> bool:
    pairs = isinstance(value, list) and all(isinstance(b, list) and len(b) == 2 for b in value)
    return pairs and all(_whole(x) for bucket in value for x in bucket)


def _known(number: float | None) -> float:
    assert number is not None
    return number


def _differences(there: Any, now: Any, name: str = "") -> Iterator[str]:
    """What differs between two headers, in words, down to single settings."""
    if isinstance(there, Mapping) and isinstance(now, Mapping):
        for key in sorted({*there, *now}):
            yield from _differences(there.get(key), now.get(key), f"{name}.{key}".lstrip("."))
    elif there != now:
        yield f"{name}: {there!r} there, {now!r} now"


def to_buckets(boundaries: torch.Tensor, widths: torch.Tensor) -> list[list[list[int]]]:
    """(F, W) boundaries as [width, rows] lists, widest first, empty ones left out."""
    rows = boundaries.diff(dim=-1, append=boundaries.new_zeros(len(boundaries), 1)).neg()
    return [
        [[int(widths[k]), int(table[k])] for k in reversed(range(len(widths))) if table[k]]
        for table in rows
    ]


def to_boundaries(buckets: list[list[list[int]]], widths: torch.Tensor) -> torch.Tensor:
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
