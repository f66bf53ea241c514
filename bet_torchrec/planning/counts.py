"""How often each row of a table occurs in training data, in rank order.

Kept as distinct counts and how many rows have each: a table of 10^9 rows has only some ten
thousand distinct counts, and nothing in planning needs more.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InvalidInputError


@dataclass(frozen=True, eq=False)
class RowCounts:
    """One table's counts in rank order: most frequent first, ties by id.

    values: int64 (k,) distinct counts, strictly falling. multiplicity: int64 (k,) rows having it.
    order: int32 (rows,), order[rank] = id; None where ids are ranks already.
    """

    values: NDArray[np.int64]
    multiplicity: NDArray[np.int64]
    order: NDArray[np.int32] | None = None

    def __post_init__(self) -> None:
        values = _integers(self.values, "values")
        multiplicity = _integers(self.multiplicity, "multiplicity")
        if len(values) != len(multiplicity):
            raise InvalidInputError(
                "values and multiplicity should have one length, "
                f"got {len(values)} and {len(multiplicity)}"
            )
        if len(values) == 0:
            raise InvalidInputError("counts should cover at least one row, got none")
        if values[-1] < 0 or (values[1:] >= values[:-1]).any():
            raise InvalidInputError(
                "values should fall strictly and end at 0 or more; RowCounts.from_distinct sorts"
            )
        if multiplicity.min() < 1:
            raise InvalidInputError(
                f"multiplicity should be at least 1 everywhere, got {multiplicity.min()}; "
                "leave counts that no row has out"
            )
        order = self.order
        if order is not None:
            ids = _integers(order, "order")
            check_order(ids, int(multiplicity.sum()))
            order = _frozen(ids.astype(np.int32))
        object.__setattr__(self, "values", _frozen(values))
        object.__setattr__(self, "multiplicity", _frozen(multiplicity))
        object.__setattr__(self, "order", order)

    @classmethod
    def from_rows(cls, counts: Any) -> RowCounts:
        """From one integer a row, in id order: an array, a torch tensor or a sequence.

        Raises:
            InvalidInputError: not one-dimensional, empty, not integers, or negative.
        """
        by_id = _integers(counts, "counts")
        if len(by_id) == 0:
            raise InvalidInputError("counts should cover at least one row, got none")
        if by_id.min() < 0:
            row = int(by_id.argmin())
            raise InvalidInputError(f"counts should be 0 or more, got {by_id[row]} for row {row}")
        order = None
        if (by_id[1:] > by_id[:-1]).any():
            order = np.argsort(-by_id, kind="stable").astype(np.int32)
            by_id = by_id[order]
        starts = np.flatnonzero(np.concatenate([[True], by_id[1:] != by_id[:-1]]))
        return cls(by_id[starts], np.diff(starts, append=len(by_id)), order)

    @classmethod
    def from_distinct(cls, values: Any, multiplicity: Any) -> RowCounts:
        """From distinct counts and how many rows have each, ids being ranks: no per-row memory.

        Args:
            values: (k,) distinct integers in any order. multiplicity: (k,) rows having each.
        """
        values, multiplicity = _integers(values, "values"), _integers(multiplicity, "multiplicity")
        if len(values) != len(multiplicity):
            return cls(values, multiplicity)  # says what is wrong
        falling = np.argsort(-values, kind="stable")
        return cls(values[falling], multiplicity[falling])

    @cached_property
    def ends(self) -> NDArray[np.int64]:
        """int64 (k,): ranks below ends[j] have a count of at least values[j]."""
        return _frozen(np.cumsum(self.multiplicity))

    @property
    def rows(self) -> int:
        """Rows of the table."""
        return int(self.ends[-1])

    @cached_property
    def total(self) -> int:
        """All occurrences."""
        pairs = zip(self.values.tolist(), self.multiplicity.tolist(), strict=True)
        return sum(value * rows for value, rows in pairs)

    def at_ranks(self, ranks: Any) -> NDArray[np.int64]:
        """Counts at these ranks, int64, same shape."""
        return self.values[np.searchsorted(self.ends, np.asarray(ranks), side="right")]

    def by_id(self) -> NDArray[np.int64]:
        """(rows,) the count of each row, in id order; memory a row."""
        by_rank = np.repeat(self.values, self.multiplicity)
        if self.order is None:
            return by_rank
        found = np.empty_like(by_rank)
        found[self.order] = by_rank
        return found

    @cached_property
    def _digest(self) -> str:
        digest = hashlib.sha256()
        for array in (self.values, self.multiplicity, self.order):
            part = b"ranked" if array is None else array.tobytes()
            digest.update(len(part).to_bytes(8, "little") + part)
        return digest.hexdigest()[:16]

    def fingerprint(self) -> str:
        """16 hex digits that tell two tables' counts (and the order of their rows) apart."""
        return self._digest


def check_order(order: NDArray[Any], rows: int) -> None:
    """Raise InvalidInputError unless order is a permutation of range(rows)."""
    if order.shape != (rows,):
        raise InvalidInputError(f"order should hold {rows} ids, got an array of {order.shape}")
    seen = np.zeros(rows, dtype=bool)
    if order.min() < 0 or order.max() >= rows:
        raise InvalidInputError(
            f"order should hold ids 0 to {rows - 1}, got {order.min()} to {order.max()}"
        )
    seen[order] = True
    if not seen.all():
        raise InvalidInputError(
            f"order should name every id once, got none of id {int((~seen).argmax())}"
        )


def _integers(values: Any, what: str) -> NDArray[np.int64]:
    """A 1-d int64 copy of an array, a tensor or a sequence."""
    try:
        if hasattr(values, "detach"):  # a torch tensor, on any device
            values = values.detach().cpu().numpy()
        array = np.asarray(values)
    except (ValueError, TypeError, RuntimeError, OverflowError) as error:
        raise InvalidInputError(
            f"{what} should be one integer a row (array, tensor, sequence), got "
            f"{type(values).__name__}: {error}"
        ) from None
    if array.ndim != 1:
        raise InvalidInputError(
            f"{what} should be one-dimensional, one integer a row, got shape {array.shape}"
        )
    if array.size and array.dtype.kind not in "iu":
        raise InvalidInputError(
            f"{what} should be integers, got {array.dtype}; round them and cast to int64"
        )
    if array.dtype == np.uint64 and array.size and array.max() > np.iinfo(np.int64).max:
        raise InvalidInputError(f"{what} should fit int64, got {array.max()}")
    return array.astype(np.int64)


def _frozen(array: Any) -> Any:
    array.setflags(write=False)
    return array
