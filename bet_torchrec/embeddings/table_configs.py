"""What is asked of a user's EmbeddingBagConfigs: that they fit the plan, and nothing that a sized
table would drop in silence.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from torchrec.modules.embedding_configs import DataType, EmbeddingBagConfig, PoolingType
from torchrec.modules.embedding_modules import get_embedding_names_by_table

from ..errors import InvalidInputError, PlanError
from ..planning.plan import SizePlan
from .layout import Block
from .routing import Slot

HONOURED = frozenset(
    {
        "num_embeddings",
        "embedding_dim",
        "name",
        "data_type",
        "feature_names",
        "weight_init_max",
        "weight_init_min",
        "init_fn",
        "pooling",
        "stash_weights",
        "input_dim",  # of managed collision modules; tables themselves never look at it
    }
)
_NO_VIRTUAL_TABLES = (
    "a plan sizes a fixed number of rows, and a virtual table has none: map ids to "
    "0 .. num_embeddings - 1 first, or keep this table in TorchRec's own collection"
)
_INSTEAD = {
    "num_embeddings_post_pruning": (
        "rows that the plan drops take no memory: allow width 0 when planning instead"
    ),
    "need_pos": (
        "a bag's ids are spread over tables, where their positions are lost: multiply position "
        "weights into the bag weights (is_weighted=True) before the lookup"
    ),
    "total_num_buckets": _NO_VIRTUAL_TABLES,
    "use_virtual_table": _NO_VIRTUAL_TABLES,
    "virtual_table_eviction_policy": _NO_VIRTUAL_TABLES,
    "enable_embedding_update": (
        "TorchRec writes rows by id into full tables only: write them with load_full_tables"
    ),
}


def checked_tables(
    tables: Sequence[EmbeddingBagConfig], plan: SizePlan
) -> tuple[EmbeddingBagConfig, ...]:
    """The tables as they are.

    Raises:
        PlanError: the plan is not of these tables. InvalidInputError: none, two of one name, or a
            field that would have no effect.
    """
    planned = {part.name: part for part in plan.tables}
    seen: set[str] = set()
    for table in tables:
        if table.name in seen:
            raise InvalidInputError(f"tables should have distinct names, got {table.name!r} twice")
        seen.add(table.name)
        if "." in table.name:
            raise InvalidInputError(
                f"a table's name should have no '.', which separates modules, got {table.name!r}"
            )
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
        _check_fields(table)
    if not seen:
        raise InvalidInputError("expected at least one table, got none")
    return tuple(tables)


def _check_fields(table: EmbeddingBagConfig) -> None:
    if table.data_type not in (DataType.FP32, DataType.FP16):
        raise InvalidInputError(
            f"table {table.name!r}: data_type should be FP32 or FP16 in training, got "
            f"{table.data_type}; quantize the trained module instead"
        )
    for field in dataclasses.fields(table):
        value = getattr(table, field.name)
        # What a newer TorchRec adds is refused until somebody has decided what it means here.
        if field.name not in HONOURED and value != field.default:
            advice = _INSTEAD.get(field.name, "leave it out, or use TorchRec's own collection")
            raise InvalidInputError(
                f"table {table.name!r}: {field.name} should be {field.default!r}, got {value!r}: "
                f"{advice}"
            )


def check_block_names(blocks: Mapping[str, Sequence[Block]]) -> None:
    """Raise InvalidInputError if a table is called as another one's block."""
    of: dict[str, str] = {}
    for table, own in blocks.items():
        for block in own:
            if block.name in of:
                raise InvalidInputError(
                    f"tables {of[block.name]!r} and {table!r} would both have a real table named "
                    f"{block.name!r}: rename one of them"
                )
            of[block.name] = table


def slots_of(tables: Sequence[EmbeddingBagConfig]) -> tuple[Slot, ...]:
    """Every feature of every table, named as EmbeddingBagCollection names its output."""
    for table in tables:
        if not table.feature_names:
            table.feature_names = [table.name]  # as EmbeddingBagCollection itself does
    names = get_embedding_names_by_table(list(tables))
    features = [
        (feature, table, key)
        for table, keys in zip(tables, names, strict=True)
        for feature, key in zip(table.feature_names, keys, strict=True)
    ]
    return tuple(
        Slot(feature, table.name, key, table.pooling is PoolingType.MEAN, number)
        for number, (feature, table, key) in enumerate(features)
    )
