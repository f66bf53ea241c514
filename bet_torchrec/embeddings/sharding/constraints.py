"""What TorchRec's planner should know of a plan's blocks: how often each is looked up."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torchrec.distributed.embedding_types import EmbeddingComputeKernel
from torchrec.distributed.planner.types import ParameterConstraints
from torchrec.distributed.types import ShardingPlan, ShardingType

from ...errors import InvalidInputError
from ...planning.counts import RowCounts
from ..layout import Block
from ..module import BudgetedEmbeddingBagCollection

_NARROWEST_SHARD = 4  # columns; TorchRec's default of 32 would leave narrow blocks in one shard


def lookup_share(block: Block, counts: RowCounts) -> float:
    """The share of its table's lookups that reach a block, 0 to 1."""
    ends = np.minimum(counts.ends, block.first_rank + block.rows)
    starts = np.maximum(counts.ends - counts.multiplicity, block.first_rank)
    inside = np.maximum(ends - starts, 0).astype(float)
    total = float(counts.total)
    return float((counts.values * inside).sum()) / total if total else 0.0


def sharding_constraints(
    module: BudgetedEmbeddingBagCollection,
    counts: Mapping[str, RowCounts | Sequence[int] | NDArray[np.integer]],
    *,
    pooling_factors: Mapping[str, float] | None = None,
    sharding_types: Sequence[str] | None = None,
    world_size: int = 1,
) -> dict[str, ParameterConstraints]:
    """Constraints for EmbeddingShardingPlanner, a block each, by block name.

    Args:
        counts: {table: RowCounts, or one integer a row in id order}, as the plan was made from.
        pooling_factors: {feature: ids a bag}; 1 unless given.
        sharding_types: that the planner may choose from; its own unless given.
        world_size: ranks. Blocks with too few rows for a row-wise shard on each go table-wise.

    Raises:
        InvalidInputError: counts of a table are missing or cover other rows.
    """
    found = {}
    for table in module.tables:
        if table.name not in counts:
            raise InvalidInputError(f"expected counts of table {table.name!r}, got none")
        own = counts[table.name]
        own = own if isinstance(own, RowCounts) else RowCounts.from_rows(own)
        if own.rows != table.num_embeddings:
            raise InvalidInputError(
                f"table {table.name!r}: counts should cover {table.num_embeddings} rows, got "
                f"{own.rows}"
            )
        factors = [(pooling_factors or {}).get(name, 1.0) for name in table.feature_names]
        for block in module.blocks[table.name]:
            share = lookup_share(block, own)
            found[block.name] = ParameterConstraints(
                sharding_types=_types(block, sharding_types, world_size),
                pooling_factors=[factor * share for factor in factors],
                min_partition=min(block.width, _NARROWEST_SHARD),
            )
    return found


def _types(block: Block, wanted: Sequence[str] | None, world_size: int) -> list[str] | None:
    row_wise, table_wise = ShardingType.ROW_WISE.value, ShardingType.TABLE_WISE.value
    shard = -(-block.rows // world_size)
    if world_size == 1 or shard * (world_size - 1) < block.rows:
        return list(wanted) if wanted else None
    if not wanted:
        column_wise = ShardingType.COLUMN_WISE.value
        return [ShardingType.DATA_PARALLEL.value, table_wise, column_wise]
    return [kind for kind in wanted if kind != row_wise] or [table_wise]


def with_dense_kernels(plan: ShardingPlan) -> ShardingPlan:
    """The same TorchRec plan with every table of ours on the dense kernel.

    Its weights are then ordinary parameters for any torch optimizer, as FBGEMM fuses no Adam on
    CPU. (TorchRec's planner itself allows this kernel for data-parallel tables only, although all
    sharding types train on it.)
    """
    dense = EmbeddingComputeKernel.DENSE.value
    modules: dict[str, Any] = {}
    for path, tables in plan.plan.items():
        # Every block's name has a slash, no other module's tables need to change.
        modules[path] = copy.copy(tables)
        for name, how in dict(tables).items():
            if "/" in name:
                modules[path][name] = dataclasses.replace(how, compute_kernel=dense)
    return ShardingPlan(modules)
