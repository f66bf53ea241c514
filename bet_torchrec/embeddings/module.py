"""The drop-in for TorchRec's EmbeddingBagCollection: same input, same output, a plan's bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torchrec.modules.embedding_configs import DataType, EmbeddingBagConfig, PoolingType
from torchrec.modules.embedding_modules import EmbeddingBagCollection, get_embedding_names_by_table
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor, KeyedTensor

from ..errors import InvalidInputError, PlanError
from ..planning.plan import SizePlan
from .layout import Block, Layout, RowOrder, blocks
from .merge import Merger
from .parts import full_tables, load_full_tables, table_weights
from .routing import Router, Slot, block_key


class BudgetedEmbeddingBagCollection(nn.Module):
    """Pooled lookups in tables whose rows have the sizes of a plan.

    Takes a KeyedJaggedTensor and returns a KeyedTensor with the original features' names, each its
    table's own ``embedding_dim`` wide; beyond a row's size its entries read as zeros, and dropped
    rows as nothing but zeros. It is equal, forward and in training, to full tables times a mask.

    Args:
        tables: as for EmbeddingBagCollection, each of them in the plan; the plan may have more, so
            that several collections share one budget.
        plan: from a ``BudgetPlanner``.
        layout: "bucketed", one table a width (fewest bytes), or "prefix", one table a step between
            widths (fewest columns to look up and to send).
        is_weighted: bags have weights (SUM: weighted sum; MEAN: the same divided by the length).
        device: of the weights; "meta" allocates nothing.
        row_order: "interleaved" scatters neighbouring ranks, which row-wise sharding needs to be
            balanced; "ranked" keeps frequent rows together.

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
    ) -> None:
        super().__init__()
        self.tables, self.plan = _checked(tables, plan), plan
        self.layout, self.row_order = layout, row_order
        self.blocks: dict[str, tuple[Block, ...]] = {
            table.name: blocks(plan[table.name], layout, row_order) for table in self.tables
        }
        _check_budget(plan, self.blocks)
        self._is_weighted = is_weighted
        self._slots = _slots(self.tables)
        self.router = Router(
            self._slots,
            {table.name: plan[table.name] for table in self.tables},
            self.blocks,
            is_weighted=is_weighted,
        )
        self.merger = Merger(
            self._slots, {t.name: t.embedding_dim for t in self.tables}, self.blocks
        )
        device = torch.device("cpu" if device is None else device)
        self.device = device
        self.embedding_bag_collection = EmbeddingBagCollection(
            tables=[self._config(t, block) for t in self.tables for block in self.blocks[t.name]],
            is_weighted=is_weighted,
            device=device,
        )

    def _config(self, table: EmbeddingBagConfig, block: Block) -> EmbeddingBagConfig:
        """A block as a table of its own, drawn from the full table's range."""
        budget = self.plan.budget
        training_type = budget.dtypes[0] if budget.purpose == "training" else None
        return EmbeddingBagConfig(
            name=block.name,
            num_embeddings=block.rows,
            embedding_dim=block.width,
            feature_names=[block_key(s, block) for s in self._slots if s.table == table.name],
            pooling=PoolingType.SUM,
            data_type=DataType.FP16 if training_type == "fp16" else table.data_type,
            weight_init_max=table.get_weight_init_max(),
            weight_init_min=table.get_weight_init_min(),
            init_fn=table.init_fn,
        )

    def forward(self, features: KeyedJaggedTensor) -> KeyedTensor:
        """Look up and pool; see the class."""
        features = self.router.select(features)
        routed = self.router(features)
        if not (self.router.keys and features.stride()):  # TorchRec's own takes no empty batch
            return self.merger.output(self._zeros(features))
        return self.merger(self.embedding_bag_collection(routed), self.router.scale(features))

    def _zeros(self, features: KeyedJaggedTensor) -> Tensor:
        return torch.zeros(features.stride(), self.merger.width, device=features.device())

    def embedding_bag_configs(self) -> list[EmbeddingBagConfig]:
        """The full tables' configs, as they were given."""
        return list(self.tables)

    def is_weighted(self) -> bool:
        """Whether bags have weights."""
        return self._is_weighted

    def reset_parameters(self) -> None:
        """Draw all weights anew from the full tables' ranges."""
        # TorchRec's own does nothing if the module was made on "meta", wherever it is now.
        for config in self.embedding_bag_collection.embedding_bag_configs():
            weight = self.embedding_bag_collection.embedding_bags[config.name].weight
            if not weight.is_meta:
                config.init_fn(weight)

    def weight(self, block: Block) -> nn.Parameter:
        """The real table of a block, (rows, width)."""
        return self.embedding_bag_collection.embedding_bags[block.name].weight

    def block_weights(self) -> dict[str, Tensor]:
        """{block name: its real table, (rows, width)}."""
        return table_weights(self.embedding_bag_collection, "embedding_bags")

    def load_full_tables(self, tables: Mapping[str, Tensor]) -> BudgetedEmbeddingBagCollection:
        """Fill each row with the first entries of its row in full tables; returns itself.

        tables: {name: (rows, at least the widest size)} in id order.

        Raises:
            InvalidInputError: other tables, other rows, or tables too narrow.
        """
        load_full_tables(self, tables)
        return self

    def full_tables(self) -> dict[str, Tensor]:
        """Copies {name: (rows, embedding_dim)} in id order, zeros beyond a row's size."""
        return full_tables(self)

    def extra_repr(self) -> str:
        return f"plan={self.plan.fingerprint()}, layout={self.layout!r}"


