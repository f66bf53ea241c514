"""What pooled and unpooled collections do alike with their tables, in one process or sharded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

import torch.distributed as dist
from torch import Tensor
from torchrec.distributed.types import ShardedModule
from torchrec.modules.embedding_configs import BaseEmbeddingConfig

from ..axes import Basis
from ..errors import ShardingError
from ..planning.plan import SizePlan
from .bases import Bases
from .layout import Block
from .parts import (
    Collection,
    Trainable,
    clear_padding,
    full_tables,
    load_full_tables,
    refuse_full_tables,
)

if TYPE_CHECKING:
    from typing_extensions import Self


class WholeTables:
    """Whole tables in and out of a collection; ``plain_state``: where a plain one's state has them.

    process_group: the ranks that it is spread over.
    """

    tables: tuple[BaseEmbeddingConfig, ...]
    blocks: dict[str, tuple[Block, ...]]
    plan: SizePlan
    layout: str
    bases: Bases
    router: Any
    plain_state = "embedding_bags"
    process_group: dist.ProcessGroup | None = None

    def load_full_tables(
        self,
        tables: Mapping[str, Tensor],
        *,
        counts: Mapping[str, Any] | None = None,
        bases: Mapping[str, Basis] | None = None,
    ) -> Self:
        """Fill each row with the first entries of its row in full tables; returns itself.

        Sharded, the rows that this rank holds; a collective call where tables have bases.

        Args:
            tables: {name: (rows, at least the widest size)} in id order; of a table with a basis
                all of its embedding_dim columns, and the entries are coordinates.
            counts: {name: one number a row, or RowCounts}: a table's basis becomes the principal
                axes of its rows, weighted by these; all rows alike for tables that have none here.
            bases: {name: axes} to take instead, as ``table_bases`` of another collection gives.

        Raises:
            InvalidInputError: other tables, other rows, or tables too narrow.
        """
        load_full_tables(
            cast(Collection, self),
            tables,
            counts=counts,
            bases=bases,
            process_group=self.process_group,
        )
        return self

    def table_bases(self) -> dict[str, Basis]:
        """{table: its axes as they are now}, of the tables that have some."""
        return self.bases.told()

    def full_tables(self) -> dict[str, Tensor]:
        """Copies {name: (rows, embedding_dim)} in id order, zeros beyond a row's size.

        Sharded, all ranks' rows on every rank; a collective call.
        """
        return full_tables(cast(Collection, self), self.process_group)

    @property
    def id_map_bytes(self) -> int:
        """Bytes of the id maps, which every rank has."""
        return int(self.router.id_map_bytes)

    def _load_from_state_dict(
        self, state_dict: Any, prefix: str, local_metadata: Any, strict: bool, *args: Any
    ) -> None:
        refuse_full_tables(state_dict, prefix, args[-1], self.plain_state)
        module = cast(Any, super())
        module._load_from_state_dict(state_dict, prefix, local_metadata, strict, *args)

    def extra_repr(self) -> str:
        return f"plan={self.plan.fingerprint()}, layout={self.layout!r}"


def reset_parameters(module: Trainable) -> None:
    """Draw all weights of an unsharded collection anew from the full tables' ranges."""
    # TorchRec's own does nothing if a module was made on "meta", wherever it is now.
    for table in module.tables:
        for block in module.blocks[table.name]:
            weight = module.weight(block)
            if not weight.is_meta and table.init_fn is not None:
                table.init_fn(weight)
    module.bases.reset_parameters()
    clear_padding(module)


def refuse_default_sharder(value: Any, collection: str) -> None:
    """Raise ShardingError for what TorchRec's default sharder made of a collection's inside."""
    if isinstance(value, ShardedModule):
        raise ShardingError(
            f"TorchRec's default sharder took a {collection} apart, whose tables would train with "
            "SGD at 0.01: give DistributedModelParallel and the planner "
            f"sharders=[*get_default_sharders(), {collection}Sharder(fused_params=...)]"
        )
