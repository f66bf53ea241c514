"""What TorchRec looks up by a table's name, where a table is several real ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, TypeVar

from torch import nn
from torchrec.inference.modules import MODULE_ATTR_EMB_CONFIG_NAME_TO_NUM_ROWS_POST_PRUNING_DICT
from torchrec.modules.embedding_configs import dtype_to_data_type

from ..errors import InvalidInputError
from ..planning.budget import MemoryModel
from .layout import Block

Value = TypeVar("Value")


class HasBlocks(Protocol):
    """A collection, sharded, quantised or neither."""

    blocks: Mapping[str, Sequence[Block]]


def for_blocks(module: HasBlocks, by_table: Mapping[str, Value]) -> dict[str, Value]:
    """{table: anything} as TorchRec needs it: {real table: the same}; other names stay.

    For instance ``quantize_embeddings(..., per_table_weight_dtype=for_blocks(tables, {...}))``.
    """
    found = {}
    for name, value in by_table.items():
        blocks = module.blocks.get(name)
        found.update({name: value} if blocks is None else {b.name: value for b in blocks})
    return found


def refuse_from_float(module: nn.Module, prefix: str, keep_vars: bool) -> None:
    """A hook on a collection's state, which TorchRec's ``from_float`` reads, on its own."""
    if not prefix and getattr(module, "qconfig", None) is not None:
        raise InvalidInputError(
            f"a {type(module).__name__} is quantised by bet_torchrec.embeddings."
            "quantize(model): TorchRec's from_float would take its real tables for full ones"
        )


def refuse_precisions(
    blocks: Mapping[str, Sequence[Block]], planned: bool, module: nn.Module, prefix: str, *_: bool
) -> None:
    """A hook as ``refuse_by_table``: TorchRec asks for one type, plans for one a row.

    planned: whether the plan says precisions to serve in, not only how rows are trained.
    """
    qconfig = getattr(module, "qconfig", None)
    if prefix or qconfig is None:
        return
    named = getattr(qconfig, "per_table_weight_dtype", None) or {}
    for block in (block for own in blocks.values() for block in own):
        dtype = named.get(block.name, qconfig.weight().dtype)
        asked = dtype_to_data_type(dtype).value.lower()
        if planned and asked != block.precision:
            raise InvalidInputError(
                f"table {block.table!r}: the plan serves rows of {block.width} columns in "
                f"{block.precision}, TorchRec's quantisation was asked for {asked}: call "
                "bet_torchrec.embeddings.quantize(model) first, which follows the plan and takes "
                "any width; TorchRec's then leaves those tables as they are"
            )
        if block.real_width % MemoryModel.width_multiple(asked):
            raise InvalidInputError(
                f"table {block.table!r}: FBGEMM's {asked} rows have multiples of "
                f"{MemoryModel.width_multiple(asked)} columns, got {block.real_width}: call "
                "bet_torchrec.embeddings.quantize(model) first, which takes any width"
            )


def refuse_by_table(
    names: Mapping[str, Sequence[str]], module: nn.Module, prefix: str, keep_vars: bool
) -> None:
    """A hook on the real tables' state, which TorchRec's quantisation reads: say what it missed.

    names: {table: its real tables}.
    """
    if prefix:
        return
    pruned = getattr(module, MODULE_ATTR_EMB_CONFIG_NAME_TO_NUM_ROWS_POST_PRUNING_DICT, None) or {}
    for table, real in names.items():
        if any(name in pruned for name in (table, *real)):
            raise InvalidInputError(
                f"table {table!r}: set_pruning_data cuts rows off the end of a full table, and a "
                "plan's rows lie in the order of their ranks: plan with width 0 among the widths, "
                "whose rows take no memory, instead"
            )
    dtypes = getattr(getattr(module, "qconfig", None), "per_table_weight_dtype", None) or {}
    for table, real in names.items():
        missed = sorted(set(real) - set(dtypes))
        if table in dtypes and missed:
            raise InvalidInputError(
                f"per_table_weight_dtype of table {table!r} would not reach its real tables "
                f"{', '.join(missed)}: give per_table_weight_dtype=for_blocks(tables, {{...}}), or "
                "plan its precisions and call bet_torchrec.embeddings.quantize"
            )
