"""Any embedding module with its tables in axes of their own.

row = coordinates[:size] @ axes[:size]: the inner module holds coordinates, whose columns are of
falling worth, and knows nothing of it; neither does the model. One small product a lookup.

Every linear factorisation of a table is one of these: principal axes of a trained table, kept
fixed or trained on ("full rows, turned"); a narrow table and a map that is learnt from scratch
(``Basis`` drawn by ``orthonormal_basis``); MLET's training of wide factors, more axes than columns,
multiplied out afterwards (``full_tables``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..axes import Basis
from ..errors import InvalidInputError

if TYPE_CHECKING:
    from ..models.protocol import EmbeddingModule


class TurnedEmbedding(nn.Module):
    """Tables read through their axes; fits ``models.EmbeddingModule``.

    Args:
        inner: an embedding module of coordinates; trained, if it is an ``nn.Module``. No table may
            be wider in use than its axes are many.
        bases: {table: basis}, all of one dim; tables without one are read as they are.
        train: whether the axes are trained with the rows, and so are parameters, or stay fixed.

    width: the bases' dim, whatever the inner module's is.
    """

    def __init__(
        self, inner: EmbeddingModule, bases: Mapping[str, Basis], *, train: bool = False
    ) -> None:
        super().__init__()
        dims = {basis.dim for basis in bases.values()}
        if len(dims) != 1:
            raise InvalidInputError(f"expected bases of one common dim, got {sorted(dims)}")
        self.inner, self.width = inner, dims.pop()
        self._names = tuple(bases)
        for number, basis in enumerate(bases.values()):
            if train:
                self.register_parameter(f"axes_{number}", nn.Parameter(basis.axes.clone()))
            else:
                self.register_buffer(f"axes_{number}", basis.axes.clone())

    def axes(self, name: str) -> Tensor | None:
        """(w, width) of a table, or None of one that is read as it is."""
        if name not in self._names:
            return None
        axes: Tensor = getattr(self, f"axes_{self._names.index(name)}")
        return axes

    def bases(self) -> dict[str, Basis]:
        """The axes as they are now."""
        return {name: Basis(_there(self.axes(name))) for name in self._names}

    def num_weights(self) -> int:
        """Entries of all axes: what a plan in parameters counts beside the inner module's."""
        return sum(_there(self.axes(name)).numel() for name in self._names)

    def table(self, name: str) -> Tensor:
        return self._turned(name, self.inner.table(name))

    def lookup(self, name: str, ids: Tensor) -> Tensor:
        return self._turned(name, self.inner.lookup(name, ids))

    @torch.no_grad()
    def full_tables(self, width: int | None = None) -> dict[str, Tensor]:
        """Copies of the bases' tables as they read, zero-padded to ``width`` columns if given."""
        missing = 0 if width is None else width - self.width
        if missing < 0:
            raise InvalidInputError(f"width should be at least {self.width}, got {width}")
        return {name: F.pad(self.table(name), (0, missing)).clone() for name in self._names}

    def _turned(self, name: str, coordinates: Tensor) -> Tensor:
        axes = self.axes(name)
        if axes is None:
            missing = self.width - coordinates.shape[-1]
            return F.pad(coordinates, (0, missing)) if missing else coordinates
        shared = min(len(axes), coordinates.shape[-1])  # columns beyond the axes are zeros
        return coordinates[..., :shared] @ axes[:shared]

    def extra_repr(self) -> str:
        return f"axes of {', '.join(self._names)}, width {self.width}"


def orthonormal_basis(width: int, dim: int, generator: torch.Generator | None = None) -> Basis:
    """Axes to begin training a factorisation from: orthonormal as far as there is room.

    width: axes. dim: columns of the rows. Above ``dim`` axes their columns are orthonormal instead.
    """
    drawn = torch.randn(max(width, dim), min(width, dim), generator=generator, dtype=torch.float64)
    frame = torch.linalg.qr(drawn).Q
    return Basis(frame if width > dim else frame.T)


def _there(axes: Tensor | None) -> Tensor:
    assert axes is not None
    return axes.detach()
