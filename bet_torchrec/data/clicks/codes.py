"""Columns of values, block by block, to a click log."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from ..text import is_whole
from .check import check_both_classes
from .fields import Field, check_names
from .log import ClickLog
from .store import Bag, Store
from .vocabulary import Vocabulary

_LONGEST = 200  # characters of a value

Read = Callable[[str], str]
"""What a cell stands for: its value in the vocabulary. ValueError or DataError where nothing."""


class Codes(dict[Any, int]):
    """The code of every cell of a field, given out from 1 as they come."""

    def __init__(self, read: Read | None = None) -> None:
        super().__init__()
        self._read = read
        self.of_value: dict[Any, int] = self if read is None else {}

    def __missing__(self, cell: Any) -> int:
        # Once a distinct cell, however often it comes.
        if isinstance(cell, str) and len(cell) > _LONGEST:
            raise DataError(
                f"values should be short, got {len(cell)} characters ({cell[:40]!r}...); is it "
                "the right column?"
            )
        if self._read is None:
            code = len(self) + 1
        else:
            code = self.of_value.setdefault(self._read(cell), len(self.of_value) + 1)
        self[cell] = code
        return code

    def array(self, cells: Sequence[Any]) -> NDArray[np.int32]:
        """int32, one code a cell; tens of millions a second."""
        return np.fromiter(map(self.__getitem__, cells), dtype=np.int32, count=len(cells))


class Spool:
    """Blocks of one array as they come: in memory, or in a nameless file for what is larger."""

    def __init__(self, dtype: Any, width: int | None, folder: Path | None) -> None:
        self._dtype, self._width, self._rows = np.dtype(dtype), width, 0
        self._blocks: list[NDArray[Any]] = []
        self._file = None if folder is None else tempfile.TemporaryFile(dir=folder)  # noqa: SIM115

    def add(self, block: NDArray[Any]) -> None:
        """Append rows."""
        block = np.ascontiguousarray(block, dtype=self._dtype)
        self._rows += len(block)
        if self._file is None:
            self._blocks.append(block)
        else:
            self._file.write(block.data)

    def array(self) -> NDArray[Any]:
        """All rows; over the file where there is one, which goes when the array does."""
        shape = (self._rows,) if self._width is None else (self._rows, self._width)
        if self._file is None or 0 in shape:
            whole = np.concatenate(self._blocks) if self._blocks else np.empty(0, self._dtype)
            return whole.reshape(shape)
        self._file.flush()
        return np.memmap(self._file, dtype=self._dtype, mode="r", shape=shape)


class Builder:
    """Collects a log's columns and gives every value of every field a row of its own.

    Rows are in sorted order of the values, whatever order they came in, from 1; row 0 is out of
    vocabulary and empty so far. Values are what cells are, or what ``reads`` makes of them.

    Args:
        single, multi, dense: names of the fields and columns. reads: {field: what a cell means}.
        numbers: make a vocabulary of integers where all values are whole numbers.
        spool: folder for arrays that are larger than memory; None keeps them in memory.
    """

    def __init__(
        self,
        single: Sequence[str],
        *,
        multi: Sequence[str] = (),
        dense: Sequence[str] = (),
        times: bool = False,
        reads: Mapping[str, Read] | None = None,
        numbers: bool = False,
        spool: Path | None = None,
        name: str,
    ) -> None:
        check_names([*single, *multi], f"{name}: fields")
        check_names(dense, f"{name}: dense columns")
        self.single, self.multi, self.dense_names = tuple(single), tuple(multi), tuple(dense)
        self.name, self._numbers = name, numbers
        self.codes = {field: Codes((reads or {}).get(field)) for field in (*single, *multi)}
        self._labels = Spool("<f4", None, spool)
        self._ids = Spool("<i4", len(single), spool)
        self._dense = Spool("<f4", len(dense), spool) if dense else None
        self._times = Spool("<i8", None, spool) if times else None
        self._bags = {field: Spool("<i4", None, spool) for field in multi}
        self._lengths = {field: Spool("<i8", None, spool) for field in multi}
        self.examples = 0

    def add(
        self,
        labels: NDArray[Any],
        ids: NDArray[np.int32],
        *,
        bags: Mapping[str, tuple[NDArray[np.int32], NDArray[np.int64]]] | None = None,
        dense: NDArray[Any] | None = None,
        times: NDArray[Any] | None = None,
    ) -> None:
        """Some examples, n of them, as the codes of their cells.

        Args:
            labels: (n,). ids: (n, S) codes, a column a single-hot field. bags: {multi-hot field:
                (codes, lengths (n,))}. dense: (n, K). times: (n,).
        """
        self._labels.add(labels)
        self._ids.add(ids)
        for name, (codes, lengths) in (bags or {}).items():
            self._bags[name].add(codes)
            self._lengths[name].add(lengths)
        if self._dense is not None and dense is not None:
            self._dense.add(dense)
        if self._times is not None and times is not None:
            self._times.add(times)
        self.examples += len(labels)

    def finish(self, notes: Iterable[str] = ()) -> ClickLog:
        """The log. DataError where there are no examples or all have one label."""
        if not self.examples:
            raise DataError(f"{self.name}: expected at least one example, got none")
        labels = self._labels.array()
        check_both_classes(labels, self.name)
        fields, maps, known = [], {}, {}
        for name, codes in self.codes.items():
            vocabulary, maps[name] = self._vocabulary(name, codes)
            known[name] = vocabulary
            fields.append(Field(name, vocabulary.num_rows, name in self.multi))
        bags = {}
        for name in self.multi:
            offsets = np.concatenate(([0], np.cumsum(self._lengths[name].array())))
            bags[name] = Bag(self._bags[name].array(), offsets)
        log = ClickLog(
            fields=tuple(fields),
            store=Store(
                labels=labels,
                ids=self._ids.array(),
                bags=bags,
                dense=None if self._dense is None else self._dense.array(),
                timestamps=None if self._times is None else self._times.array(),
            ),
            rows=slice(0, self.examples),
            dense_names=self.dense_names,
            name=self.name,
            notes=tuple(notes),
        )
        return log.relabelled(maps, fields, known)

    def _vocabulary(self, name: str, codes: Codes) -> tuple[Vocabulary, NDArray[np.int32]]:
        """Sorted values, and the row of each code."""
        cells = np.array(list(codes.of_value), dtype=None if codes.of_value else np.int64)
        if self._numbers and cells.dtype.kind == "U" and is_whole(cells):
            cells = cells.astype(np.int64)
        vocabulary = Vocabulary.of(name, cells)
        rows = np.zeros(len(cells) + 1, dtype=np.int32)
        rows[1:] = vocabulary.encode(cells)
        return vocabulary, rows
