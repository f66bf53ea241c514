"""The search's history: an append-only file of JSON lines that is also all of its state.

The first line says what search it is; then a line a probe and a line a retraining. A line is
written and synced before the next iteration starts, so a crash loses at most the running one.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ....errors import BetError
from .sampler import Candidates

FORMAT = 1


class HistoryError(BetError, ValueError):
    """A history file that cannot be read or belongs to another search."""


@dataclass(frozen=True, kw_only=True)
class Probe:
    """A candidate that was tried.

    boundaries: F lists of W row numbers, shrunk to where they change. strategy: why it was tried.
    fitness: Eq. 12. predicted: what the predictor thought, if it was asked. seconds: its cost.
    """

    iteration: int
    strategy: str
    fitness: float
    predicted: float | None
    seconds: float
    families: list[str]
    beta: list[float]
    shares: list[float]
    precisions: list[str]
    buckets: list[list[list[int]]]  # a table: [width, rows], widest first


@dataclass(eq=False)
class History:
    """Probes and retrainings, in memory and, given a path, on disk."""

    header: Mapping[str, Any]
    path: Path | None = None
    probes: list[Probe] = field(default_factory=list)
    retrained: dict[int, float] = field(default_factory=dict)  # iteration -> validation quality

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

    def add(self, probe: Probe) -> None:
        self._append({"kind": "probe", **vars(probe)})
        self.probes.append(probe)

    def add_retrained(self, iteration: int, quality: float) -> None:
        self._append({"kind": "retrained", "iteration": iteration, "quality": quality})
        self.retrained[iteration] = quality

    def best(self, n: int = 1) -> list[Probe]:
        """The n fittest, earlier ones first among equals."""
        return sorted(self.probes, key=lambda p: -p.fitness)[:n]

    def _append(self, line: Mapping[str, Any]) -> None:
        if self.path is None:
            return
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def _load(self, path: Path) -> None:
        text = path.read_text(encoding="utf-8")
        whole = text[: text.rfind("\n") + 1]  # a line cut short by a crash is not a line
        try:
            header, *lines = [json.loads(line) for line in whole.splitlines()]
            kept = {k: header[k] for k in header}
            probes = [Probe(**line) for line in lines if line.pop("kind") == "probe"]
            retrained = {x["iteration"]: x["quality"] for x in lines if "quality" in x}
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            raise HistoryError(
                f"{path} is no search history ({type(error).__name__}: {error}). Move it away to "
                "start afresh."
            ) from None
        different = sorted(k for k in {*kept, *self.header} if kept.get(k) != self.header.get(k))
        if different:
            said = ", ".join(
                f"{k}: {kept.get(k)!r} there, {self.header.get(k)!r} now" for k in different
            )
            raise HistoryError(
                f"{path} is of another search ({said}). Resume with the same settings, or use "
                "another run folder."
            )
        self.probes, self.retrained = probes, retrained
        if len(whole) != len(text):
            with open(path, "r+", encoding="utf-8") as file:
                file.truncate(len(whole.encode()))


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
    probes: list[Probe], widths: torch.Tensor, families: list[str], precisions: list[str]
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
