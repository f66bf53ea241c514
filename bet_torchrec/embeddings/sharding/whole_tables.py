"""Whole tables in and out of a sharded collection, pooled or not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from torch import Tensor
from torchrec.distributed.types import ShardingEnv

from ...axes import Basis
from ...planning.plan import SizePlan
from ..bases import Bases
from ..parts import Collection, full_tables, load_full_tables


class WholeTables:
    """What both sharded collections do alike with whole tables, as their unsharded forms do."""

    plan: SizePlan
    layout: str
    bases: Bases
    env: ShardingEnv

    def load_full_tables(
        self,
        tables: Mapping[str, Tensor],
        *,
        counts: Mapping[str, Any] | None = None,
        bases: Mapping[str, Basis] | None = None,
    ) -> None:
        """Fill the rows that this rank holds; as the unsharded collection does.

        A collective call where tables have bases.
        """
        pg = self.env.process_group
        load_full_tables(_collection(self), tables, counts=counts, bases=bases, process_group=pg)

    def table_bases(self) -> dict[str, Basis]:
        """{table: its axes as they are now}, of the tables that have some."""
        return self.bases.told()

    def full_tables(self) -> dict[str, Tensor]:
        """All ranks' rows on every rank, {name: (rows, embedding_dim)}; a collective call."""
        return full_tables(_collection(self), self.env.process_group)

    def extra_repr(self) -> str:
        return f"plan={self.plan.fingerprint()}, layout={self.layout!r}"


def _collection(module: WholeTables) -> Collection:
    return cast(Collection, module)  # what it is mixed into is one
