"""What TorchRec and FBGEMM do silently wrong with these tables, as errors before it happens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from torch import nn
from torchrec.distributed.embedding_types import EmbeddingComputeKernel
from torchrec.distributed.types import ParameterSharding, ShardingType
from torchrec.distributed.utils import optimizer_type_to_emb_opt_type

from ...errors import ShardingError
from ...planning.budget import FUSED_MULTIPLE
from ..layout import Block
from ..parts import Trainable
from .storage import check_memory

_FUSED_ON_CPU = (
    EmbOptimType.EXACT_SGD,
    EmbOptimType.EXACT_ADAGRAD,
    EmbOptimType.EXACT_ROWWISE_ADAGRAD,
)
_UNFUSED = (EmbeddingComputeKernel.DENSE.value,)
ROW_SHARDED = (
    ShardingType.ROW_WISE.value,
    ShardingType.TABLE_ROW_WISE.value,
    ShardingType.GRID_SHARD.value,
)


def check_sharding(
    module: Trainable,
    params: Mapping[str, ParameterSharding],
    fused_params: Mapping[str, Any],
    world_size: int,
    device: torch.device,
) -> None:
    """Raise ShardingError where TorchRec would go wrong in silence; see the sharder."""
    for own in module.blocks.values():
        for block in own:
            how = params[block.name]
            check_shards(block, how, world_size)
            if how.compute_kernel not in _UNFUSED:
                _check_optimizer(block, module.weight(block), fused_params, device)
            elif hasattr(module.weight(block), "_optimizer_classes"):
                raise ShardingError(
                    f"block {block.name!r}: TorchRec drops what apply_optimizer_in_backward set on "
                    f"a table with a dense kernel ({how.sharding_type}), which would never train: "
                    "give the sharder fused_params={'optimizer': ...} instead, or "
                    "sharding_types=['table_wise']"
                )
    for name, axes in module.bases.named_parameters():
        if hasattr(axes, "_optimizer_classes"):
            raise ShardingError(
                f"bases.{name}: what apply_optimizer_in_backward set on axes steps them on every "
                "rank before their gradients are averaged, so that ranks part: leave them out of "
                "it, and give them to an optimizer of torch's over model.named_parameters()"
            )
    check_memory(module, params, fused_params, world_size)


def check_shards(block: Block, how: ParameterSharding, world_size: int) -> None:
    """Raise ShardingError for shards of rows or columns that FBGEMM does wrongly, or not at all."""
    _check_rows(block, how, world_size)
    if how.compute_kernel not in _UNFUSED:
        _check_width(block, how)


def may_row_shard(block: Block, world_size: int) -> bool:
    """Whether TorchRec's row-wise shards of a block pass, on any number of ranks up to this."""
    # Two-dimensional shardings cut rows by the ranks of a host.
    some = range(2, world_size + 1)
    cut_well = all(-(-block.rows // ranks) * (ranks - 1) < block.rows for ranks in some)
    return world_size == 1 or (cut_well and not _in_rank_order(block))


def _in_rank_order(block: Block) -> bool:
    return block.stride == 1 and block.rows > 2


def _check_rows(block: Block, how: ParameterSharding, world_size: int) -> None:
    if how.sharding_type not in ROW_SHARDED or world_size == 1:
        return
    if _in_rank_order(block):
        raise ShardingError(
            f"block {block.name!r}: row-wise shards of rows in rank order send most lookups to "
            "the first rank: build the collection with row_order='interleaved', or shard this "
            "block table-wise (sharding_constraints offers the planner nothing else)"
        )
    shards = how.sharding_spec.shards if how.sharding_spec is not None else []
    if any(shard.shard_sizes[0] == 0 for shard in shards):
        # FBGEMM then updates rows of *other* tables in the same kernel wrongly.
        raise ShardingError(
            f"block {block.name!r}: {block.rows} rows are too few for row-wise shards on "
            f"{world_size} ranks, one would be empty: shard it table-wise (sharding_constraints "
            "does so when it is told world_size)"
        )


def _check_width(block: Block, how: ParameterSharding) -> None:
    widths = {block.real_width}
    if how.sharding_spec is not None:
        widths = {shard.shard_sizes[1] for shard in how.sharding_spec.shards}
    wrong = sorted(width for width in widths if width % FUSED_MULTIPLE)
    if wrong:
        raise ShardingError(
            f"block {block.name!r}: FBGEMM's fused tables take widths that are multiples of "
            f"{FUSED_MULTIPLE}, got {', '.join(map(str, wrong))}: build the collection with "
            "fused_kernels=True, which pads rows (and plan with "
            "Budget.bytes(..., fused_kernels=True)), or take dense kernels (with_dense_kernels)"
        )


def _check_optimizer(
    block: Block, weight: nn.Parameter, fused_params: Mapping[str, Any], device: torch.device
) -> None:
    classes = getattr(weight, "_optimizer_classes", [None])
    options = {**fused_params, **getattr(weight, "_optimizer_kwargs", [{}])[0]}
    if classes[0] is not None:
        options.setdefault("optimizer", optimizer_type_to_emb_opt_type(classes[0]))
    optimizer = options.get("optimizer")
    if optimizer is None:
        raise ShardingError(
            f"block {block.name!r}: a fused table without an optimizer trains with SGD at 0.01 in "
            "silence: give the sharder fused_params={'optimizer': ..., 'learning_rate': ...}, call "
            "apply_optimizer_in_backward first, or take dense kernels (with_dense_kernels)"
        )
    if device.type != "cpu":
        return
    if optimizer not in _FUSED_ON_CPU:
        raise ShardingError(
            f"block {block.name!r}: on CPU FBGEMM fuses SGD, Adagrad and row-wise Adagrad, got "
            f"{getattr(optimizer, 'name', optimizer)}: take dense "
            "kernels (with_dense_kernels) with a torch optimizer"
        )
    if options.get("weight_decay"):
        raise ShardingError(
            f"block {block.name!r}: FBGEMM ignores weight_decay on CPU, got "
            f"{options['weight_decay']}: add it to the loss, or take dense kernels "
            "(with_dense_kernels)"
        )
