"""Sharding: ids are routed before TorchRec distributes them, pooled rows merged after.

The pattern of TorchRec's feature-processed collections: a module that holds a plain collection,
with a sharder of its own. (A subclass of EmbeddingBagCollection would stay unsharded in silence,
because TorchRec looks sharders up by exact type.)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor
from torchrec.distributed.embedding_types import (
    KJTList,
    ShardedEmbeddingModule,
)
from torchrec.distributed.embeddingbag import (
    EmbeddingBagCollectionContext,
    EmbeddingBagCollectionSharder,
    ShardedEmbeddingBagCollection,
)
from torchrec.distributed.types import (
    Awaitable,
    EmbeddingModuleShardingPlan,
    LazyAwaitable,
    ParameterSharding,
    ShardingEnv,
)
from torchrec.distributed.utils import append_prefix
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor, KeyedTensor

from ...errors import ShardingError
from ..module import BudgetedEmbeddingBagCollection
from ..parts import (
    clear_padding,
    table_weights,
)
from .checks import check_shards
from .collections import CollectionSharder, ShardedTables


@dataclass
class BudgetedContext(EmbeddingBagCollectionContext):
    """What one batch needs after its lookup: the scale of MEAN-pooled bags."""

    scale: Tensor | None = None

    def record_stream(self, stream: torch.Stream) -> None:
        """Keep the scale alive for another stream."""
        super().record_stream(stream)
        if self.scale is not None:
            self.scale.record_stream(stream)


class ShardedBudgetedEmbeddingBagCollection(
    ShardedTables, ShardedEmbeddingModule[KJTList, list[Tensor], KeyedTensor, BudgetedContext]
):
    """Made by ``BudgetedEmbeddingBagCollectionSharder``; same input and output as unsharded."""

    def __init__(
        self,
        module: BudgetedEmbeddingBagCollection,
        params: dict[str, ParameterSharding],
        sharder: EmbeddingBagCollectionSharder,
        env: ShardingEnv,
        device: torch.device,
        module_fqn: str | None = None,
    ) -> None:
        super().__init__(qcomm_codecs_registry=sharder.qcomm_codecs_registry)
        self.take_over(module, env, device)
        self.merger = module.merger
        self._is_weighted = module.is_weighted()
        self.embedding_bag_collection: ShardedEmbeddingBagCollection = sharder.shard(
            module.embedding_bag_collection, params, env=env, device=device, module_fqn=module_fqn
        )
        clear_padding(self)

    def input_dist(
        self, ctx: BudgetedContext, features: KeyedJaggedTensor | TensorDict
    ) -> Awaitable[Awaitable[KJTList]]:
        """Route ids to blocks' rows, then send them to the ranks that hold them.

        Raises InvalidInputError for a batch that contradicts itself, see ``checked``.
        """
        features = self.checked(features)
        self._check_weights(features)
        features = self.router.select(features)
        ctx.scale = self.router.scale(features)
        return self.embedding_bag_collection.input_dist(ctx, self.router(features))

    def _check_weights(self, features: KeyedJaggedTensor) -> None:
        weights = features.weights_or_none() if self._is_weighted else None
        if weights is not None and weights.requires_grad and torch.is_grad_enabled():
            raise ShardingError(
                "bag weights that need a gradient (of a feature processor, for instance) would "
                "get none: TorchRec sends ids and weights to other ranks without it. Detach them "
                "(weights.detach()), or keep this collection unsharded"
            )

    def prefetch(self, dist_input: Any, forward_stream: Any = None, ctx: Any = None) -> None:
        """TorchRec's hook: fill the caches of tables that are cached."""
        self.embedding_bag_collection.prefetch(dist_input, forward_stream, ctx)

    def compute(self, ctx: BudgetedContext, dist_input: KJTList) -> list[Tensor]:
        """Look rows up on this rank."""
        return self.embedding_bag_collection.compute(ctx, dist_input)

    def output_dist(self, ctx: BudgetedContext, output: list[Tensor]) -> LazyAwaitable[KeyedTensor]:
        """Send pooled rows back, then merge."""
        return self._merged(ctx, self.embedding_bag_collection.output_dist(ctx, output))

    def compute_and_output_dist(
        self, ctx: BudgetedContext, input: KJTList
    ) -> LazyAwaitable[KeyedTensor]:
        """``compute`` and ``output_dist`` in one, which pipelines call."""
        return self._merged(ctx, self.embedding_bag_collection.compute_and_output_dist(ctx, input))

    def _merged(
        self, ctx: BudgetedContext, output: LazyAwaitable[KeyedTensor]
    ) -> LazyAwaitable[KeyedTensor]:
        output.callbacks.append(partial(self.merger, scale=ctx.scale))
        output.callbacks.append(self.bases.output)
        return output

    def create_context(self) -> BudgetedContext:
        """An empty context for one batch."""
        return BudgetedContext()

    def embedding_bag_configs(self) -> list[EmbeddingBagConfig]:
        """The full tables' configs, as they were given."""
        return list(self.tables)

    def is_weighted(self) -> bool:
        """Whether bags have weights."""
        return self._is_weighted

    def block_weights(self) -> dict[str, Tensor]:
        """{block name: its real table, sharded}."""
        return table_weights(self.embedding_bag_collection, "embedding_bags")

    @property
    def unsharded_module_type(self) -> type[BudgetedEmbeddingBagCollection]:
        """What it was made from: TorchRec finds the sharder by it."""
        return BudgetedEmbeddingBagCollection

    @property
    def module_sharding_plan(self) -> EmbeddingModuleShardingPlan:
        """{block name: how it is sharded now}."""
        return self.embedding_bag_collection.module_sharding_plan

    def sharded_parameter_names(self, prefix: str = "") -> Iterator[str]:
        """TorchRec's hook: parameters that DistributedDataParallel must leave alone."""
        yield from self.embedding_bag_collection.sharded_parameter_names(
            append_prefix(prefix, "embedding_bag_collection")
        )

    def _initialize_torch_state(self, skip_registering: bool = False) -> None:
        self.embedding_bag_collection._initialize_torch_state(skip_registering)


