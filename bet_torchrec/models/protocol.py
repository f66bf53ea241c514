"""What a backbone is, and what it looks rows up in.

A backbone is a plain module without tables: it is handed an ``EmbeddingModule`` at every call, so
that one set of weights serves full tables, a plan's sizes and quantised rows alike.

Shapes: B examples in a batch, U users, I items, D the embedding module's width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias

import torch
from torch import Tensor

from ..errors import InvalidInputError

if TYPE_CHECKING:
    from ..evaluation import Ranker

Scores: TypeAlias = "tuple[Tensor, Tensor] | Ranker"


class EmbeddingModule(Protocol):
    """Tables by name. Beyond a row's own size its entries are zero.

    width: D, the number of columns that ``table`` and ``lookup`` return, the same for all tables.
    """

    @property
    def width(self) -> int: ...

    def table(self, name: str) -> Tensor:
        """The whole table, (rows, D), differentiable."""
        ...

    def lookup(self, name: str, ids: Tensor) -> Tensor:
        """Rows of int64 ids (B,), as (B, D), differentiable."""
        ...


class BPRTerms(NamedTuple):
    """What a BPR step needs of a batch.

    margin: the positive's score less the negative's, (B,). l2: half the squared norm of all table
    rows of the batch, a row counted as often as it occurs, summed (a scalar).
    """

    margin: Tensor
    l2: Tensor


class Backbone(Protocol):
    """A recommender over an embedding module; also an ``nn.Module`` (parameters, state_dict)."""

    @property
    def table_rows(self) -> Mapping[str, int]:
        """Its tables: rows by name."""
        ...

    @property
    def table_sides(self) -> Mapping[str, str]:
        """Its tables: "user" or "item" by name."""
        ...

    def __call__(
        self,
        embedding: EmbeddingModule,
        users: Tensor,
        positives: Tensor,
        negatives: Tensor,
        *,
        generator: torch.Generator | None = None,
    ) -> BPRTerms:
        """Margins of one batch, in training mode with dropout if it has any; ids int64 (B,)."""
        ...

    def scores(self, embedding: EmbeddingModule) -> Scores:
        """What ``evaluation.evaluate`` ranks by: two matrices, or a ranker of its own."""
        ...

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw its own weights anew; the tables are not its."""
        ...

    def rotate(self, tables: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Turn full tables (rows, d_max) to their principal axes, in which a prefix loses least.

        Changes the module's own weights so that its scores with the returned tables are those it
        had with the given ones. Where the scores don't allow it a table returns as it came.
        """
        ...


def principal_axes(*tables: Tensor) -> Tensor:
    """Orthonormal (d, d) axes of the stacked tables (rows, d), most second moment first.

    Signs are fixed (a column's largest entry is positive), so that equal tables give equal axes.
    """
    gram = sum(table.T.double() @ table.double() for table in tables)
    if not isinstance(gram, Tensor):
        raise InvalidInputError("principal_axes needs at least one table, got none")
    axes = torch.linalg.eigh(gram).eigenvectors.flip(1)
    largest = axes.abs().argmax(dim=0, keepdim=True)
    axes = axes * axes.gather(0, largest).sign()
    return axes.to(tables[0].dtype)


def check_rows(tables: Mapping[str, Any], rows: Mapping[str, int]) -> None:
    """Raise InvalidInputError unless exactly the expected tables are there with their rows."""
    found = {name: len(table) for name, table in tables.items()}
    if found != dict(rows):
        raise InvalidInputError(f"expected tables of these rows: {dict(rows)}, got {found}")
