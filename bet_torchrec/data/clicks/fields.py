"""What a click log's columns are: fields of ids, each a table's worth of rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import DataError


@dataclass(frozen=True)
class Field:
    """A field of ids: one table of a click model.

    name: no two of a log are alike. rows: of its table, the out-of-vocabulary row among them.
    multi_hot: an example has any number of ids, or none, not exactly one.
    oov: the row of values that are not in the vocabulary; 0 until ``ClickSplit.by_rank`` moves it
    to its rank.
    """

    name: str
    rows: int
    multi_hot: bool = False
    oov: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise DataError(f"a field's name should be a word, got {self.name!r}")
        if not 1 <= self.rows <= np.iinfo(np.int32).max:
            raise DataError(
                f"field {self.name!r}: rows should be from 1 to 2^31 - 1, got {self.rows}"
            )
        if not 0 <= self.oov < self.rows:
            raise DataError(
                f"field {self.name!r}: oov should be a row from 0 to {self.rows - 1}, got "
                f"{self.oov}"
            )


def check_names(names: Sequence[str], what: str) -> None:
    """DataError where a name occurs twice."""
    twice = sorted({name for name in names if list(names).count(name) > 1})
    if twice:
        raise DataError(f"{what} should have different names, got twice: {', '.join(twice)}")
