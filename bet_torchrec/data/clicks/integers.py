"""Integer features as values of a field: PEP's rule, after the winners of Criteo's challenge.

floor(log(v)^2) above 2, v - 2 below: large numbers share a value, small ones have their own.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import DataError


def log_square(cell: str) -> str:
    """The value of a cell that holds an integer; an empty cell is a value of its own."""
    if cell == "":
        return ""
    value = int(cell)
    return str(int(math.log(value) ** 2) if value > 2 else value - 2)


def log_squares(values: ArrayLike) -> NDArray[np.int64]:
    """The same for integers (n,)."""
    array = np.asarray(values)
    if array.size and array.dtype.kind not in "iu":
        raise DataError(f"integer features should be integers, got {array.dtype}")
    logs = np.log(np.maximum(array, 3).astype(np.float64))
    return np.where(array > 2, np.floor(logs**2), array - 2.0).astype(np.int64)
