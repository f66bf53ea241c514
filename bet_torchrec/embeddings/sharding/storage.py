"""What tables really take on all ranks together, told to TorchRec's planner and held against the
plan's budget.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from torch import nn
from torchrec.distributed.types import ParameterSharding
from torchrec.distributed.utils import optimizer_type_to_emb_opt_type
from torchrec.optim.rowwise_adagrad import RowWiseAdagrad

from ...errors import ShardingError
from ..layout import Block
from ..parts import Trainable

_NAMES = {  # as planning calls them
    EmbOptimType.EXACT_SGD: "sgd",
    EmbOptimType.EXACT_ROWWISE_ADAGRAD: "rowwise_adagrad",
    EmbOptimType.EXACT_ADAGRAD: "adagrad",
    EmbOptimType.ADAM: "adam",
    EmbOptimType.LAMB: "lamb",
    EmbOptimType.PARTIAL_ROWWISE_ADAM: "partial_rowwise_adam",
}
# The classes by which TorchRec's estimator knows how much state there is: none, as much as the
# weights, twice as much, a value a row. Where none fits exactly, the next larger one.
_TOLD: dict[str, type[torch.optim.Optimizer]] = {
    "sgd": torch.optim.SGD,
    "rowwise_adagrad": RowWiseAdagrad,
    "adagrad": torch.optim.Adagrad,
    "adam": torch.optim.Adam,
    "lamb": torch.optim.Adam,
    "partial_rowwise_adam": torch.optim.Adam,
}


def optimizer_of(module: Trainable, block: Block, fused_params: Mapping[str, Any]) -> str | None:
    """Of a block in fused kernels, as planning calls it; else what the plan's budget counts."""
    weight = module.weight(block)
    kind = fused_params.get("optimizer")
    classes, options = (getattr(weight, f"_optimizer_{x}", None) for x in ("classes", "kwargs"))
    if classes:
        kind = (options or [{}])[0].get("optimizer") or optimizer_type_to_emb_opt_type(classes[0])
    return _NAMES.get(kind, module.plan.budget.optimizer)


def told_weight(module: Trainable, block: Block, fused_params: Mapping[str, Any]) -> nn.Parameter:
    """A weight without memory that says its optimizer, from which TorchRec estimates storage.

    TorchRec knows the optimizers that ``apply_optimizer_in_backward`` set, none of fused_params.
    """
    weight = module.weight(block)
    told = nn.Parameter(torch.empty_like(weight, device="meta"))
    optimizer = optimizer_of(module, block, fused_params)
    if optimizer is not None:
        kind = _TOLD[optimizer]
        if weight.element_size() < 4 and kind is not torch.optim.SGD:
            kind = torch.optim.Adam  # state is fp32, which TorchRec takes to be like the weights
        told._optimizer_classes = [kind]  # type: ignore[attr-defined]
    return told


def check_memory(
    module: Trainable,
    params: Mapping[str, ParameterSharding],
    fused_params: Mapping[str, Any],
    world_size: int,
) -> None:
    """Raise ShardingError if all ranks together take more than the plan's training budget."""
    plan = module.plan
    if plan.budget.purpose != "training":
        return
    names = [table.name for table in module.tables]
    maps = replace(plan.memory, world_size=world_size)
    found = plan.cost() - sum(plan[name].cost(plan.memory) for name in names)
    found += sum(maps.id_map_cost(plan[n].rows) for n in names if plan[n].order is not None)
    found += sum(maps.basis_cost(plan[n].basis, plan[n].axes, plan[n].embedding_dim) for n in names)
    for own in module.blocks.values():
        for block in own:
            how = params[block.name]
            model = replace(
                plan.memory, optimizer=optimizer_of(module, block, fused_params) or "sgd"
            )
            dtype = "fp16" if module.weight(block).element_size() == 2 else "fp32"
            spec = how.sharding_spec
            shards = [(block.rows, block.real_width)] * world_size
            if spec is not None:
                shards = [(s.shard_sizes[0], s.shard_sizes[1]) for s in spec.shards]
            found += sum(rows * model.row_cost(width, dtype) for rows, width in shards)
    if found > plan.limit:
        raise ShardingError(
            f"on {world_size} ranks tables, id maps, bases and optimizer state take {found} bytes, "
            f"the plan's budget is {plan.limit} ({plan.budget.describe()}): every rank has all id "
            "maps and bases (plan with Budget.bytes(..., world_size=ranks), or give ids in order "
            "of their ranks), a data-parallel table all its rows, a column-wise shard its own "
            "row-wise state, and an optimizer may be another than the budget's"
        )
