"""Which user took which item, as dense ids: what splits, counts and graphs start from.

n is the number of interactions; a row of a table is one user or one item.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

from .arrays import read_arrays, write_arrays
from .errors import DataError
from .ids import check_ids, dense, frozen, rank_order, seconds, sorted_distinct

_log = logging.getLogger(__name__)

_MARKER = "bet_torchrec_interactions"
_VERSION = 1


@dataclass(frozen=True, eq=False, kw_only=True)
class Interactions:
    """Pairs of a user and an item, both as dense ids from 0.

    Attributes:
        users, items: int32 (n,).
        num_users, num_items: rows of the two tables. A row may have no interaction (count 0).
        timestamps: int64 (n,), Unix seconds; None where the data has none.
        test_mark: bool (n,), the pairs of the published test split; None where there is none.
        user_labels, item_labels: the original id (int64 or str) of every row, (num_users,) and
            (num_items,); None where the original ids are the dense ones.
        name: what reports call it.
        notes: what was dropped or changed on the way here, a sentence each.

    The arrays are read-only. A pair may occur twice only in interactions made by hand:
    ``from_pairs`` and the loaders drop repetitions, and sort by user and item, so that the same
    data has the same fingerprint and the same random split whatever file it came in.
    """

    users: NDArray[np.int32]
    items: NDArray[np.int32]
    num_users: int
    num_items: int
    timestamps: NDArray[np.int64] | None = None
    test_mark: NDArray[np.bool_] | None = None
    user_labels: NDArray[Any] | None = None
    item_labels: NDArray[Any] | None = None
    name: str = "interactions"
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for field, rows in (("users", self.num_users), ("items", self.num_items)):
            object.__setattr__(self, field, check_ids(getattr(self, field), rows, field))
        n = len(self.users)
        lengths: tuple[tuple[str, int, Any], ...] = (
            ("items", n, np.int32),
            ("timestamps", n, np.int64),
            ("test_mark", n, np.bool_),
            ("user_labels", self.num_users, None),
            ("item_labels", self.num_items, None),
        )
        for field, length, dtype in lengths:
            value = getattr(self, field)
            if value is None:
                continue
            array = np.asarray(value, dtype=dtype)
            if array.shape != (length,):
                raise DataError(f"{field} should have shape ({length},), got {array.shape}")
            if array.dtype.hasobject:
                array = array.astype(str)
            object.__setattr__(self, field, frozen(array))

    @classmethod
    def from_pairs(
        cls,
        users: ArrayLike,
        items: ArrayLike,
        *,
        timestamps: ArrayLike | None = None,
        test_mark: ArrayLike | None = None,
        densify: bool = True,
        name: str = "interactions",
        notes: tuple[str, ...] = (),
    ) -> Interactions:
        """Interactions from original ids: integers or strings, gaps and repetitions allowed.

        Args:
            users, items: (n,) original ids; whole numbers of 0 or more, or strings.
            timestamps: (n,) Unix seconds; fractions are cut off.
            test_mark: (n,) true for the pairs of a published test split.
            densify: give ids in sorted order to the users and items that occur. False keeps
                integer ids as they are, and those below the largest that never occur become rows
                of count 0.

        Of a pair that occurs several times the earliest is kept, and one that is not marked as
        test before one that is (what a model trains on is not tested); ``notes`` says how many
        went.

        Raises:
            DataError: no pairs, negative or missing ids, non-finite times, lengths that differ.
        """
        user_ids, user_labels, num_users = dense(users, "user", densify)
        item_ids, item_labels, num_items = dense(items, "item", densify)
        if len(user_ids) != len(item_ids):
            raise DataError(
                f"users and items should have one length, got {len(user_ids)} and {len(item_ids)}"
            )
        times = None if timestamps is None else seconds(timestamps, len(user_ids))
        marks = None if test_mark is None else np.asarray(test_mark, dtype=bool)
        if marks is not None and marks.shape != user_ids.shape:
            raise DataError(f"test_mark should have shape {user_ids.shape}, got {marks.shape}")
        keep = sorted_distinct(user_ids, item_ids, num_items, times, marks)
        dropped = len(user_ids) - len(keep)
        if dropped:
            note = f"{dropped:,} repeated pairs dropped, the earliest of each kept"
            _log.warning("%s: %s", name, note)
            notes = (*notes, note)
        return cls(
            users=user_ids[keep],
            items=item_ids[keep],
            num_users=num_users,
            num_items=num_items,
            timestamps=None if times is None else times[keep],
            test_mark=None if marks is None else marks[keep],
            user_labels=user_labels,
            item_labels=item_labels,
            name=name,
            notes=notes,
        )

    def __len__(self) -> int:
        return len(self.users)

    def __repr__(self) -> str:
        return (
            f"Interactions({self.name!r}: {self.num_users:,} users, {self.num_items:,} items, "
            f"{len(self):,} interactions)"
        )

    def counts(self) -> dict[str, NDArray[np.int64]]:
        """How often each row occurs: {"user": int64 (num_users,), "item": int64 (num_items,)}."""
        return {
            "user": np.bincount(self.users, minlength=self.num_users).astype(np.int64, copy=False),
            "item": np.bincount(self.items, minlength=self.num_items).astype(np.int64, copy=False),
        }

    def fingerprint(self) -> str:
        """16 hexadecimal digits of the SHA-256 of the pairs and the numbers of rows.

        Times, marks, name, labels and notes don't enter; the order of the interactions does.
        """
        digest = hashlib.sha256(f"{self.num_users},{self.num_items}".encode())
        for ids in (self.users, self.items):
            digest.update(np.ascontiguousarray(ids, dtype="<i4").tobytes())
        return digest.hexdigest()[:16]

    def subset(self, index: ArrayLike) -> Interactions:
        """The chosen interactions (positions, or a boolean mask); both tables keep all rows."""
        chosen = np.asarray(index)
        if chosen.size == 0 and chosen.dtype != bool:
            chosen = chosen.astype(np.int64)
        return replace(
            self,
            users=self.users[chosen],
            items=self.items[chosen],
            timestamps=None if self.timestamps is None else self.timestamps[chosen],
            test_mark=None if self.test_mark is None else self.test_mark[chosen],
        )

    def by_rank(self, counts: Mapping[str, ArrayLike] | None = None) -> Interactions:
        """Relabelled so that id 0 is the most frequent row of its table, ties by old id.

        Args:
            counts: {"user": (num_users,), "item": (num_items,)}; by default those of these
                interactions. To relabel a split use ``Split.by_rank``, which counts its training
                part alone.

        The interactions keep their order; the labels say what each id was originally.
        """
        counts = self.counts() if counts is None else counts
        new: dict[str, Any] = {}
        for table in ("user", "item"):
            rows = getattr(self, f"num_{table}s")
            order = rank_order(counts, table, rows)
            rank = np.empty(rows, dtype=np.int32)
            rank[order] = np.arange(rows, dtype=np.int32)
            labels = getattr(self, f"{table}_labels")
            new[f"{table}s"] = rank[getattr(self, f"{table}s")]
            new[f"{table}_labels"] = order.astype(np.int64) if labels is None else labels[order]
        return replace(self, **new)

    def csr(self) -> sparse.csr_matrix:
        """The (num_users, num_items) matrix, float32, 1 where a pair occurs; items sorted."""
        ones = np.ones(len(self), dtype=np.float32)
        matrix = sparse.csr_matrix(
            (ones, (self.users, self.items)), shape=(self.num_users, self.num_items)
        )
        matrix.sum_duplicates()
        matrix.data[:] = 1.0
        return matrix

    def summary(self) -> str:
        """A few lines for people: sizes, density, counts and what was dropped."""
        lines = [
            f"{self.name}: {self.num_users:,} users, {self.num_items:,} items, "
            f"{len(self):,} interactions ({len(self) / (self.num_users * self.num_items):.3%})"
        ]
        for table, counts in self.counts().items():
            lines.append(
                f"  per {table}: {counts.min():,} at least, {np.median(counts):,.0f} in the "
                f"median, {counts.max():,} at most; {np.count_nonzero(counts == 0):,} without any"
            )
        lines.append(f"  times: {'yes' if self.timestamps is not None else 'no'}")
        if self.test_mark is not None:
            lines.append(f"  published test part: {int(self.test_mark.sum()):,} interactions")
        lines.append(f"  fingerprint: {self.fingerprint()}")
        return "\n".join([*lines, *(f"  note: {note}" for note in self.notes)])

    def save(self, path: str | Path) -> Path:
        """Write one .npz file, without pickle; under a temporary name first, then renamed."""
        arrays: dict[str, Any] = {
            _MARKER: np.int64(_VERSION),
            "user": self.users,
            "item": self.items,
            "num_users": np.int64(self.num_users),
            "num_items": np.int64(self.num_items),
            "timestamp": self.timestamps,
            "test_mark": self.test_mark,
            "user_labels": self.user_labels,
            "item_labels": self.item_labels,
            "name": np.array(self.name),
            "notes": np.array(self.notes, dtype=str),
            "fingerprint": np.array(self.fingerprint()),
        }
        return write_arrays(Path(path), {k: v for k, v in arrays.items() if v is not None})

    @classmethod
    def load(cls, path: str | Path) -> Interactions:
        """What ``save`` wrote; DataError if the file is damaged or something else."""
        arrays = read_arrays(Path(path))
        if not cls.wrote(arrays):
            raise DataError(
                f"{path} should be written by Interactions.save, got arrays "
                f"{', '.join(sorted(arrays))}; bet_torchrec.load reads other npz files"
            )
        return cls.from_arrays(arrays, source=str(path))

    @staticmethod
    def wrote(arrays: Mapping[str, NDArray[Any]]) -> bool:
        """Whether ``save`` wrote the file of these arrays."""
        return _MARKER in arrays

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]], *, source: str) -> Interactions:
        """From what ``save`` wrote, checked against its fingerprint. source: for errors."""
        try:
            if (version := int(arrays[_MARKER])) > _VERSION:
                raise DataError(
                    f"{source} has format version {version}, this reads up to {_VERSION}; upgrade "
                    "bet_torchrec"
                )
            interactions = cls(
                users=arrays["user"],
                items=arrays["item"],
                num_users=int(arrays["num_users"]),
                num_items=int(arrays["num_items"]),
                timestamps=arrays.get("timestamp"),
                test_mark=arrays.get("test_mark"),
                user_labels=arrays.get("user_labels"),
                item_labels=arrays.get("item_labels"),
                name=str(arrays["name"]),
                notes=tuple(str(note) for note in arrays["notes"]),
            )
            fingerprint = str(arrays["fingerprint"])
        except DataError:
            raise
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise DataError(f"{source} is damaged: {type(error).__name__} {error}") from error
        if interactions.fingerprint() != fingerprint:
            raise DataError(f"{source} is damaged: its content does not match its fingerprint")
        return interactions
