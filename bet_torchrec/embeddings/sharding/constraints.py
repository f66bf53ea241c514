"""What TorchRec's planner should know of a plan's blocks: how often each is looked up."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn
from torchrec.distributed.embedding_types import EmbeddingComputeKernel
from torchrec.distributed.planner.types import ParameterConstraints
from torchrec.distributed.types import ShardingPlan, ShardingType
from torchrec.modules.embedding_configs import BaseEmbeddingConfig

from ...errors import InvalidInputError
from ...planning.counts import RowCounts
from ..layout import Block
from ..parts import Collection, Trainable
from .checks import ROW_SHARDED, may_row_shard

_NARROWEST_SHARD = 4  # columns; TorchRec's default of 32 would leave narrow blocks in one shard


def lookup_share(block: Block, counts: RowCounts) -> float:
    """The share of its table's lookups that reach a block, 0 to 1."""
    ends = np.minimum(counts.ends, block.first_rank + block.rows)
    starts = np.maximum(counts.ends - counts.multiplicity, block.first_rank)
    inside = np.maximum(ends - starts, 0).astype(float)
    total = float(counts.total)
    return float((counts.values * inside).sum()) / total if total else 0.0


def sharding_constraints(
    module: Trainable,
    counts: Mapping[str, RowCounts | Sequence[int] | NDArray[np.integer]] | None = None,
    *,
    pooling_factors: Mapping[str, float] | None = None,
    sharding_types: Sequence[str] | None = None,
    world_size: int = 1,
    constraints: Mapping[str, ParameterConstraints] | None = None,
) -> dict[str, ParameterConstraints]:
    """Constraints for EmbeddingShardingPlanner, a block each, by block name.

    They never offer what the sharder refuses: row-wise shards of rows in rank order, or of too few
    rows; data-parallel tables whose optimizer is applied in the backward pass.

    Args:
        counts: {table: RowCounts, or one integer a row in id order}, as the plan was made from.
            Without, every block is planned as if all of its table's lookups went there.
        pooling_factors: {feature: ids a bag}; 1 unless given.
        sharding_types: that the planner may choose from; its own unless given.
        world_size: ranks. Blocks with too few rows for a row-wise shard on each go table-wise.
        constraints: {table: what holds for it, as for TorchRec's own collections}, which TorchRec
            would not find by a block's name. It is taken over for each of the table's blocks.

    Raises:
        InvalidInputError: counts of a table are missing or cover other rows, or constraints are of
            no table here.
    """
    constraints = constraints or {}
    unknown = sorted(set(constraints) - set(module.blocks))
    if unknown:
        raise InvalidInputError(
            f"expected constraints of tables {', '.join(module.blocks)}, got {', '.join(unknown)}"
        )
    found = {}
    for table in module.tables:
        own = None if counts is None else _counts_of(table, counts)
        wanted = constraints.get(table.name, ParameterConstraints())
        factors = wanted.pooling_factors
        if pooling_factors is not None or len(factors) != len(table.feature_names):
            factors = [(pooling_factors or {}).get(name, 1.0) for name in table.feature_names]
        for block in module.blocks[table.name]:
            share = 1.0 if own is None else lookup_share(block, own)
            found[block.name] = dataclasses.replace(
                wanted,
                sharding_types=_types(
                    module, block, wanted.sharding_types or sharding_types, world_size
                ),
                pooling_factors=[factor * share for factor in factors],
                min_partition=wanted.min_partition or min(block.real_width, _NARROWEST_SHARD),
            )
    return found


def _counts_of(
    table: BaseEmbeddingConfig,
    counts: Mapping[str, RowCounts | Sequence[int] | NDArray[np.integer]],
) -> RowCounts:
    if table.name not in counts:
        raise InvalidInputError(f"expected counts of table {table.name!r}, got none")
    own = counts[table.name]
    own = own if isinstance(own, RowCounts) else RowCounts.from_rows(own)
    if own.rows != table.num_embeddings:
        raise InvalidInputError(
            f"table {table.name!r}: counts should cover {table.num_embeddings} rows, got {own.rows}"
        )
    return own


def _types(
    module: Trainable,
    block: Block,
    wanted: Sequence[str] | None,
    world_size: int,
) -> list[str]:
    refused = set() if may_row_shard(block, world_size) else set(ROW_SHARDED)
    if hasattr(module.weight(block), "_optimizer_classes"):
        refused.add(ShardingType.DATA_PARALLEL.value)
    # The planner takes grid shards for such tables only that ask for them.
    every = [kind.value for kind in ShardingType if kind is not ShardingType.GRID_SHARD]
    kept = [kind for kind in wanted or every if kind not in refused]
    return kept or [ShardingType.TABLE_WISE.value]


def with_dense_kernels(plan: ShardingPlan, model: nn.Module) -> ShardingPlan:
    """The same TorchRec plan with every table of ours on the dense kernel.

    Its weights are then ordinary parameters for any torch optimizer, as FBGEMM fuses no Adam on
    CPU. (TorchRec's planner itself allows this kernel for data-parallel tables only, although all
    sharding types train on it.)

    model: what the plan was made for; its budgeted collections are changed, and nothing else.

    Raises:
        InvalidInputError: the plan has none of them.
    """
    dense = EmbeddingComputeKernel.DENSE.value
    ours = {
        path
        for path, part in model.named_modules()
        if isinstance(part, Collection) and path in plan.plan
    }
    if not ours:
        raise InvalidInputError(
            "expected the plan of a model with budgeted collections, got one of "
            f"{', '.join(map(repr, plan.plan)) or 'nothing'}: give the model that was planned, and "
            "the planner a BudgetedEmbeddingBagCollectionSharder or "
            "BudgetedEmbeddingCollectionSharder"
        )
    modules: dict[str, Any] = dict(plan.plan)
    for path in ours:
        modules[path] = copy.copy(modules[path])
        for name, how in dict(modules[path]).items():
            modules[path][name] = dataclasses.replace(how, compute_kernel=dense)
    return ShardingPlan(modules)
