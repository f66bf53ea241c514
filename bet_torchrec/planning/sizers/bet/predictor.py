"""The fitness predictor: a deep set over the rows that share a size (BET Section 3.3, Eq. 7-10).

Rows enter only through their count, so each *distinct* count is encoded once, prefix sums along
the rank give the sum over any bucket as a difference of two entries, and the sets that are empty
(most of 128) share one code a width. Equal to the equations up to 128 distinct counts a table,
near them beyond, and independent of the rows.

Legend: m candidates, F tables, W widths, P precisions, G distinct counts, S non-empty sets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ...counts import RowCounts
from ...settle import bucket_rows
from .sampler import Candidates

CODE = 16  # of a row
HIDDEN = 64  # of a set, and of a candidate
MOST_GROUPS = 128  # of counts a table; more distinct ones share their neighbours' mean
CHUNK = 400  # candidates at a time, so that their sets stay in the cache


@dataclass(frozen=True, eq=False, kw_only=True)
class Scene:
    """What a predictor may know. counts: one a table. widths: (W,), ascending. d_max: the full
    size. bits: a weight's, of each precision."""

    counts: Sequence[RowCounts]
    widths: Tensor
    d_max: int
    bits: Sequence[float] = (32.0,)


class Predictor(Protocol):
    """Says of candidates how fit they probably are, and where they lie."""

    def __call__(self, candidates: Candidates) -> Tensor:
        """(m,) predicted fitness."""

    def embed(self, candidates: Candidates) -> Tensor:
        """(m, h) codes: candidates whose codes are near are alike."""

    def fitness(self, codes: Tensor) -> Tensor:
        """(m,) what is predicted of candidates with these codes."""

    def spread(self, codes: Tensor) -> Tensor:
        """(m,) how uncertain that is, in units of fitness; 0 where nobody knows."""


def _mlp(inputs: int, hidden: int, outputs: int, *, final_activation: bool = True) -> nn.Sequential:
    layers = [nn.Linear(inputs, hidden), nn.LeakyReLU(), nn.Linear(hidden, outputs)]
    return nn.Sequential(*layers, *[nn.LeakyReLU()] * final_activation)