def _checked(
    tables: Sequence[EmbeddingBagConfig], plan: SizePlan
) -> tuple[EmbeddingBagConfig, ...]:
    planned = {part.name: part for part in plan.tables}
    seen: set[str] = set()
    for table in tables:
        if table.name in seen:
            raise InvalidInputError(f"tables should have distinct names, got {table.name!r} twice")
        seen.add(table.name)
        part = planned.get(table.name)
        if part is None:
            raise PlanError(
                f"expected a table of the plan ({', '.join(planned)}), got {table.name!r}: plan "
                "all tables of the collection together"
            )
        if (part.rows, part.embedding_dim) != (table.num_embeddings, table.embedding_dim):
            raise PlanError(
                f"table {table.name!r}: the plan is for {part.rows} rows of {part.embedding_dim}, "
                f"got {table.num_embeddings} rows of {table.embedding_dim}: plan again"
            )
        if table.data_type not in (DataType.FP32, DataType.FP16):
            raise InvalidInputError(
                f"table {table.name!r}: data_type should be FP32 or FP16 in training, got "
                f"{table.data_type}; quantize the trained module instead"
            )
    if not seen:
        raise InvalidInputError("expected at least one table, got none")
    return tuple(tables)


def _check_budget(plan: SizePlan, blocks: Mapping[str, Sequence[Block]]) -> None:
    """A row in several blocks has several row-wise states, of which the plan counted one."""
    states = sum(block.rows for own in blocks.values() for block in own)
    rows = sum(bucket.rows for name in blocks for bucket in plan[name].buckets if bucket.width)
    extra = plan.memory.state_bytes_a_row() * (states - rows)
    if plan.cost() + extra > plan.limit:
        raise PlanError(
            f"layout='prefix' keeps a row-wise optimizer state for each of a row's blocks: {extra} "
            f"bytes beside the plan's {plan.cost()} are over its budget of {plan.limit}: use "
            f"layout='bucketed', or plan with a budget that is {extra} bytes smaller"
        )


def _slots(tables: Sequence[EmbeddingBagConfig]) -> tuple[Slot, ...]:
    """Every feature of every table, named as EmbeddingBagCollection names its output."""
    names = get_embedding_names_by_table(
        [_with_features(table) for table in tables]  # a table without features is its own
    )
    return tuple(
        Slot(feature, table.name, key, table.pooling is PoolingType.MEAN)
        for table, keys in zip(tables, names, strict=True)
        for feature, key in zip(table.feature_names or [table.name], keys, strict=True)
    )


def _with_features(table: EmbeddingBagConfig) -> EmbeddingBagConfig:
    if not table.feature_names:
        table.feature_names = [table.name]  # as EmbeddingBagCollection itself does
    return table
