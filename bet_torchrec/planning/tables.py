"""The tables to be sized: anything with a name, rows and a full width.

TorchRec's EmbeddingBagConfig and EmbeddingConfig fit as they are; nothing here imports TorchRec.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias, get_args

from ..errors import InvalidInputError

MAX_ROWS = 2**31 - 1  # an id map is one int32 a row

BasisKind: TypeAlias = Literal["fixed", "trained"]
"""Of a table whose rows are coordinates: whether its axes stay as they are or train with them."""


class Table(Protocol):
    """What a table has to tell: its name, its rows and its full width (d_max)."""

    @property
    def name(self) -> str: ...

    @property
    def num_embeddings(self) -> int: ...

    @property
    def embedding_dim(self) -> int: ...


@dataclass(frozen=True)
class TableSpec:
    """One table: num_embeddings rows, each at most embedding_dim wide.

    basis: None for rows whose sizes count their own first columns, as in the BET paper; else they
        count coordinates in axes of the table's own, row = coordinates[:size] @ basis[:size].
    """

    name: str
    num_embeddings: int
    embedding_dim: int
    basis: BasisKind | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise InvalidInputError(f"a table's name should be a non-empty str, got {self.name!r}")
        for field, most in (("num_embeddings", MAX_ROWS), ("embedding_dim", MAX_ROWS)):
            value = getattr(self, field)
            try:
                number = operator.index(value)
            except TypeError:
                number = 0
            if isinstance(value, bool) or not 1 <= number <= most:
                raise InvalidInputError(
                    f"table {self.name!r}: {field} should be an int from 1 to {most}, got {value!r}"
                )
            object.__setattr__(self, field, number)
        if self.basis is not None and self.basis not in get_args(BasisKind):
            raise InvalidInputError(
                f"table {self.name!r}: basis should be None, 'fixed' or 'trained', got "
                f"{self.basis!r}"
            )

    def __repr__(self) -> str:
        # What was added later is told where it is used: older problems keep their fingerprints.
        basis = "" if self.basis is None else f", basis={self.basis!r}"
        return (
            f"TableSpec(name={self.name!r}, num_embeddings={self.num_embeddings}, "
            f"embedding_dim={self.embedding_dim}{basis})"
        )

    @property
    def parameters(self) -> int:
        """Weights of the full table, rows x embedding_dim."""
        return self.num_embeddings * self.embedding_dim

    @classmethod
    def of(cls, table: Any) -> TableSpec:
        """A spec of any object that looks like a Table.

        Raises:
            InvalidInputError: it has no name, num_embeddings or embedding_dim.
        """
        missing = [f for f in ("name", "num_embeddings", "embedding_dim") if not hasattr(table, f)]
        if missing:
            raise InvalidInputError(
                f"a table should have name, num_embeddings and embedding_dim "
                f"(a TableSpec or TorchRec's EmbeddingBagConfig), got {type(table).__name__} "
                f"without {', '.join(missing)}"
            )
        return cls(
            name=table.name,
            num_embeddings=table.num_embeddings,
            embedding_dim=table.embedding_dim,
            basis=getattr(table, "basis", None),
        )


def table_specs(tables: Iterable[Table]) -> tuple[TableSpec, ...]:
    """Specs of all tables, checked: at least one, no name twice.

    Raises:
        InvalidInputError: no tables, or two of one name.
    """
    given: Any = tables  # whatever the annotation says
    if isinstance(given, (str, bytes)) or not isinstance(given, Iterable):
        raise InvalidInputError(
            f"tables should be a list of tables, got {type(given).__name__}; "
            "wrap a single one: [table]"
        )
    specs = tuple(TableSpec.of(table) for table in given)
    if not specs:
        raise InvalidInputError("tables should hold at least one table, got none")
    names = [spec.name for spec in specs]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InvalidInputError(
            f"tables should have distinct names, got {', '.join(map(repr, twice))} more than once; "
            "rename, or size a shared table once"
        )
    return specs