class FitnessPredictor(nn.Module):
    """Predicts the fitness of candidates.

    Args:
        scene: tables, widths (scaled by d_max) and bits.
        set_shares: give the size encoder also each set's share of the rows and of the dimensions.
        final_activation: the paper's LeakyReLU on the output too.
        generator: initial weights.
    """

    _size: Tensor  # (W,) widths as shares of d_max
    _bits: Tensor  # (P,) as shares of 32

    def __init__(
        self,
        scene: Scene,
        *,
        set_shares: bool = True,
        final_activation: bool = False,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.row_encoders = nn.ModuleList(_mlp(1, CODE, CODE) for _ in scene.counts)
        extra = 2 * set_shares + (len(scene.bits) > 1)
        self.size_encoder = _mlp(CODE + 1 + extra, HIDDEN, HIDDEN)
        self.decoder = _mlp(HIDDEN, HIDDEN, 1, final_activation=final_activation)
        self._set_shares, self._precisions = set_shares, len(scene.bits)
        self._index = [_RankIndex(c) for c in scene.counts]
        self.register_buffer("_size", scene.widths.to(torch.float32) / scene.d_max)
        self.register_buffer("_bits", torch.tensor(scene.bits, dtype=torch.float32) / 32.0)
        self._unit = (0.0, 1.0)
        with torch.no_grad():
            for layer in self.modules():
                if isinstance(layer, nn.Linear):
                    bound = layer.in_features**-0.5
                    layer.weight.uniform_(-bound, bound, generator=generator)
                    layer.bias.uniform_(-bound, bound, generator=generator)

    def forward(self, candidates: Candidates | CandidateSets) -> Tensor:
        """(m,) predicted fitness, Eq. 10, in the unit that it was trained in."""
        return self.fitness(self.embed(candidates))

    def fitness(self, codes: Tensor) -> Tensor:
        """(m,) predicted fitness of what has these codes."""
        mean, spread = self._unit
        return mean + spread * self.decoder(codes).squeeze(-1)

    def in_units_of(self, mean: float, spread: float) -> None:
        """Say that what the layers give is in ``spread`` from ``mean``."""
        self._unit = (mean, spread)

    def spread(self, codes: Tensor) -> Tensor:
        """(m,) zeros: one network cannot tell."""
        return torch.zeros(len(codes))

    def embed(self, candidates: Candidates | CandidateSets) -> Tensor:
        """(m, 64) the candidates' embeddings h, Eq. 9."""
        pairs = zip(self.row_encoders, self._index, strict=True)
        prefixes = [index.prefix_sums(encoder(index.frequency)) for encoder, index in pairs]
        if isinstance(candidates, CandidateSets):
            return self._embed(candidates, prefixes)
        parts = torch.arange(len(candidates)).split(CHUNK)
        return torch.cat([self._embed(self.describe(candidates[p]), prefixes) for p in parts])

    def _embed(self, sets: CandidateSets, prefixes: list[_Prefix]) -> Tensor:
        sums = torch.zeros(len(sets.owner), CODE, dtype=torch.float64)
        for prefix, (member_of, last, widest) in zip(prefixes, sets.members, strict=True):
            upto = prefix.upto(last)
            next_wider = torch.nn.functional.pad(upto[1:], (0, 0, 0, 1))
            bucket = upto - next_wider.masked_fill(widest[:, None], 0.0)
            sums = sums.index_add(0, member_of, bucket)
        means = (sums / sets.size[:, None]).to(torch.float32)
        coded = self.size_encoder(torch.cat([means, *self._about(sets.within, sets.shares)], -1))
        every = torch.arange(len(self._size) * self._precisions)
        nothing = means.new_zeros(len(every), CODE)
        empty = self.size_encoder(
            torch.cat([nothing, *self._about(every, means.new_zeros(len(every), 2))], -1)
        )
        present = means.new_zeros(sets.candidates, len(every))
        present[sets.owner, sets.within] = 1.0
        h = ((1 - present) @ empty).index_add(0, sets.owner, coded)
        return h / len(every)

    def describe(self, candidates: Candidates) -> CandidateSets:
        """What of the candidates does not depend on the weights; worth keeping when training."""
        boundaries = candidates.boundaries
        m, _tables, widths = boundaries.shape
        rows = bucket_rows(boundaries)
        candidate, table, width = (rows > 0).nonzero(as_tuple=True)
        key = (candidate * widths + width) * self._precisions
        if self._precisions > 1:
            key = key + candidates.precision[candidate, table]
        present = torch.zeros(m * widths * self._precisions, dtype=torch.bool)
        present[key] = True
        sets, member_of = present.nonzero().flatten(), (present.cumsum(0) - 1)[key]
        members = []
        for t, index in enumerate(self._index):
            mine = table == t
            # buckets of a table follow each other, so each begins where the next wider one ends
            last = boundaries[candidate[mine], t, width[mine]]
            widest = candidate[mine].diff(append=torch.tensor([m])) > 0
            members.append((member_of[mine], index.locate(last), widest))
        size = torch.zeros(len(sets), dtype=torch.float64)
        size.index_add_(0, member_of, rows[candidate, table, width].to(torch.float64))
        owner = sets.div(widths * self._precisions, rounding_mode="floor")
        within = sets % (widths * self._precisions)
        total = rows[:1].sum().to(torch.float64)
        dims = size * self._size[within.div(self._precisions, rounding_mode="floor")]
        all_dims = torch.zeros(m, dtype=torch.float64).index_add_(0, owner, dims).clamp(min=1e-9)
        shares = torch.stack([size / total, dims / all_dims[owner]], -1).to(torch.float32)
        return CandidateSets(m, owner, within, size, shares, members)

    def _about(self, within: Tensor, shares: Tensor) -> list[Tensor]:
        width = within.div(self._precisions, rounding_mode="floor")
        about = [self._size[width, None]]
        if self._set_shares:
            about.append(shares)
        if self._precisions > 1:
            about.append(self._bits[within % self._precisions, None])
        return about


@dataclass(frozen=True, eq=False)
class CandidateSets:
    """The non-empty sets of m candidates.

    owner: (S,) candidate. within: (S,) width * P + precision. size: (S,) rows, float64.
    shares: (S, 2) of the rows and of the dimensions. members: a table, the set that each of its
    buckets belongs to, where the bucket ends among the distinct counts, and whether it is the
    candidate's widest.
    """

    candidates: int
    owner: Tensor
    within: Tensor
    size: Tensor
    shares: Tensor
    members: list[tuple[Tensor, _Place, Tensor]]


def _group_starts(counts: RowCounts) -> NDArray[np.int64]:
    """Where groups of neighbouring counts begin: half of them even in log count, half in rank."""
    log = np.log1p(counts.values.astype(np.float64))
    by_count = np.searchsorted(-log, -np.linspace(log[0], log[-1], MOST_GROUPS // 2))
    by_rank = np.searchsorted(counts.ends, np.geomspace(1, counts.rows, MOST_GROUPS // 2))
    starts = np.unique(np.concatenate([[0], by_count, by_rank]))
    return np.asarray(starts[starts < len(log)])


_Place = tuple[Tensor, Tensor]  # group of equal counts, rows into that group


class _RankIndex:
    """Sums of row codes up to any rank, from the distinct counts alone."""

    def __init__(self, counts: RowCounts) -> None:
        rows, occurrences = counts.multiplicity, counts.values * counts.multiplicity.astype(float)
        if len(rows) > MOST_GROUPS:
            first = _group_starts(counts)
            rows, occurrences = np.add.reduceat(rows, first), np.add.reduceat(occurrences, first)
        values = torch.tensor(occurrences / rows)
        self._rows = torch.tensor(rows).to(torch.int64)
        self._starts = torch.nn.functional.pad(self._rows.cumsum(0), (1, 0))  # G + 1
        frequency = values / max(int(counts.values[0]), 1)
        self.frequency = frequency.to(torch.float32)[:, None]  # G, 1

    def locate(self, rank: Tensor) -> _Place:
        group = torch.searchsorted(self._starts, rank, right=True) - 1
        return group, (rank - self._starts[group]).to(torch.float64)

    def prefix_sums(self, codes: Tensor) -> _Prefix:
        """Of the codes (G, 16) of the distinct counts."""
        codes = torch.nn.functional.pad(codes.to(torch.float64), (0, 0, 0, 1))
        of_group = codes * torch.nn.functional.pad(self._rows, (0, 1))[:, None]
        return _Prefix(of_group.cumsum(0) - of_group, codes)


class _Prefix(NamedTuple):
    sums: Tensor  # (G + 1, 16) float64, of all rows before each group
    codes: Tensor  # (G + 1, 16)

    def upto(self, place: _Place) -> Tensor:
        """(n, 16) the sum of the codes of all rows before each place."""
        group, into = place
        return self.sums[group] + self.codes[group] * into[:, None]
