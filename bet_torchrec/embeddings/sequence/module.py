"""The drop-in for TorchRec's EmbeddingCollection: a row for each id, in a plan's bytes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor, nn
from torch.fx import Proxy
from torchrec.modules.embedding_configs import (
    BaseEmbeddingConfig,
    EmbeddingBagConfig,
    EmbeddingConfig,
)
from torchrec.modules.embedding_modules import EmbeddingCollection, EmbeddingCollectionInterface
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedJaggedTensor
from torchrec.sparse.tensor_dict import maybe_td_to_kjt

from ...errors import IdRangeError, InvalidInputError
from ...planning.plan import SizePlan
from ..batches import check_shapes
from ..by_table import refuse_by_table, refuse_from_float
from ..layout import Block, Layout, RowOrder
from ..module import BudgetedEmbeddingBagCollection
from ..native.pooling import by_kernel
from ..parts import clear_padding, table_weights
from ..tracing import NotScriptable, as_leaf
from ..whole_tables import WholeTables, refuse_default_sharder, reset_parameters
from .strips import StripRouter


class BudgetedEmbeddingCollection(NotScriptable, WholeTables, EmbeddingCollectionInterface):
    """Unpooled lookups in tables whose rows have the sizes of a plan.

    Takes a KeyedJaggedTensor and returns {feature: JaggedTensor}, a row for each id, all of them
    ``embedding_dim`` wide; beyond a row's size its entries read as zeros, and dropped rows as
    nothing but zeros. It is equal, forward and in training, to full tables times a mask. Of a table
    with a basis these entries are coordinates, and the output is coordinates @ basis. Batch sizes
    may differ between features.

    Args:
        tables: as for EmbeddingCollection, all of one ``embedding_dim``, each of them in the plan.
        plan, layout, device, row_order, fused_kernels: as for ``BudgetedEmbeddingBagCollection``;
            one plan may be shared with such.
        need_indices: the output's weights are the ids, as in EmbeddingCollection.

    Shapes: of a feature with V ids, values (V, embedding_dim), fp32.

    Raises:
        InvalidInputError, PlanError: tables and plan do not fit, tables of several widths, an
            unknown layout, or one whose optimizer state is over the plan's budget.

    On a call: IdRangeError for an id out of range; InvalidInputError for a missing feature.
    """

    plain_state = "embeddings"

    def __init__(
        self,
        tables: Sequence[EmbeddingConfig],
        plan: SizePlan,
        *,
        layout: Layout = "bucketed",
        need_indices: bool = False,
        device: torch.device | str | None = None,
        row_order: RowOrder = "ranked",
        fused_kernels: bool | None = None,
    ) -> None:
        super().__init__()
        front = planned_tables(tables, plan, layout, row_order, fused_kernels)
        self.tables, self.plan = tuple(tables), plan
        self.layout, self.row_order = layout, row_order
        self.fused_kernels = front.fused_kernels
        self.blocks: dict[str, tuple[Block, ...]] = front.blocks
        self._embedding_dim = tables[0].embedding_dim
        self.router = StripRouter(
            front.router, self.blocks, self._embedding_dim, need_indices=need_indices
        )
        self.device = torch.empty(0, device=device).device
        self.bases = front.bases.on(self.device)
        configs = front.embedding_bag_collection.embedding_bag_configs()
        by_key = {key: config for config in configs for key in config.feature_names}
        real = {name: [block.name for block in own] for name, own in self.blocks.items()}
        self.embedding_collections = _Strips()
        for strip in self.router.strips:
            own = {by_key[key].name: by_key[key] for key in strip.keys}
            collection = EmbeddingCollection(
                tables=[_retyped(config, EmbeddingConfig) for config in own.values()],
                device=self.device,
            )
            collection.register_state_dict_pre_hook(partial(refuse_by_table, real))
            self.embedding_collections[strip.name] = collection
        self.register_state_dict_pre_hook(refuse_from_float)
        clear_padding(self)

    def forward(self, features: KeyedJaggedTensor | TensorDict) -> dict[str, JaggedTensor]:
        """Look up; see the class."""
        if isinstance(features, Proxy):
            return as_leaf(self, features)
        features = maybe_td_to_kjt(features, None)
        check_shapes(features)
        # TorchRec's quantisation puts tables of its own in place of these.
        if all(type(own) is EmbeddingCollection for own in self.embedding_collections.values()):
            weights = {n: [self.weight(block) for block in own] for n, own in self.blocks.items()}
            if torch.compiler.is_compiling():
                return self.router.as_operators(features, weights, self.bases.rows)
            if by_kernel([w for own in weights.values() for w in own], features.values()):
                with suppress(IdRangeError):  # the way below knows the feature's name
                    return self.router.as_operators(features, weights, self.bases.rows)
        routed = self.router(features)
        parts = zip(self.embedding_collections.values(), routed.features, strict=True)
        found = [collection(part) for collection, part in parts]
        return self.router.output(routed, found, self.bases.rows)

    def embedding_configs(self) -> list[EmbeddingConfig]:
        """The full tables' configs, as they were given."""
        return list(self.tables)

    def need_indices(self) -> bool:
        """Whether the output's weights are the ids."""
        return self.router.need_indices

    def embedding_dim(self) -> int:
        """Columns of the output."""
        return self._embedding_dim

    def embedding_names_by_table(self) -> list[list[str]]:
        """The output's keys, by table."""
        slots = self.router.slots
        return [[s.key for s in slots if s.table == table.name] for table in self.tables]

    def reset_parameters(self) -> None:
        """Draw all weights anew from the full tables' ranges."""
        reset_parameters(self)

    @property
    def embeddings(self) -> nn.ModuleDict:
        """Refused: TorchRec's wrappers would take real tables for full ones, and ids for rows."""
        raise InvalidInputError(
            "a BudgetedEmbeddingCollection has no full tables to reach into: read and write them "
            "by full_tables() and load_full_tables(), a real one by weight(block); a wrapper that "
            "shards or quantises what it holds (managed collisions) needs TorchRec's own collection"
        )

    def block_weights(self) -> dict[str, Tensor]:
        """{block name: its real table, (rows, real_width)}."""
        return block_weights(self.embedding_collections)

    def weight(self, block: Block) -> nn.Parameter:
        """The real table of a block, (rows, real_width)."""
        name = f"columns_{block.first_column}_{block.first_column + block.width}"
        collection: Any = self.embedding_collections[name]
        weight: nn.Parameter = collection.embeddings[block.name].weight
        return weight


