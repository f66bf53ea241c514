"""The plan: what both wings meet at. The sizes of all tables' rows, and what they cost."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InvalidInputError, PlanError, PlanFileError
from ..files import replace_file
from . import plan_io
from .budget import Budget, MemoryModel
from .coarsen import coarsen_tables
from .counts import RowCounts
from .report import describe_plan
from .table_plan import Bucket, TablePlan, all_widths
from .tables import Table, table_specs

__all__ = ["Bucket", "SizePlan", "TablePlan"]


@dataclass(frozen=True, eq=False)
class SizePlan:
    """Sizes for all rows of all tables, never over the budget. Immutable.

    Two plans are equal, and hash alike, when their tables, buckets, orders, counts' fingerprints,
    budget, sizer and seed are; ``metadata``, free text about how it was made, does not matter.

    Raises:
        PlanError: it contradicts itself, costs more than the budget, or uses a precision that
            the budget does not allow.
    """

    tables: tuple[TablePlan, ...]
    budget: Budget
    sizer: str
    seed: int | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "tables", tuple(self.tables))
        metadata = {str(key): str(value) for key, value in self.metadata.items()}
        object.__setattr__(self, "metadata", MappingProxyType(metadata))
        object.__setattr__(self, "seed", None if self.seed is None else int(self.seed))
        table_specs(self.tables)
        if self.budget.unit == "bytes":
            used = {b.precision for table in self.tables for b in table.buckets if b.width}
            if not used <= set(self.budget.dtypes):
                raise PlanError(
                    f"precisions should be among the budget's {', '.join(self.budget.dtypes)}, "
                    f"got {', '.join(sorted(used))}"
                )
        if self.cost() > self.limit:
            raise PlanError(
                f"a plan should cost at most {self.limit} {self.budget.cost_unit} "
                f"({self.budget.describe()}), got {self.cost()}"
            )

    @classmethod
    def from_sizes(
        cls,
        tables: Sequence[Table],
        sizes: Mapping[str, Any],
        counts: Mapping[str, RowCounts] | None = None,
        *,
        budget: Budget,
        sizer: str = "by hand",
        seed: int | None = None,
        precisions: Mapping[str, str] | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> SizePlan:
        """From one size a row of each table, in id order; see ``TablePlan.from_sizes``.

        Args:
            sizes, counts, precisions: by table name. Without counts rows of one size rank by id.
                precisions default to the budget's first.
        """
        precisions = precisions or {}
        planned = tuple(
            TablePlan.from_sizes(
                spec,
                sizes[spec.name],
                None if counts is None else counts[spec.name],
                precision=precisions.get(spec.name, budget.dtypes[0]),
            )
            for spec in table_specs(tables)
        )
        return cls(planned, budget, sizer, seed, metadata or {})

    def __getitem__(self, table: str) -> TablePlan:
        """One table's part, by name."""
        for part in self.tables:
            if part.name == table:
                return part
        names = ", ".join(repr(part.name) for part in self.tables)
        raise InvalidInputError(f"table should be one of {names}, got {table!r}")

    @property
    def memory(self) -> MemoryModel:
        """What the budget counts by."""
        return MemoryModel.for_budget(self.budget)

    @cached_property
    def limit(self) -> int:
        """The most that the plan may cost, in ``budget.cost_unit``."""
        return self.budget.limit(self.tables)

    @cached_property
    def _cost(self) -> int:
        return sum(table.cost(self.memory) for table in self.tables)

    def cost(self) -> int:
        """What it costs, exactly, in ``budget.cost_unit``: alignment, state, id maps, bases too."""
        return self._cost

    @property
    def used(self) -> float:
        """The share of the budget that is used, at most 1."""
        return self.cost() / self.limit if self.limit else 1.0

    def parameters(self) -> int:
        """Weights that are kept, whatever they are stored in."""
        return sum(table.parameters for table in self.tables)

    def sparsity(self) -> float:
        """1 - kept weights / weights of the full tables."""
        return 1 - self.parameters() / sum(t.rows * t.embedding_dim for t in self.tables)

    @property
    def widths(self) -> tuple[int, ...]:
        """Every width in use, ascending."""
        return all_widths(self.tables)

    @property
    def precisions(self) -> dict[str, tuple[str, ...]]:
        """By table name, its buckets' precisions in rank order."""
        return {t.name: tuple(b.precision for b in t.buckets) for t in self.tables}

    def sizes(self, table: str) -> NDArray[np.int32]:
        """int32 (rows,): the size of each row of this table, in id order."""
        return self[table].sizes()

    def coarsen(self, widths: Sequence[int]) -> SizePlan:
        """The same plan on few widths: least loss, never over the budget, what is left is spent.

        Every row goes to the allowed width below its size or the one above. The loss is the sum
        of all rows' changes of size; rows go up in the order of loss avoided by cost, in a table
        the highest ranks first, until the budget is spent. Rows of an allowed size stay.

        Raises:
            InfeasibleBudgetError: even all rows at the smallest of ``widths`` cost too much.
        """
        note = {"coarsened": ",".join(str(width) for width in sorted(set(widths)))}
        return SizePlan(
            coarsen_tables(self.tables, widths, self.budget),
            self.budget,
            self.sizer,
            self.seed,
            {**self.metadata, **note},
        )

    def summary(self) -> str:
        """A table to read: per table its widths with their rows, precision and cost."""
        return describe_plan(self.tables, self.budget, sizer=self.sizer, seed=self.seed)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SizePlan) and self._digest == other._digest

    def __hash__(self) -> int:
        return hash(self._digest)

    def __repr__(self) -> str:
        names = ", ".join(f"{t.name}: {len(t.buckets)} buckets" for t in self.tables)
        return f"<SizePlan {self.fingerprint()} by {self.sizer}, {self.used:.2%} used; {names}>"

    def __deepcopy__(self, memo: dict[int, Any]) -> SizePlan:
        return self  # immutable: copies of a model share it

    def __reduce__(self) -> tuple[Any, ...]:
        return SizePlan.from_bytes, (self.to_bytes(),)

    @cached_property
    def _digest(self) -> str:
        digest = hashlib.sha256(json.dumps(self._header(), sort_keys=True).encode())
        for table in self.tables:
            if table.order is not None:
                digest.update(table.order.tobytes())
        return digest.hexdigest()

    def fingerprint(self) -> str:
        """16 hex digits of the content: equal plans have equal ones."""
        return self._digest[:16]

    def _header(self) -> dict[str, Any]:
        tables = [
            {
                "name": table.name,
                "rows": table.rows,
                "embedding_dim": table.embedding_dim,
                "buckets": [[b.width, b.rows, b.precision] for b in table.buckets],
                "ranked": table.order is None,
                "counts_fingerprint": table.counts_fingerprint,
                **({} if table.basis is None else {"basis": table.basis}),
            }
            for table in self.tables
        ]
        # What was added later is written where it is used: older plans keep their fingerprints.
        added = {"world_size": 1, "fused_kernels": False}
        budget = {k: v for k, v in asdict(self.budget).items() if added.get(k, ...) != v}
        return {"tables": tables, "budget": budget, "sizer": self.sizer, "seed": self.seed}

    def to_bytes(self) -> bytes:
        """What ``save`` writes, to send a plan instead."""
        orders = {
            f"order.{i}": table.order
            for i, table in enumerate(self.tables)
            if table.order is not None
        }
        header = {**self._header(), "metadata": dict(self.metadata)}
        based = any(table.basis is not None for table in self.tables)
        return plan_io.dump(header, orders, based=based)

    @classmethod
    def from_bytes(cls, data: bytes, *, source: str = "the data") -> SizePlan:
        """The plan that ``to_bytes`` gave. Raises PlanFileError as ``load`` does."""
        header, arrays = plan_io.parse(data, source=source)
        try:
            tables = tuple(
                TablePlan(
                    name=table.name,
                    rows=table.rows,
                    embedding_dim=table.embedding_dim,
                    buckets=tuple(Bucket(*bucket) for bucket in table.buckets),
                    order=arrays.get(f"order.{i}"),
                    counts_fingerprint=table.counts_fingerprint,
                    basis=table.basis,
                )
                for i, table in enumerate(header.tables)
            )
            return cls(tables, header.budget, header.sizer, header.seed, header.metadata)
        except (ValueError, OverflowError) as error:
            raise PlanFileError(f"{source} holds a plan that makes no sense: {error}") from error

    def save(self, path: str | Path) -> Path:
        """Write one file (safetensors, no pickle), whole or not at all; returns its path."""
        path = Path(path)
        replace_file(path, self.to_bytes())
        return path

    @classmethod
    def load(cls, path: str | Path) -> SizePlan:
        """Read a plan back.

        Raises:
            PlanFileError: corrupted, foreign, or written by a newer version.
            FileNotFoundError: no such file.
        """
        return cls.from_bytes(Path(path).read_bytes(), source=str(path))
