"""Which column means what, and the columns of a file before they become ``Interactions``."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import DataError
from .interactions import Interactions

_log = logging.getLogger(__name__)

Column = str | int | None

# Compared in lower case without anything but letters and digits, up to a colon (RecBole's types).
KNOWN: dict[str, tuple[str, ...]] = {
    "user": ("user", "users", "userid", "uid"),
    "item": ("item", "items", "itemid", "iid", "movie", "movieid", "business", "businessid"),
    "rating": ("rating", "ratings", "score", "stars"),
    "timestamp": ("timestamp", "timestamps", "time", "ts"),
    "test": ("lightgcntest", "testmark", "test"),
}


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Where a file's columns are: names, or positions from 0; None finds them by known names."""

    user: Column = None
    item: Column = None
    rating: Column = None
    timestamp: Column = None

    def named(self) -> bool:
        """Whether any is given by name."""
        return any(isinstance(column, str) for column in self.chosen().values())

    def chosen(self) -> dict[str, Column]:
        return {
            "user": self.user,
            "item": self.item,
            "rating": self.rating,
            "timestamp": self.timestamp,
        }


@dataclass(frozen=True, eq=False, kw_only=True)
class RawPairs:
    """A file's columns as they are in it, (n,) each."""

    users: NDArray[Any]
    items: NDArray[Any]
    ratings: NDArray[Any] | None = None
    timestamps: NDArray[Any] | None = None
    test_mark: NDArray[Any] | None = None
    notes: tuple[str, ...] = ()

    def interactions(
        self, *, name: str, min_rating: float | None = None, densify: bool = True
    ) -> Interactions:
        """Interactions of these pairs, those rated below ``min_rating`` left out."""
        fields = {
            "users": self.users,
            "items": self.items,
            "timestamps": self.timestamps,
            "test_mark": self.test_mark,
        }
        notes = self.notes
        if self.ratings is not None:
            ratings = self._finite(name)
            if min_rating is not None:
                keep = ratings >= min_rating
                if not keep.any():
                    raise DataError(
                        f"{name}: no rating is {min_rating:g} or more; they go from "
                        f"{ratings.min():g} to {ratings.max():g}"
                    )
                fields = {k: None if v is None else v[keep] for k, v in fields.items()}
                gone = {
                    side: len(np.unique(ids)) - len(np.unique(ids[keep]))
                    for side, ids in (("users", self.users), ("items", self.items))
                }
                note = (
                    f"{int((~keep).sum()):,} interactions rated below {min_rating:g} left out, and "
                    f"with them {gone['users']:,} users and {gone['items']:,} items that have no "
                    "other"
                )
                _log.info("%s: %s", name, note)
                notes = (*notes, note)
        elif min_rating is not None:
            raise DataError(
                f"{name}: min_rating={min_rating:g} needs a column of ratings, and none was found; "
                "say which by rating=, a name or a position from 0"
            )
        try:
            return Interactions.from_pairs(
                fields.pop("users"),  # type: ignore[arg-type]
                fields.pop("items"),  # type: ignore[arg-type]
                **fields,
                densify=densify,
                name=name,
                notes=notes,
            )
        except DataError as error:
            raise DataError(f"{name}: {error}") from error

    def _finite(self, name: str) -> NDArray[np.float64]:
        ratings = np.asarray(self.ratings)
        if ratings.dtype.kind not in "iufb":
            raise DataError(f"{name}: ratings should be numbers, got {ratings.dtype}")
        ratings = ratings.astype(np.float64)
        if not np.isfinite(ratings).all():
            bad = int(np.argmin(np.isfinite(ratings)))
            raise DataError(
                f"{name}: ratings should be finite, got {ratings[bad]} at interaction {bad}; "
                "remove such rows"
            )
        return ratings


def plain(name: str) -> str:
    """A column's name as ``KNOWN`` spells it."""
    return re.sub(r"[^a-z0-9]", "", name.split(":")[0].lower())


def guess(names: Sequence[str], what: str) -> int | None:
    """The position of the column that by its name is a user, item, ...; None if there is none."""
    known = {plain(name): at for at, name in reversed(list(enumerate(names)))}
    return next((known[name] for name in KNOWN[what] if name in known), None)


def find(names: Sequence[str], column: Column, what: str, source: str) -> int | None:
    """The position of a column among these names: the chosen one, else by its known name."""
    if column is None:
        return guess(names, what)
    if isinstance(column, str):
        if column in names:
            return list(names).index(column)
        same = [at for at, name in enumerate(names) if plain(name) == plain(column)]
        if len(same) == 1:
            return same[0]
        raise DataError(f"{source} should have a column {column!r}, got {', '.join(names)}")
    return position(column, len(names), what, source)


def position(column: int, width: int, what: str, source: str) -> int:
    """A position checked against the number of columns."""
    if not 0 <= column < width:
        raise DataError(
            f"{source}: the {what} column should be from 0 to {width - 1}, got {column}"
        )
    return column
