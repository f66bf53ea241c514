"""The drop-in for TorchRec's EmbeddingBagCollection: same input, same output, a plan's bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor, nn
from torch.fx import Proxy
from torchrec.modules.embedding_configs import DataType, EmbeddingBagConfig, PoolingType
from torchrec.modules.embedding_modules import (
    EmbeddingBagCollection,
    EmbeddingBagCollectionInterface,
)
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor, KeyedTensor
from torchrec.sparse.tensor_dict import maybe_td_to_kjt

from ..errors import InvalidInputError, PlanError
from ..planning.budget import FUSED_MULTIPLE
from ..planning.plan import SizePlan
from .bases import Bases, coordinate_plan
from .batches import check_shapes
from .by_table import refuse_by_table, refuse_from_float, refuse_precisions
from .layout import Block, Layout, RowOrder, blocks
from .merge import Merger
from .native.batch import batch_of
from .parts import clear_padding, table_weights
from .routing import Router, block_key
from .table_configs import check_block_names, checked_tables, slots_of
from .tracing import NotScriptable, as_leaf
from .whole_tables import WholeTables, refuse_default_sharder, reset_parameters


class BudgetedEmbeddingBagCollection(NotScriptable, WholeTables, EmbeddingBagCollectionInterface):
    """Pooled lookups in tables whose rows have the sizes of a plan.

    Takes a KeyedJaggedTensor and returns a KeyedTensor with the original features' names, each its
    table's own ``embedding_dim`` wide; beyond a row's size its entries read as zeros, and dropped
    rows as nothing but zeros. It is equal, forward and in training, to full tables times a mask.
    Of a table with a basis these entries are coordinates, and the output is coordinates @ basis:
    pooled first, then one product a table (``bases``).

    Args:
        tables: as for EmbeddingBagCollection, each of them in the plan; the plan may have more, so
            that several collections share one budget.
        plan: from a ``BudgetPlanner``.
        layout: "bucketed", one table a width (fewest bytes), or "prefix", one table a step between
            widths (fewest columns to look up and to send).
        is_weighted: bags have weights (SUM: weighted sum; MEAN: the same divided by the length).
        device: of the weights; "meta" allocates nothing. Torch's current default unless given.
        row_order: "interleaved" scatters neighbouring ranks, which row-wise sharding needs to be
            balanced; "ranked" keeps frequent rows together.
        fused_kernels: pad real tables to widths that FBGEMM's fused kernels take, multiples of 4,
            with columns of zeros that never count but in a row-wise optimizer's mean. What the
            plan's budget says unless given; needed only for other widths.

    Shapes: F features, B examples; the output's values are (B, sum of the features' widths).

    Raises:
        InvalidInputError, PlanError: tables and plan do not fit, an unknown layout, or one whose
            optimizer state is over the plan's budget.

    On a call: IdRangeError for an id out of range; InvalidInputError for a missing feature, missing
    weights or batch sizes that vary by feature.
    """

    def __init__(
        self,
        tables: Sequence[EmbeddingBagConfig],
        plan: SizePlan,
        *,
        layout: Layout = "bucketed",
        is_weighted: bool = False,
        device: torch.device | str | None = None,
        row_order: RowOrder = "ranked",
        fused_kernels: bool | None = None,
    ) -> None:
        super().__init__()
        if fused_kernels is None:
            fused_kernels = plan.budget.fused_kernels
        self.tables, self.plan = checked_tables(tables, plan), plan
        self.layout, self.row_order, self.fused_kernels = layout, row_order, fused_kernels
        multiple = FUSED_MULTIPLE if fused_kernels else 1
        self.blocks: dict[str, tuple[Block, ...]] = {
            table.name: blocks(plan[table.name], layout, row_order, width_multiple=multiple)
            for table in self.tables
        }
        check_block_names(self.blocks)
        _check_budget(plan, self.blocks, fused_kernels)
        self._is_weighted = is_weighted
        self._slots = slots_of(self.tables)
        # Under `with torch.device("meta"):` weights are on it, but ids are routed all the same.
        self.device = torch.empty(0, device=device).device
        own = {table.name: plan[table.name] for table in self.tables}
        stored = {name: coordinate_plan(part) for name, part in own.items()}
        with torch.device("cpu"):
            self.router = Router(self._slots, stored, self.blocks, is_weighted=is_weighted)
            self.merger = Merger(
                self._slots, {n: part.embedding_dim for n, part in stored.items()}, self.blocks
            )
        self.bases = Bases(own, self._slots, self.device)
        self.embedding_bag_collection = EmbeddingBagCollection(
            tables=[self._config(t, block) for t in self.tables for block in self.blocks[t.name]],
            is_weighted=is_weighted,
            device=self.device,
        )
        real = {name: [block.name for block in own] for name, own in self.blocks.items()}
        self.embedding_bag_collection.register_state_dict_pre_hook(partial(refuse_by_table, real))
        planned = plan.budget.purpose == "inference"
        self.embedding_bag_collection.register_state_dict_pre_hook(
            partial(refuse_precisions, self.blocks, planned)
        )
        self.register_state_dict_pre_hook(refuse_from_float)
        clear_padding(self)

    def _config(self, table: EmbeddingBagConfig, block: Block) -> EmbeddingBagConfig:
        """A block as a table of its own, drawn from the full table's range."""
        budget = self.plan.budget
        training_type = budget.dtypes[0] if budget.purpose == "training" else None
        return EmbeddingBagConfig(
            name=block.name,
            num_embeddings=block.rows,
            embedding_dim=block.real_width,
            feature_names=[block_key(s, block) for s in self._slots if s.table == table.name],
            pooling=PoolingType.SUM,
            data_type=DataType.FP16 if training_type == "fp16" else table.data_type,
            weight_init_max=table.get_weight_init_max(),
            weight_init_min=table.get_weight_init_min(),
            init_fn=table.init_fn,
            stash_weights=table.stash_weights,
        )

    def forward(self, features: KeyedJaggedTensor | TensorDict) -> KeyedTensor:
        """Look up and pool; see the class."""
        if isinstance(features, Proxy):
            return as_leaf(self, features)
        features = maybe_td_to_kjt(features, None)
        if features.values().is_meta:  # shapes alone, as for an export or an estimate
            return self.rows(self.merger.output(self._zeros(features)))
        check_shapes(features)
        whole = self.router.keys and type(self.embedding_bag_collection) is EmbeddingBagCollection
        if torch.compiler.is_compiling() and whole:
            return self.rows(self.merger.output(self._as_operator(features)))
        features = self.router.select(features)
        routed = self.router(features)
        if not (self.router.keys and features.stride()):  # TorchRec's own takes no empty batch
            return self.rows(self.merger.output(self._zeros(features)))
        pooled = self.merger(self.embedding_bag_collection(routed), self.router.scale(features))
        return self.rows(pooled)

    def rows(self, coordinates: KeyedTensor) -> KeyedTensor:
        """Merged columns as full-width rows: those of a table with a basis times it."""
        return self.bases.output(coordinates)

    def _as_operator(self, features: KeyedJaggedTensor) -> Tensor:
        """(B, width), for a graph to be compiled or exported, which routing would break."""
        router = self.router
        return torch.ops.bet_torchrec.pool(
            [self.weight(block) for own in self.blocks.values() for block in own],
            router.order(features),
            self.merger.width,
            *batch_of(features, weighted=self._is_weighted),
            router.laid.slots,
            router.laid.tables,
            router.laid.blocks,
            router.map_on(features.device()),
        )

    def _zeros(self, features: KeyedJaggedTensor) -> Tensor:
        """(B, width) that a backward pass may start from, as from any other output."""
        zeros = torch.zeros(features.stride(), self.merger.width, device=features.device())
        nothing = [weight[:0].sum().to(zeros.device) for weight in self.parameters()]
        if not nothing:
            nothing = [zeros.new_zeros((), requires_grad=torch.is_grad_enabled())]
        return zeros + torch.stack(nothing).sum()

    def embedding_bag_configs(self) -> list[EmbeddingBagConfig]:
        """The full tables' configs, as they were given."""
        return list(self.tables)

    def embedding_configs(self) -> list[EmbeddingBagConfig]:
        """The same, as TorchRec's managed collision modules ask for them."""
        return self.embedding_bag_configs()

    @property
    def embedding_bags(self) -> nn.ModuleDict:
        """Refused: TorchRec's wrappers would take real tables for full ones, and ids for rows."""
        raise InvalidInputError(
            "a BudgetedEmbeddingBagCollection has no full tables to reach into: read and write "
            "them by full_tables() and load_full_tables(), a real one by weight(block); a wrapper "
            "that shards or quantises what it holds (feature processors, managed collisions) "
            "needs TorchRec's own collection"
        )

    def is_weighted(self) -> bool:
        """Whether bags have weights."""
        return self._is_weighted

    def __setattr__(self, name: str, value: Any) -> None:
        refuse_default_sharder(value, "BudgetedEmbeddingBagCollection")
        super().__setattr__(name, value)

    def reset_parameters(self) -> None:
        """Draw all weights anew from the full tables' ranges."""
        reset_parameters(self)

    def weight(self, block: Block) -> nn.Parameter:
        """The real table of a block, (rows, real_width)."""
        return self.embedding_bag_collection.embedding_bags[block.name].weight

    def block_weights(self) -> dict[str, Tensor]:
        """{block name: its real table, (rows, real_width)}."""
        return table_weights(self.embedding_bag_collection, "embedding_bags")


def _check_budget(
    plan: SizePlan, blocks: Mapping[str, Sequence[Block]], fused_kernels: bool
) -> None:
    """What blocks really take may be more than the plan counted: a row in several blocks has
    several row-wise states, and padding that only some kernels need.
    """
    if plan.budget.purpose != "training":
        return
    model = replace(plan.memory, fused_kernels=fused_kernels or plan.budget.fused_kernels)
    dtype = plan.budget.dtypes[0]
    extra = sum(b.rows * model.row_cost(b.width, dtype) for own in blocks.values() for b in own)
    extra -= sum(
        bucket.rows * plan.memory.row_cost(bucket.width, dtype)
        for name in blocks
        for bucket in plan[name].buckets
    )
    if plan.cost() + extra > plan.limit:
        raise PlanError(
            "layout='prefix' keeps a row-wise optimizer state for each of a row's blocks, and "
            f"fused_kernels=True pads rows to whole groups of {FUSED_MULTIPLE}: {extra} bytes "
            f"beside the plan's {plan.cost()} are over its budget of {plan.limit}: use "
            "layout='bucketed', plan with Budget.bytes(..., fused_kernels=True), or plan with a "
            f"budget that is {extra} bytes smaller"
        )
