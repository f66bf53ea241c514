"""Which value of a field has which row of its table."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..arrays import read_arrays, write_arrays
from ..errors import DataError

_MARKER = "bet_torchrec_vocabulary"
_VERSION = 1


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """Values of one field and their rows; whatever else comes gets the row ``oov``.

    field: its name. values: (V,) int64 or str, sorted, all different. rows: int32 (V,), the row
    of each. num_rows: of the table, V + 1.
    """

    field: str
    values: NDArray[Any]
    rows: NDArray[np.int32]
    oov: int = 0

    def __post_init__(self) -> None:
        if self.values.dtype.kind not in "iU" or self.values.shape != self.rows.shape:
            raise DataError(
                f"vocabulary of {self.field!r}: expected integers or strings with a row each, got "
                f"{self.values.dtype} {self.values.shape} and rows {self.rows.shape}"
            )
        if (self.values[1:] <= self.values[:-1]).any():
            raise DataError(f"vocabulary of {self.field!r}: values should be sorted and different")
        seen = np.bincount(np.append(self.rows, self.oov), minlength=self.num_rows)
        if len(seen) != self.num_rows or (seen != 1).any():
            raise DataError(
                f"vocabulary of {self.field!r}: rows and oov should be 0 to {self.num_rows - 1}, "
                "each once"
            )

    @classmethod
    def of(cls, field: str, values: ArrayLike) -> Vocabulary:
        """Rows 1, 2, ... for these values in sorted order. values: integers or strings."""
        array = np.unique(np.asarray(values))
        if array.size == 0:
            array = array.astype(np.int64)
        if array.dtype.kind == "u":
            array = array.astype(np.int64)
        return cls(field, array, np.arange(1, len(array) + 1, dtype=np.int32))

    @property
    def num_rows(self) -> int:
        """Rows of the table, the out-of-vocabulary one among them."""
        return len(self.values) + 1

    def encode(self, values: ArrayLike) -> NDArray[np.int32]:
        """The row of each value, same shape; ``oov`` where it has none.

        Raises:
            DataError: strings for a vocabulary of integers, or the other way round.
        """
        array = np.asarray(values)
        if not len(self.values) or not array.size:
            return np.full(array.shape, self.oov, dtype=np.int32)
        kind = "i" if array.dtype.kind == "u" else array.dtype.kind
        if kind != self.values.dtype.kind:
            raise DataError(
                f"vocabulary of {self.field!r} is of {self.values.dtype}, got {array.dtype}"
            )
        at = np.minimum(np.searchsorted(self.values, array), len(self.values) - 1)
        found = self.values[at] == array
        return np.where(found, self.rows[at], np.int32(self.oov)).astype(np.int32)

    def decode(self, rows: ArrayLike) -> list[Any]:
        """The value of each row (n,), None for ``oov``."""
        value: list[Any] = [None] * self.num_rows
        for row, one in zip(self.rows.tolist(), self.values.tolist(), strict=True):
            value[row] = one
        return [value[row] for row in np.asarray(rows).tolist()]

    def kept(self, new: NDArray[np.int32], oov: int) -> Vocabulary:
        """Under other rows. new: (num_rows,) the new row of each; values sent to oov go."""
        rows = new[self.rows]
        keep = rows != oov
        return replace(self, values=self.values[keep], rows=rows[keep], oov=oov)

    def save(self, path: str | Path) -> Path:
        """Write one .npz file, without pickle, under a temporary name first."""
        return write_arrays(Path(path), self.arrays())

    @classmethod
    def load(cls, path: str | Path) -> Vocabulary:
        """What ``save`` wrote; DataError where the file is damaged or something else."""
        return cls.from_arrays(read_arrays(Path(path)), str(path))

    def arrays(self) -> dict[str, NDArray[Any]]:
        """What a file holds."""
        return {
            _MARKER: np.array(_VERSION),
            "field": np.array(self.field),
            "values": self.values,
            "rows": self.rows,
            "oov": np.array(self.oov),
        }

    @classmethod
    def from_arrays(cls, arrays: dict[str, NDArray[Any]], source: str) -> Vocabulary:
        """From what ``arrays`` gave. source: for errors."""
        if _MARKER not in arrays or int(arrays[_MARKER]) > _VERSION:
            raise DataError(
                f"{source} should be a vocabulary of version {_VERSION} or older, got arrays "
                f"{', '.join(sorted(arrays))}"
            )
        try:
            return cls(
                str(arrays["field"]),
                arrays["values"],
                arrays["rows"].astype(np.int32),
                int(arrays["oov"]),
            )
        except KeyError as error:
            raise DataError(f"{source} is damaged: it has no {error}") from error
