"""MovieLens-1M as clicks: ratings joined with who rated and what was rated.

A rating of 4 or 5 is a click and one of 1 or 2 is none; those of 3 are left out (AutoInt's and
PEP's rule).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..arrays import read_arrays
from ..columns import Columns, RawPairs
from ..errors import DataError, DataNotFoundError
from ..lines import is_whole
from ..loaders import MOVIELENS
from ..npz import read_npz
from ..text import read_text
from .check import check_both_classes
from .fields import Field
from .integers import log_squares
from .log import ClickLog
from .text import pieces
from .vocabulary import Vocabulary

RATINGS = ("ratings.dat", "ratings.dat.gz", "ratings.npz")
PART = "ratings_100k_timestamped.npz"
USER_FIELDS = ("gender", "age", "occupation", "zip")


def read_movielens(
    folder: Path | str,
    *,
    genres: Literal["combination", "multi_hot"] = "combination",
    name: str = "movielens-1m-clicks",
) -> ClickLog:
    """Eight fields: user, movie, gender, age, occupation, zip, year, genres.

    Args:
        folder: holds users.dat, movies.dat and the ratings, ratings.dat or ratings.npz.
        genres: "combination" has one row for each of the 301 sets of genres, "multi_hot" a bag of
            18 genres.

    Without the out-of-vocabulary rows it has 6,040 + 3,668 + 2 + 7 + 21 + 3,439 + 81 + 301 =
    13,559 rows and 739,012 examples.

    Raises:
        DataError: a file is missing or damaged, or a rating's user or movie unknown.
    """
    joined = _Joined(Path(folder))
    columns = {"user": joined.of(joined.users), "movie": joined.of(joined.movies)}
    columns |= joined.fields()
    if genres == "combination":
        return joined.log(columns, name=name)
    cells, at = columns.pop("genres")
    return joined.log(columns, bags={"genres": (cells, at)}, name=name)


def read_movielens_pep(folder: Path | str, *, name: str = "movielens-1m-pep") -> ClickLog:
    """PEP's seven fields: time, gender, age, occupation, zip, year, genres; no user, no movie.

    ``time`` is PEP's rule (``log_square``) for the seconds since the first rating. Where only a
    part of the ratings has its time (ratings_100k_timestamped.npz beside ratings.npz), the others
    get the user's most frequent value, and those of a user without any are out of vocabulary.

    Args:
        folder: as in ``read_movielens``; times are in ratings.dat, or for a part of the ratings in
            ratings_100k_timestamped.npz.
    """
    joined = _Joined(Path(folder))
    time, note = joined.times()
    return joined.log({"time": time, **joined.fields()}, name=name, notes=(note,) if note else ())


Column: TypeAlias = tuple[NDArray[Any], NDArray[np.int64]]
"""Values (m,), and which of them each example has (n,); -1 where it is unknown."""


class _Joined:
    """Ratings that are not 3, and what is known of their users and movies."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        raw = _ratings(folder)
        ratings = np.asarray(raw.ratings)
        keep = ratings != 3
        self.labels = (ratings > 3)[keep]
        self.users, self.movies = raw.users[keep], raw.items[keep]
        self._seconds = None if raw.timestamps is None else raw.timestamps[keep]
        self._start = None if raw.timestamps is None else raw.timestamps.min()
        people = _table(folder / "users.dat", 5)
        films = _table(folder / "movies.dat", 3)
        self._person = _places(self.users, people[0], f"{folder / 'users.dat'}")
        self._film = _places(self.movies, films[0], f"{folder / 'movies.dat'}")
        self._people = dict(zip(USER_FIELDS, people[1:], strict=True))
        self._titles, self._genres = films[1:]

    @staticmethod
    def of(values: NDArray[Any]) -> Column:
        """A column of one value an example."""
        distinct, at = np.unique(values, return_inverse=True)
        return distinct, at.reshape(-1)

    def fields(self) -> dict[str, Column]:
        """What is known of each rating's user and movie."""
        years = np.array([title[-5:-1] for title in self._titles])
        found = {field: (values, self._person) for field, values in self._people.items()}
        return {**found, "year": (years, self._film), "genres": (self._genres, self._film)}

    def times(self) -> tuple[Column, str]:
        """By PEP's rule; and a note where some are guessed."""
        if self._seconds is not None and self._start is not None:
            return self.of(log_squares(self._seconds - self._start)), ""
        if not (self.folder / PART).is_file():
            raise DataNotFoundError(
                f"{self.folder} should have ratings.dat or {PART}, because PEP uses times"
            )
        some = read_arrays(self.folder / PART)
        values, at = self.of(log_squares(some["timestamp"] - some["timestamp"].min()))
        # Of each user the value that most of its ratings have, the smallest of several.
        counts = np.zeros((self.users.max() + 1, len(values)), dtype=np.int32)
        np.add.at(counts, (some["user"], at), 1)
        usual = np.where(counts.any(axis=1), counts.argmax(axis=1), -1)
        guessed = usual[self.users]
        wide = 1 + max(int(self.movies.max()), int(some["item"].max()))
        keys = some["user"].astype(np.int64) * wide + some["item"]
        order = np.argsort(keys)
        own = self.users.astype(np.int64) * wide + self.movies
        place = order[np.minimum(np.searchsorted(keys, own, sorter=order), len(keys) - 1)]
        known = keys[place] == own
        without = int((guessed[~known] < 0).sum())
        note = (
            f"{int(known.sum()):,} of {len(own):,} ratings have their own time; the others got the "
            f"most frequent one of their user, and {without:,} of users without any have none"
        )
        return (values, np.where(known, at[place], guessed)), note

    def log(
        self,
        columns: Mapping[str, Column],
        *,
        name: str,
        bags: Mapping[str, Column] | None = None,
        notes: Sequence[str] = (),
    ) -> ClickLog:
        """A log of these columns. bags: of cells that hold several values, as movies.dat does."""
        known, ids, fields, made = {}, [], [], {}
        for field, (values, at) in columns.items():
            known[field] = Vocabulary.of(field, values[np.unique(at[at >= 0])])
            ids.append(np.where(at < 0, 0, known[field].encode(values)[at]))
            fields.append(Field(field, known[field].num_rows))
        for field, (cells, at) in (bags or {}).items():
            made[field], known[field] = _bags(cells, at, field)
            fields.append(Field(field, known[field].num_rows, multi_hot=True))
        log = ClickLog.from_arrays(
            fields,
            labels=self.labels,
            ids=np.stack(ids, axis=1).astype(np.int32),
            bags=made,
            timestamps=self._seconds,
            vocabularies=known,
            name=name,
            notes=notes,
        )
        check_both_classes(log.labels, name)
        return log


