"""Sharding of unpooled tables: routed before TorchRec distributes ids, put together after.

Each strip is a ShardedEmbeddingCollection of TorchRec's; to TorchRec all of them are one module,
whose shardings are theirs side by side.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor, nn
from torchrec.distributed.embedding import (
    EmbeddingCollectionContext,
    EmbeddingCollectionSharder,
    ShardedEmbeddingCollection,
)
from torchrec.distributed.embedding_sharding import KJTListSplitsAwaitable
from torchrec.distributed.embedding_types import (
    KJTList,
    ShardedEmbeddingModule,
)
from torchrec.distributed.types import (
    Awaitable,
    EmbeddingModuleShardingPlan,
    LazyAwaitable,
    ParameterSharding,
    ShardingEnv,
)
from torchrec.distributed.utils import append_prefix
from torchrec.modules.embedding_configs import EmbeddingConfig
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedJaggedTensor

from ..bases import Bases
from ..parts import clear_padding
from ..sharding.collections import CollectionSharder, ShardedTables
from .dense import mend_dense_tables
from .module import BudgetedEmbeddingCollection, block_weights
from .strips import Routed, StripRouter


@dataclass
class SequenceContext(EmbeddingCollectionContext):
    """One batch: the strips' contexts, whose shardings are this one's, and where rows go."""

    strips: list[EmbeddingCollectionContext] = field(default_factory=list)
    routed: Routed | None = None

    def record_stream(self, stream: torch.Stream) -> None:
        """Keep what the batch needs alive for another stream."""
        for strip in self.strips:
            strip.record_stream(stream)
        if self.routed is not None:
            self.routed.record_stream(stream)


class ShardedBudgetedEmbeddingCollection(
    ShardedTables,
    ShardedEmbeddingModule[KJTList, list[Tensor], dict[str, JaggedTensor], SequenceContext],
):
    """Made by ``BudgetedEmbeddingCollectionSharder``; same input and output as unsharded."""

    plain_state = "embeddings"

    def __init__(
        self,
        module: BudgetedEmbeddingCollection,
        params: Mapping[str, ParameterSharding],
        sharder: EmbeddingCollectionSharder,
        env: ShardingEnv,
        device: torch.device,
        module_fqn: str | None = None,
    ) -> None:
        super().__init__(qcomm_codecs_registry=sharder.qcomm_codecs_registry)
        self.take_over(module, env, device)
        self.embedding_collections = nn.ModuleDict()
        collection: Any
        for name, collection in module.embedding_collections.items():
            own = {table.name: params[table.name] for table in collection.embedding_configs()}
            self.embedding_collections[name] = sharder.shard(
                collection, own, env=env, device=device, module_fqn=module_fqn
            )
        self._lookups = [lookup for strip in self._strips() for lookup in strip._lookups]
        mend_dense_tables(self._lookups)
        clear_padding(self)

    def _strips(self) -> Iterator[ShardedEmbeddingCollection]:
        yield from self.embedding_collections.values()

    def input_dist(
        self, ctx: SequenceContext, features: KeyedJaggedTensor | TensorDict
    ) -> Awaitable[Awaitable[KJTList]]:
        """Route ids to strips' rows, then send them to the ranks that hold them.

        Raises InvalidInputError for a batch that contradicts itself, see ``checked``.
        """
        ctx.routed = self.router(self.checked(features))
        ctx.strips = [strip.create_context() for strip in self._strips()]
        each = zip(self._strips(), ctx.strips, ctx.routed.features, strict=True)
        sent = [strip.input_dist(own, part) for strip, own, part in each]
        # The very contexts of the strips' shardings, which what is sent fills in on its way.
        ctx.sharding_contexts = [one for own in ctx.strips for one in own.sharding_contexts]
        return KJTListSplitsAwaitable([one for part in sent for one in part.awaitables], ctx)

    def compute(self, ctx: SequenceContext, dist_input: KJTList) -> list[Tensor]:
        """Look rows up on this rank."""
        parts = self._parts(ctx, list(dist_input))
        each = zip(self._strips(), ctx.strips, parts, strict=True)
        return [out for strip, own, part in each for out in strip.compute(own, KJTList(part))]

    def output_dist(
        self, ctx: SequenceContext, output: list[Tensor]
    ) -> LazyAwaitable[dict[str, JaggedTensor]]:
        """Send rows back, then put them together."""
        each = zip(self._strips(), ctx.strips, self._parts(ctx, output), strict=True)
        return self._together(ctx, [strip.output_dist(own, part) for strip, own, part in each])

    def compute_and_output_dist(
        self, ctx: SequenceContext, input: KJTList
    ) -> LazyAwaitable[dict[str, JaggedTensor]]:
        """``compute`` and ``output_dist`` in one, which pipelines call."""
        each = zip(self._strips(), ctx.strips, self._parts(ctx, list(input)), strict=True)
        return self._together(
            ctx, [strip.compute_and_output_dist(own, KJTList(part)) for strip, own, part in each]
        )

    def _parts(self, ctx: SequenceContext, flat: list[Any]) -> list[list[Any]]:
        """One a sharding of any strip, as one list a strip."""
        rest = iter(flat)
        return [[next(rest) for _ in own.sharding_contexts] for own in ctx.strips]

    def _together(
        self, ctx: SequenceContext, found: list[LazyAwaitable[dict[str, JaggedTensor]]]
    ) -> LazyAwaitable[dict[str, JaggedTensor]]:
        assert ctx.routed is not None
        return _Together(found, self.router, ctx.routed, self.bases)

    def create_context(self) -> SequenceContext:
        """An empty context for one batch."""
        return SequenceContext()

    def embedding_configs(self) -> list[EmbeddingConfig]:
        """The full tables' configs, as they were given."""
        return list(self.tables)

    @property
    def module_sharding_plan(self) -> EmbeddingModuleShardingPlan:
        """{block name: how it is sharded now}."""
        found = EmbeddingModuleShardingPlan()
        for strip in self._strips():
            found.update(strip.module_sharding_plan)
        return found

    def block_weights(self) -> dict[str, Tensor]:
        """{block name: its real table, sharded}."""
        return block_weights(self.embedding_collections)

    def sharded_parameter_names(self, prefix: str = "") -> Iterator[str]:
        """TorchRec's hook: parameters that DistributedDataParallel must leave alone."""
        strip: Any
        for name, strip in self.embedding_collections.items():
            path = append_prefix(append_prefix(prefix, "embedding_collections"), name)
            yield from strip.sharded_parameter_names(path)

    @property
    def unsharded_module_type(self) -> type[BudgetedEmbeddingCollection]:
        """What it was made from."""
        return BudgetedEmbeddingCollection

    def _initialize_torch_state(self, skip_registering: bool = False) -> None:
        for strip in self._strips():
            strip._initialize_torch_state(skip_registering)


class _Together(LazyAwaitable[dict[str, JaggedTensor]]):
    """The output, once every strip's rows are back."""

    def __init__(
        self,
        found: Sequence[LazyAwaitable[dict[str, JaggedTensor]]],
        router: StripRouter,
        routed: Routed,
        bases: Bases,
    ) -> None:
        super().__init__()
        self._found, self._router, self._routed, self._bases = found, router, routed, bases

    def _wait_impl(self) -> dict[str, JaggedTensor]:
        rows = [one.wait() for one in self._found]
        return self._router.output(self._routed, rows, self._bases.rows)


class BudgetedEmbeddingCollectionSharder(CollectionSharder[BudgetedEmbeddingCollection]):
    """Shards BudgetedEmbeddingCollection; add it to DistributedModelParallel's sharders.

    fused_params, sharding_types: as for ``BudgetedEmbeddingBagCollectionSharder``, and so is what
        it refuses. use_index_dedup: as for EmbeddingCollectionSharder.

    Build the collection on the meta device: TorchRec keeps the weights that it is given alive
    beside the shards that it makes of them.
    """

    unsharded = BudgetedEmbeddingCollection
    sharded = ShardedBudgetedEmbeddingCollection
    inner = EmbeddingCollectionSharder
