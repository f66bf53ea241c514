"""What sharded pooled and unpooled collections have in common, and so their sharders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, TypeVar

import torch
import torch.distributed as dist
from fbgemm_gpu.split_table_batched_embeddings_ops_common import BoundsCheckMode
from tensordict import TensorDict
from torch import nn
from torchrec.distributed.embedding_types import BaseEmbeddingSharder
from torchrec.distributed.types import (
    ParameterSharding,
    QuantizedCommCodecs,
    ShardingEnv,
    ShardingType,
)
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor
from torchrec.sparse.tensor_dict import maybe_td_to_kjt

from ..batches import check_shapes, check_values
from ..whole_tables import WholeTables
from .checks import check_sharding
from .storage import told_weight

Unsharded = TypeVar("Unsharded", bound=nn.Module)


class ShardedTables(WholeTables):
    """A sharded collection's tables, and the batches that come to them."""

    def take_over(self, module: Any, env: ShardingEnv, device: torch.device) -> None:
        """What an unsharded collection says of its tables stays true of the sharded one."""
        self.tables, self.plan, self.blocks = module.tables, module.plan, module.blocks
        self.layout, self.row_order = module.layout, module.row_order
        self.router = module.router
        self.env, self.device = env, device
        self.bases = module.bases.on(device)
        self._first_batch = True

    @property
    def process_group(self) -> dist.ProcessGroup | None:  # type: ignore[override]
        """The ranks that it is spread over."""
        return self.env.process_group

    def checked(self, features: KeyedJaggedTensor | TensorDict) -> KeyedJaggedTensor:
        """The batch, which does not contradict itself as far as TorchRec looks.

        All of the first one is looked at, then what needs no waiting for the device.
        """
        features = maybe_td_to_kjt(features, None)
        check_shapes(features)
        if self._first_batch:
            check_values(features)
            self._first_batch = False
        return features


class CollectionSharder(BaseEmbeddingSharder[Unsharded]):
    """Shards collections of one kind: ``unsharded`` to ``sharded``, by TorchRec's ``inner``."""

    unsharded: ClassVar[type[nn.Module]]
    sharded: ClassVar[type[Any]]
    inner: ClassVar[type[BaseEmbeddingSharder[Any]]]

    def __init__(
        self,
        fused_params: Mapping[str, Any] | None = None,
        qcomm_codecs_registry: dict[str, QuantizedCommCodecs] | None = None,
        *,
        sharding_types: Sequence[str] | None = None,
        **options: Any,
    ) -> None:
        self._sharding_types = sharding_types
        params = None
        if fused_params is not None:
            # The router has checked every id already.
            params = {"bounds_check_mode": BoundsCheckMode.NONE, **fused_params}
        super().__init__(fused_params=params, qcomm_codecs_registry=qcomm_codecs_registry)
        self._inner = self.inner(
            fused_params=params, qcomm_codecs_registry=qcomm_codecs_registry, **options
        )

    def shard(
        self,
        module: Any,
        params: dict[str, ParameterSharding],
        env: ShardingEnv,
        device: torch.device | None = None,
        module_fqn: str | None = None,
    ) -> Any:
        """TorchRec's hook; called by DistributedModelParallel."""
        device = torch.device("cuda") if device is None else device
        check_sharding(module, params, self.fused_params or {}, env.world_size, device)
        return self.sharded(module, params, self._inner, env, device, module_fqn)

    def shardable_parameters(self, module: Any) -> dict[str, nn.Parameter]:
        """{block name: its shape and optimizer}, for the planner's account; not the weights."""
        return {
            block.name: told_weight(module, block, self.fused_params or {})
            for own in module.blocks.values()
            for block in own
        }

    @property
    def module_type(self) -> type[Any]:
        """What it shards."""
        return self.unsharded

    @property
    def sharded_module_type(self) -> type[Any]:
        """What comes out."""
        return self.sharded

    def sharding_types(self, compute_device_type: str) -> list[str]:
        """What the planner may choose from.

        TorchRec's own, but data-parallel where ``fused_params`` has an optimizer: it never reaches
        data-parallel tables, which would wait for one of torch's.
        """
        if self._sharding_types is not None:
            return list(self._sharding_types)
        types = self._inner.sharding_types(compute_device_type)
        if (self.fused_params or {}).get("optimizer") is None:
            return types
        return [kind for kind in types if kind != ShardingType.DATA_PARALLEL.value]
