"""A planned collection as an embedding module: real TorchRec tables under the training loop."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.planner import EmbeddingShardingPlanner, Topology
from torchrec.distributed.types import Awaitable, ShardedModule, ShardingEnv
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from ...embeddings import (
    BudgetedEmbeddingBagCollection,
    BudgetedEmbeddingBagCollectionSharder,
    sharding_constraints,
    with_dense_kernels,
)
from ...embeddings.parts import full_tables

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from ...axes import Basis
    from ...planning.counts import RowCounts


class CollectionTables(nn.Module):
    """Answers a whole batch of a ``BagSlot`` by a collection, sharded or not.

    To shard it, ``on_ranks``, or wrap this in DistributedModelParallel, which replaces the
    collection in place, and go on using this.
    """

    def __init__(
        self, collection: BudgetedEmbeddingBagCollection, pg: ProcessGroup | None = None
    ) -> None:
        super().__init__()
        self.collection: Any = collection
        self.width = max(1, *(collection.plan[t.name].read_width for t in collection.tables))
        self._pg = pg

    def bags(self, features: KeyedJaggedTensor) -> Any:
        """Pooled rows, a KeyedTensor."""
        pooled = self.collection(features)
        return pooled.wait() if isinstance(pooled, Awaitable) else pooled

    def replicated(self) -> Iterator[nn.Parameter]:
        """Weights that every rank holds whole and whose gradients TorchRec doesn't average."""
        if not isinstance(self.collection, ShardedModule):
            yield from self.collection.parameters()
        else:
            yield from self.collection.bases.parameters()

    def load_full_tables(self, tables: Mapping[str, Tensor], **options: Any) -> CollectionTables:
        """Fill each row with the first entries of its row in full tables; returns itself.

        options: counts and bases, as the collection takes them.
        """
        self.collection.load_full_tables(tables, **options)
        return self

    def draw(self, seed: int) -> CollectionTables:
        """Fill rows from their tables' ranges, alike on any number of ranks; returns itself."""
        generator = torch.Generator().manual_seed(seed)
        rows = {
            config.name: torch.empty(config.num_embeddings, config.embedding_dim).uniform_(
                config.get_weight_init_min(), config.get_weight_init_max(), generator=generator
            )
            for config in self.collection.tables
        }
        return self.load_full_tables(rows, bases=self.bases())  # noise's would be no better

    def bases(self) -> dict[str, Basis]:
        """{table: its axes as they are now}, of the tables that have some."""
        found: dict[str, Basis] = self.collection.table_bases()
        return found

    def full_tables(self) -> dict[str, Tensor]:
        """Copies (rows, embedding_dim) in id order, of all ranks' rows on each."""
        return full_tables(self.collection, self._pg)


def on_ranks(
    tables: CollectionTables,
    pg: ProcessGroup,
    counts: Mapping[str, RowCounts],
    *,
    fused_params: Mapping[str, Any] | None = None,
    sharding_types: Sequence[str] | None = None,
    device: torch.device | str = "cpu",
) -> CollectionTables:
    """The same tables, sharded over a group by TorchRec's planner; made on "meta" or not.

    fused_params: of the sharder ("optimizer", "learning_rate", ...). Without them rows are ordinary
        parameters, for any torch optimizer. sharding_types: that the planner may choose from.
    """
    device, world = torch.device(device), pg.size()
    sharder = BudgetedEmbeddingBagCollectionSharder(
        None if fused_params is None else dict(fused_params), sharding_types=sharding_types
    )
    constraints = sharding_constraints(
        tables.collection, counts, sharding_types=sharding_types, world_size=world
    )
    planner = EmbeddingShardingPlanner(
        topology=Topology(world_size=world, compute_device=device.type), constraints=constraints
    )
    plan = planner.collective_plan(tables, [sharder], pg)
    DistributedModelParallel(
        tables,
        env=ShardingEnv.from_process_group(pg),
        device=device,
        plan=with_dense_kernels(plan, tables) if fused_params is None else plan,
        sharders=[sharder],
    )
    tables._pg = pg
    return tables