def _bags(cells: NDArray[Any], at: NDArray[np.int64], field: str) -> tuple[Any, Vocabulary]:
    """(values, offsets) of the parts of each example's cell, and their vocabulary."""
    lists = [cell.split("|") for cell in cells]
    flat, lengths = np.concatenate(lists), np.array([len(one) for one in lists])
    used = np.repeat(np.bincount(at, minlength=len(cells)) > 0, lengths)
    known = Vocabulary.of(field, flat[used])
    first = np.cumsum(lengths) - lengths
    offsets = np.concatenate(([0], np.cumsum(lengths[at])))
    places = np.repeat(first[at] - offsets[:-1], lengths[at]) + np.arange(offsets[-1])
    return (known.encode(flat)[places], offsets), known


def _ratings(folder: Path) -> RawPairs:
    """Users, movies and ratings, and times where they are there, in the file's order."""
    path = next((folder / name for name in RATINGS if (folder / name).is_file()), None)
    if path is None:
        raise DataNotFoundError(f"{folder} should have {' or '.join(RATINGS)}, and has none")
    raw = (
        read_npz(path, Columns())
        if path.suffix == ".npz"
        else read_text(path, MOVIELENS, header=False)
    )
    if not isinstance(raw, RawPairs) or raw.ratings is None:
        raise DataError(f"{path} should have ratings, and has users and items alone")
    if raw.users.dtype.kind not in "iu" or raw.items.dtype.kind not in "iu":
        raise DataError(f"{path} should have MovieLens' ids, integers, got others")
    return raw


def _table(path: Path, width: int) -> list[NDArray[Any]]:
    """Columns of users.dat or movies.dat; the first, ids, as int64."""
    if not path.is_file():
        raise DataNotFoundError(f"expected {path}, found none; it is in MovieLens-1M's archive")
    rows = [
        row for _, piece in pieces(path, width, "::", False, encoding="latin-1") for row in piece
    ]
    columns = [np.array(column) for column in zip(*rows, strict=True)]
    if not is_whole(columns[0]):
        raise DataError(f"{path} should start with whole numbers on each line, as ids")
    columns[0] = columns[0].astype(np.int64)
    if len(np.unique(columns[0])) != len(columns[0]):
        raise DataError(f"{path} should have each id once, got some twice")
    return columns


def _places(ids: NDArray[Any], known: NDArray[np.int64], source: str) -> NDArray[np.int64]:
    """Where each id is among those known."""
    order = np.argsort(known)
    at = order[np.minimum(np.searchsorted(known, ids, sorter=order), len(known) - 1)]
    if (missing := known[at] != ids).any():
        raise DataError(
            f"{source} should have every id that is rated, got none of {ids[missing][0]}"
        )
    return at