class _Strips(nn.ModuleDict):
    """{strip: its collection}, which TorchRec's default sharder must not take."""

    def __setattr__(self, name: str, value: Any) -> None:
        refuse_default_sharder(value, "BudgetedEmbeddingCollection")
        super().__setattr__(name, value)


def planned_tables(
    tables: Sequence[EmbeddingConfig],
    plan: SizePlan,
    layout: Layout,
    row_order: RowOrder,
    fused_kernels: bool | None = None,
) -> BudgetedEmbeddingBagCollection:
    """The same tables pooled, on "meta": their checks, blocks and routing are those of here."""
    widths = sorted({table.embedding_dim for table in tables})
    if len(widths) > 1:
        raise InvalidInputError(
            "tables of one collection should have one embedding_dim, as in EmbeddingCollection, "
            f"got {', '.join(map(str, widths))}: make a collection for each, of the same plan"
        )
    return BudgetedEmbeddingBagCollection(
        [_retyped(table, EmbeddingBagConfig) for table in tables],
        plan,
        layout=layout,
        is_weighted=True,
        device="meta",
        row_order=row_order,
        fused_kernels=fused_kernels,
    )


def block_weights(collections: nn.ModuleDict) -> dict[str, Tensor]:
    """{table name: weight} of some EmbeddingCollections, sharded or not."""
    return {
        name: weight
        for collection in collections.values()
        for name, weight in table_weights(collection, "embeddings").items()
    }


def _retyped(config: BaseEmbeddingConfig, kind: type) -> BaseEmbeddingConfig:
    """The same table for a collection of the other kind."""
    shared = {
        field.name: getattr(config, field.name) for field in dataclasses.fields(BaseEmbeddingConfig)
    }
    return kind(**shared)
