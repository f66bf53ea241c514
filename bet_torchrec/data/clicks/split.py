"""Splits of a click log: by chance, by time, or as given; tables as the training part knows them.

Parts are views of one log. What only validation or test knows is out of vocabulary.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import DataError
from ..split import checked_shares, percent
from .fields import Field
from .log import ClickLog

PARTS = ("train", "validation", "test")


@dataclass(frozen=True, eq=False, kw_only=True)
class ClickSplit:
    """Three parts of one log, over the same fields.

    name: what reports call it. how: what made it. seed: what it was drawn with, None where nothing
    was drawn. ranks: {field: int32, the rank of each row there was before ``by_rank``}, None where
    rows are not ranks.
    """

    train: ClickLog
    validation: ClickLog
    test: ClickLog
    name: str = "clicks"
    how: str = "given"
    seed: int | None = None
    ranks: Mapping[str, NDArray[np.int32]] | None = None

    def __post_init__(self) -> None:
        for part, log in zip(PARTS[1:], self.parts()[1:], strict=True):
            if (log.fields, log.dense_names) != (self.train.fields, self.train.dense_names):
                raise DataError(
                    f"{self.name}: the parts of a split should have the same fields, got "
                    f"{self.train.fields} in train and {log.fields} in {part}"
                )
        if not len(self.train):
            raise DataError(f"{self.name}: expected at least one training example, got none")

    def __repr__(self) -> str:
        sizes = " / ".join(f"{len(part):,}" for part in self.parts())
        rows = sum(field.rows for field in self.fields)
        return (
            f"ClickSplit({self.name!r}, {self.how}: {sizes} examples, {len(self.fields)} fields, "
            f"{rows:,} rows)"
        )

    @property
    def fields(self) -> tuple[Field, ...]:
        """Of all parts."""
        return self.train.fields

    def parts(self) -> tuple[ClickLog, ClickLog, ClickLog]:
        """Train, validation and test, in this order."""
        return self.train, self.validation, self.test

    def fingerprint(self) -> str:
        """16 hex digits that stand for all three parts."""
        own = "".join(part.fingerprint() for part in self.parts())
        return hashlib.sha256(own.encode()).hexdigest()[:16]

    def with_vocabulary(self, min_count: int | Mapping[str, int] = 1) -> ClickSplit:
        """Only rows that training has so often; all others are the field's row 0.

        Rows keep their order and close up. min_count: of all fields, or {field: its own}, 1 for
        those not named.

        Raises:
            DataError: a threshold below 1, or of a field that there is not.
        """
        named = min_count if isinstance(min_count, Mapping) else None
        for name in named or ():
            self.train.field(name)
        counts = self.train.counts()
        maps, fields = {}, []
        for field in self.fields:
            least = named.get(field.name, 1) if named is not None else min_count
            if not isinstance(least, int | np.integer) or least < 1:
                raise DataError(f"min_count should be 1 or more, got {least!r}")
            keep = counts[field.name] >= least
            keep[field.oov] = False
            maps[field.name] = np.where(keep, np.cumsum(keep), 0).astype(np.int32)
            fields.append(replace(field, rows=int(keep.sum()) + 1, oov=0))
        return replace(self._relabelled(maps, fields), ranks=None)

    def by_rank(self) -> tuple[ClickSplit, dict[str, NDArray[np.int32]]]:
        """Rows renamed to their rank by training count, most frequent first, ties by row.

        A plan then needs no map of ids. Returns the split and {field: int32 (rows,), the rank of
        each row before}, which the split also keeps as ``ranks`` and saves; of a split that was
        ranked already, of the rows before that.
        """
        counts = self.train.counts()
        ranks, fields = {}, []
        for field in self.fields:
            order = np.argsort(-counts[field.name], kind="stable")
            rank = np.empty(field.rows, dtype=np.int32)
            rank[order] = np.arange(field.rows, dtype=np.int32)
            ranks[field.name] = rank
            fields.append(replace(field, oov=int(rank[field.oov])))
        split = self._relabelled(ranks, fields)
        if self.ranks is not None:  # of the rows there were at first
            ranks = {name: rank[self.ranks[name]] for name, rank in ranks.items()}
        return replace(split, ranks=ranks), ranks

    def compact(self) -> ClickSplit:
        """The same split with arrays of its own in memory: faster batches where they fit."""
        return self._with(*(part.compact() for part in self.parts()))

    def summary(self) -> str:
        """A few lines for people: examples, fields, rows, and how much of the tails is seen."""
        counts = self.train.counts()
        rows = sum(field.rows for field in self.fields)
        rare = sum(int((count <= 2).sum()) for count in counts.values())
        lines = [
            f"{self.name} ({self.how}): {len(self.fields)} fields, {rows:,} rows, "
            f"{rare / rows:.1%} of them at most twice in train"
        ]
        for part, log in zip(PARTS, self.parts(), strict=True):
            share = f", {log.labels.mean():.1%} positive" if len(log) else ""
            lines.append(f"  {part}: {len(log):,} examples{share}")
        for field in self.fields:
            count = counts[field.name]
            lines.append(
                f"  {field.name}: {field.rows:,} rows, {np.median(count):,.0f} in the median, "
                f"{count.max():,} at most{', multi-hot' if field.multi_hot else ''}"
            )
        lines.append(f"  fingerprint: {self.fingerprint()}")
        return "\n".join([*lines, *(f"  note: {note}" for note in self.train.notes)])

    def save(self, folder: str | Path) -> Path:
        """Write a folder of three logs and the ranks; see ``load``."""
        from .files import save_split

        return save_split(self, Path(folder))

    @classmethod
    def load(cls, folder: str | Path, *, verify: bool = False) -> ClickSplit:
        """What ``save`` wrote, mapped from its files. verify: read all of it, and compare."""
        from .files import load_split

        return load_split(Path(folder), verify=verify)

    def _relabelled(
        self, maps: Mapping[str, NDArray[np.int32]], fields: Sequence[Field]
    ) -> ClickSplit:
        known = {
            field.name: self.train.vocabularies[field.name].kept(maps[field.name], field.oov)
            for field in fields
            if field.name in self.train.vocabularies
        }
        return self._with(*(part.relabelled(maps, fields, known) for part in self.parts()))

    def _with(self, train: ClickLog, validation: ClickLog, test: ClickLog) -> ClickSplit:
        return replace(self, train=train, validation=validation, test=test)


def split_random(
    log: ClickLog, shares: Sequence[float] = (0.8, 0.1, 0.1), *, seed: int
) -> ClickSplit:
    """Examples dealt at random. shares: of train, validation and test; they sum to 1.

    The first round(N * train) of one permutation are train, and so on; within a part examples keep
    the log's order.
    """
    parts = checked_shares(shares)
    order = _generator(seed).permutation(len(log))
    return _dealt(log, order, parts, f"random {percent(parts)}", seed)


def split_temporal(
    log: ClickLog,
    shares: Sequence[float] = (0.8, 0.1, 0.1),
    *,
    timestamps: ArrayLike | None = None,
    seed: int = 0,
) -> ClickSplit:
    """Earlier examples train, later ones validation and test.

    Args:
        timestamps: numbers (N,); by default the log's own.
        seed: orders examples of the same time.

    Raises:
        DataError: there are no times, or not one an example.
    """
    parts = checked_shares(shares)
    times = log.timestamps if timestamps is None else np.asarray(timestamps)
    if times is None:
        raise DataError(f"{log.name} has no timestamps; give them, or use split_random")
    if times.shape != (len(log),) or times.dtype.kind not in "iuf":
        raise DataError(
            f"timestamps should be numbers ({len(log)},), got shape {times.shape} of {times.dtype}"
        )
    if not np.isfinite(times).all():
        raise DataError(f"timestamps should be finite, got {times[~np.isfinite(times)][0]}")
    order = np.lexsort((_generator(seed).random(len(log)), times))
    return _dealt(log, order, parts, f"temporal {percent(parts)}", seed)


def split_given(
    log: ClickLog,
    *,
    train: slice | ArrayLike,
    validation: slice | ArrayLike,
    test: slice | ArrayLike,
    how: str = "given",
) -> ClickSplit:
    """Parts by their positions in the log, slices or integers (n,).

    Raises:
        DataError: an example in two parts, or a position that there is not.
    """
    owner = np.zeros(len(log), dtype=np.int8)
    made = []
    for rows in (train, validation, test):
        made.append(log.take(rows))
        at: Any = rows if isinstance(rows, slice) else np.asarray(rows, dtype=np.int64)
        # add.at, because a position may come twice in one part as well
        np.add.at(owner, np.arange(len(log))[at], 1)
    if (owner > 1).any():
        raise DataError(
            f"{log.name}: the parts of a split should not overlap, got example "
            f"{int(np.argmax(owner > 1))} twice"
        )
    return _named(log, made, how, None)


def _dealt(
    log: ClickLog,
    order: NDArray[np.int64],
    shares: tuple[float, float, float],
    how: str,
    seed: int,
) -> ClickSplit:
    ends = [round(len(log) * share) for share in (shares[0], shares[0] + shares[1])]
    parts = [log.take(np.sort(rows)) for rows in np.split(order, ends)]
    return _named(log, parts, how, seed)


def _named(log: ClickLog, parts: Sequence[ClickLog], how: str, seed: int | None) -> ClickSplit:
    train, validation, test = (
        replace(part, name=f"{log.name} {which}") for which, part in zip(PARTS, parts, strict=True)
    )
    return ClickSplit(
        train=train, validation=validation, test=test, name=log.name, how=how, seed=seed
    )


def _generator(seed: int) -> np.random.Generator:
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or seed < 0:
        raise DataError(f"seed should be a whole number of 0 or more, got {seed!r}")
    return np.random.default_rng(seed)
