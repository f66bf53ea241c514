"""Any embedding module with its tables in axes of their own.

row = coordinates[:size] @ axes[:size]: the inner module holds coordinates, whose columns are of
falling worth, and knows nothing of it; neither does the model. One small product a lookup.

Every linear factorisation of a table is one of these: principal axes of a trained table, kept
fixed or trained on ("full rows, turned"); a narrow table and a map that is learnt from scratch
(``Basis`` drawn by ``orthonormal_basis``); MLET's training of wide factors, more axes than columns,
multiplied out afterwards (``full_tables``).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike
from torch import Tensor, nn

from ..axes import Basis, lookups, principal_basis
from ..errors import InvalidInputError
from ..planning.counts import RowCounts
from ..planning.tables import TableSpec
from .sized_embedding import SizedEmbedding

if TYPE_CHECKING:
    from ..models.protocol import EmbeddingModule


class TurnedEmbedding(nn.Module):
    """Tables read through their axes; fits ``models.EmbeddingModule``.

    Args:
        inner: an embedding module of coordinates; trained, if it is an ``nn.Module``. No table may
            be wider in use than its axes are many.
        bases: {table: basis}; tables without one are read as they are.
        train: whether the axes are trained with the rows, and so are parameters, or stay fixed; or
            the names of the tables whose axes are.

    width: the largest dim of the bases, or the inner module's width where a table is read as it is
        and that is larger; narrower rows are zero-padded.
    """

    def __init__(
        self,
        inner: EmbeddingModule,
        bases: Mapping[str, Basis],
        *,
        train: bool | Collection[str] = False,
    ) -> None:
        super().__init__()
        self.inner = inner
        self._names = tuple(bases)
        plain = set(getattr(inner, "names", ())) - set(bases)
        self.width = max([basis.dim for basis in bases.values()] + [inner.width] * bool(plain))
        for number, (name, basis) in enumerate(bases.items()):
            if train if isinstance(train, bool) else name in train:
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

    @property
    def names(self) -> tuple[str, ...]:
        """The tables."""
        inner: Any = self.inner
        return tuple(inner.names)

    def num_weights(self) -> int:
        """Entries of all tables and axes: what a plan in parameters counts."""
        inner: Any = self.inner
        axes = sum(_there(self.axes(name)).numel() for name in self._names)
        return int(inner.num_weights()) + axes

    def table(self, name: str) -> Tensor:
        return self._turned(name, self.inner.table(name))

    def lookup(self, name: str, ids: Tensor) -> Tensor:
        return self._turned(name, self.inner.lookup(name, ids))

    @torch.no_grad()
    def full_tables(self, width: int | None = None) -> dict[str, Tensor]:
        """Copies of the tables as they read, zero-padded to ``width`` columns if given."""
        missing = 0 if width is None else width - self.width
        if missing < 0:
            raise InvalidInputError(f"width should be at least {self.width}, got {width}")
        names = getattr(self.inner, "names", self._names)
        return {name: F.pad(self.table(name), (0, missing)).clone() for name in names}

    def draw(self, std: float, generator: torch.Generator | None = None) -> TurnedEmbedding:
        """Draw every coordinate from N(0, std^2), the axes stay; returns itself."""
        inner: Any = self.inner
        inner.draw(std, generator)
        return self

    @torch.no_grad()
    def load_prefix(
        self, tables: Mapping[str, Tensor], counts: Mapping[str, RowCounts] | None = None
    ) -> TurnedEmbedding:
        """Fill from full tables (rows, d): principal axes, and each row's first coordinates.

        counts: that the axes are weighted by; all rows alike without.
        """
        inner: Any = self.inner
        stored = dict(tables)
        for name in self._names:
            axes = _there(self.axes(name))
            rows = tables[name][:, : axes.shape[1]]
            weights = lookups(None if counts is None else counts[name])
            basis = principal_basis(rows, weights, width=len(axes))
            axes.copy_(basis.axes)
            stored[name] = basis.coordinates(rows)
        inner.load_prefix(stored)
        return self

    @torch.no_grad()
    def quantised(self, precisions: Mapping[str, ArrayLike | str]) -> TurnedEmbedding:
        """As it reads after row-wise quantisation of what is stored, the axes in fp32."""
        inner: Any = self.inner
        return TurnedEmbedding(inner.quantised(precisions), self.bases())

    def around(self, inner: EmbeddingModule) -> TurnedEmbedding:
        """The same axes, shared, over other rows of these tables."""
        trained = [name for name in self._names if isinstance(self.axes(name), nn.Parameter)]
        made = TurnedEmbedding(inner, self.bases(), train=trained)
        made.width = self.width
        for number in range(len(self._names)):
            setattr(made, f"axes_{number}", getattr(self, f"axes_{number}"))
        return made

    def _turned(self, name: str, coordinates: Tensor) -> Tensor:
        axes, rows = self.axes(name), coordinates
        if axes is not None:
            shared = min(len(axes), coordinates.shape[-1])  # columns beyond the axes are zeros
            rows = coordinates[..., :shared] @ axes[:shared]
        missing = self.width - rows.shape[-1]
        return F.pad(rows, (0, missing)) if missing else rows

    def extra_repr(self) -> str:
        return f"axes of {', '.join(self._names)}, width {self.width}"


def planned_embedding(plan: Any, tables: Sequence[TableSpec]) -> SizedEmbedding | TurnedEmbedding:
    """Empty tables of a plan's sizes; those with a basis as coordinates, in unit axes."""
    inner = SizedEmbedding({table.name: plan.sizes(table.name) for table in tables})
    based = [table for table in getattr(plan, "tables", ()) if table.axes]
    if not based:
        return inner
    axes = {table.name: Basis(torch.eye(table.axes, table.embedding_dim)) for table in based}
    return TurnedEmbedding(inner, axes, train={t.name for t in based if t.basis == "trained"})


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
