"""Where a checkpoint keeps which rectangle of which tensor, in plain numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ...errors import BetError

_MOST_CELLS = 1 << 26  # of the grid that a tensor's pieces are checked on


class DamagedCheckpointError(BetError, ValueError):
    """Not all of a checkpoint is there, or what is there is none, or not a trustworthy one."""


@dataclass(frozen=True)
class Piece:
    """A rectangle of a tensor: where it begins, how large it is, and which file has it."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    dtype: str
    file: str


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a checkpoint.

    Raises:
        ValueError: pieces that do not make up the whole, each entry once.
    """

    shape: tuple[int, ...]
    pieces: tuple[Piece, ...]

    def __post_init__(self) -> None:
        dims = range(len(self.shape))
        for piece in self.pieces:
            if len(piece.offsets) != len(self.shape) or len(piece.sizes) != len(self.shape):
                raise ValueError(f"pieces of {self.shape} should have {len(self.shape)} dimensions")
            within = (
                0 <= start < end <= n
                for n, (start, end) in zip(self.shape, _spans(piece), strict=True)
            )
            if not all(within):
                raise ValueError(f"a piece of {self.shape} should lie in it, got {piece}")
        # The grid of all places where a piece begins or ends: each cell belongs to one piece.
        cuts = [
            np.unique([0, self.shape[d], *(n for p in self.pieces for n in _spans(p)[d])])
            for d in dims
        ]
        grid = [len(cut) - 1 for cut in cuts]
        if math.prod(grid) > _MOST_CELLS:
            raise ValueError(f"{len(self.pieces)} pieces are cut too unevenly")
        owners = np.zeros(grid, dtype=np.int64)
        for piece in self.pieces:
            at = (np.searchsorted(cuts[d], _spans(piece)[d]) for d in dims)
            owners[tuple(slice(*ends) for ends in at)] += 1
        if (owners != 1).any():
            raise ValueError(f"{len(self.pieces)} pieces do not make up the shape {self.shape}")


def _spans(piece: Piece) -> list[tuple[int, int]]:
    """Where it begins and ends, by dimension."""
    return [(start, start + n) for start, n in zip(piece.offsets, piece.sizes, strict=True)]