class BudgetedEmbeddingBagCollectionSharder(CollectionSharder[BudgetedEmbeddingBagCollection]):
    """Shards BudgetedEmbeddingBagCollection; add it to DistributedModelParallel's sharders.

    Coordinates are sharded as any table; bases are on every rank, and those that train are
    data-parallel: DistributedDataParallel averages their gradients, an optimizer of torch's over
    ``model.named_parameters()`` updates them.

    fused_params: of FBGEMM's fused optimizers, as for EmbeddingBagCollectionSharder, for instance
        {"optimizer": EmbOptimType.EXACT_ROWWISE_ADAGRAD, "learning_rate": 0.1}; or set optimizers
        by ``apply_optimizer_in_backward``.

    sharding_types: offered to TorchRec's planner; its own for the device unless given. Row-wise
        sharding on CPU, which works too, has to be asked for.

    Build the collection on the meta device: TorchRec keeps the weights that it is given alive
    beside the shards that it makes of them.

    For torch's own optimizers (Adam on CPU), see ``with_dense_kernels``; for balanced plans, and
    constraints by a table's name, ``sharding_constraints``; give the planner an
    ``IdMapReservation``, which refuses constraints that it would ignore. On gloo, row-wise
    sharding needs as many examples on every rank.

    Raises on sharding:
        ShardingError: what TorchRec would do silently wrong: a fused table without an optimizer,
            an optimizer or weight decay that FBGEMM lacks on CPU, widths that fused tables do not
            take, row-wise shards of rows in rank order, more bytes on all ranks together than the
            plan's training budget.
    """

    unsharded = BudgetedEmbeddingBagCollection
    sharded = ShardedBudgetedEmbeddingBagCollection
    inner = EmbeddingBagCollectionSharder

    def reshard(
        self,
        sharded_module: ShardedBudgetedEmbeddingBagCollection,
        changed_shard_to_params: EmbeddingModuleShardingPlan,
        env: ShardingEnv,
        device: torch.device | None = None,
    ) -> ShardedBudgetedEmbeddingBagCollection:
        """TorchRec's hook; called by ``DistributedModelParallel.reshard``.

        Moves blocks, with their optimizers' state, to the ranks that the plan says, by block name.
        """
        device = torch.device("cuda") if device is None else device
        known = {block.name: block for own in sharded_module.blocks.values() for block in own}
        unknown = sorted(set(changed_shard_to_params) - set(known))
        if unknown:
            raise ShardingError(
                f"expected a new sharding of blocks {', '.join(sorted(known))}, got "
                f"{', '.join(unknown)}: a table of several widths is several blocks"
            )
        for name, how in changed_shard_to_params.items():
            check_shards(known[name], how, env.world_size)
        self._inner.reshard(
            sharded_module.embedding_bag_collection, changed_shard_to_params, env, device
        )
        clear_padding(sharded_module)
        return sharded_module
