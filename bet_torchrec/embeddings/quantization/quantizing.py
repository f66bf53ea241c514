"""From a trained collection, or a model with some, to its serving form."""

from __future__ import annotations

import copy
from typing import Any, overload

import numpy as np
import torch
from torch import nn

from ...errors import InvalidInputError, PlanError
from ...planning.budget import PRECISIONS
from ...planning.plan import SizePlan
from ..fused.module import FusedBudgetedEmbeddingBagCollection
from ..layout import Layout, blocks
from ..module import BudgetedEmbeddingBagCollection
from ..sequence.module import BudgetedEmbeddingCollection
from ..sequence.quantized import QuantizedBudgetedEmbeddingCollection
from ..sequence.sharder import ShardedBudgetedEmbeddingCollection
from ..sharding.sharder import ShardedBudgetedEmbeddingBagCollection
from .collection import QuantizedBudgetedEmbeddingBagCollection
from .export import Trained, packed_table
from .packing import pack_rows

_PIECE = 1 << 16  # rows packed at once
_SHARDED = (ShardedBudgetedEmbeddingBagCollection, ShardedBudgetedEmbeddingCollection)


@overload
def quantize(
    module: BudgetedEmbeddingBagCollection,
    plan: SizePlan | None = None,
    *,
    precision: str | None = None,
    layout: Layout = "bucketed",
    alignment: int | None = None,
    device: torch.device | str | None = None,
) -> QuantizedBudgetedEmbeddingBagCollection: ...


@overload
def quantize(
    module: BudgetedEmbeddingCollection,
    plan: SizePlan | None = None,
    *,
    precision: str | None = None,
    layout: Layout = "bucketed",
    alignment: int | None = None,
    device: torch.device | str | None = None,
) -> QuantizedBudgetedEmbeddingCollection: ...


@overload
def quantize(
    module: nn.Module,
    plan: SizePlan | None = None,
    *,
    precision: str | None = None,
    layout: Layout = "bucketed",
    alignment: int | None = None,
    device: torch.device | str | None = None,
) -> nn.Module: ...


def quantize(
    module: nn.Module,
    plan: SizePlan | None = None,
    *,
    precision: str | None = None,
    layout: Layout = "bucketed",
    alignment: int | None = None,
    device: torch.device | str | None = None,
) -> nn.Module:
    """A collection for inference; or a copy of a model whose collections are such.

    The module stays as it is; one that trains by our fused step is served like any other. A
    model's copy shares nothing with it, and its other parts stay where and what they are.

    Args:
        plan: of the same sizes, whose precisions and budget are to be followed; the module's own
            unless given.
        precision: of all rows, instead of the plan's. This, "prefix" and an alignment of one's own
            leave the plan's account: see ``allocated_bytes``.
        layout: of the result, whatever the module's. "bucketed" is what a budget counts; "prefix"
            keeps a scale and a bias for each of a row's blocks.
        alignment: bytes that rows are rounded up to; see the class.
        device: of the result's rows; the module's own unless given.

    Raises:
        PlanError: a plan of other sizes.
        InvalidInputError: no collection in the model, a sharded one, one without weights ("meta"),
            an unknown precision, or values that the precision cannot hold.
    """
    if precision is not None and precision not in PRECISIONS:
        raise InvalidInputError(
            f"precision should be one of {', '.join(PRECISIONS)}, got {precision!r}"
        )
    found = [m for m in module.modules() if isinstance(m, Trained)]
    sharded = [m for m in module.modules() if isinstance(m, _SHARDED)]
    if sharded or not found:
        raise InvalidInputError(
            "expected unsharded budgeted collections, got "
            + ("sharded ones" if sharded else "a model without any")
            + ": build the model unsharded, its collections by "
            "new ones of the same tables and plan, .load_full_tables(sharded.full_tables(), "
            "bases=sharded.table_bases())"
        )
    made: dict[int, nn.Module] = {}
    for own in found:
        planned = own.plan if plan is None else plan
        made[id(own)] = _quantized(own, planned, precision, layout, alignment, device)
    for fused in (
        m for m in module.modules() if isinstance(m, FusedBudgetedEmbeddingBagCollection)
    ):
        made[id(fused)] = made[id(fused.module)]
    # What is in deepcopy's memo is taken as copied, so the trained tables never are.
    return made.get(id(module)) or copy.deepcopy(module, dict(made)).eval()


def _quantized(
    module: Trained,
    plan: SizePlan,
    precision: str | None,
    layout: Layout,
    alignment: int | None,
    device: torch.device | str | None,
) -> QuantizedBudgetedEmbeddingBagCollection | QuantizedBudgetedEmbeddingCollection:
    _check_sizes(module, plan)
    precisions = {}
    if precision is not None:
        laid = [blocks(plan[t.name], layout, module.row_order) for t in module.tables]
        precisions = {block.name: precision for own in laid for block in own}
    where = next((weight.device for weight in module.parameters()), module.device)
    options: dict[str, Any] = {
        "layout": layout,
        "row_order": module.row_order,
        "precisions": precisions,
        "alignment": alignment,
        "device": where if device is None else device,
    }
    made: QuantizedBudgetedEmbeddingBagCollection | QuantizedBudgetedEmbeddingCollection
    if isinstance(module, BudgetedEmbeddingCollection):
        options["need_indices"] = module.need_indices()
        made = QuantizedBudgetedEmbeddingCollection(module.tables, plan, **options)
    else:
        options["is_weighted"] = module.is_weighted()
        made = QuantizedBudgetedEmbeddingBagCollection(module.tables, plan, **options)
    made.put_bases(module.table_bases())
    for name, own in made.blocks.items():
        trained = packed_table(module, name)
        for block in own:
            ids = block.ids(plan[name])
            for start in range(0, block.rows, _PIECE):
                rows = trained.stored(ids[start : start + _PIECE], width=block.columns.stop)
                values = torch.from_numpy(rows[:, block.first_column :])
                made.put_rows(block, start, pack_rows(values, block.precision))
    return made.eval()


def _check_sizes(module: Trained, plan: SizePlan) -> None:
    for table in module.tables:
        trained, wanted = module.plan[table.name], plan[table.name]
        same = np.array_equal(trained.sizes(), wanted.sizes())
        if not same or trained.axes != wanted.axes:
            raise PlanError(
                f"table {table.name!r}: expected a plan of the trained rows' sizes and axes, those "
                f"of {module.plan.fingerprint()}, got {plan.fingerprint()}: migrate to it first"
            )
