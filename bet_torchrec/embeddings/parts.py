"""Which rows and columns of a block's real table this rank holds, sharded or not."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torch.distributed.tensor import DTensor
from torchrec.modules.embedding_configs import BaseEmbeddingConfig

from ..axes import Basis, lookups, principal_basis
from ..errors import InvalidInputError
from ..planning.plan import SizePlan
from .bases import Bases, coordinate_plan
from .layout import Block, Layout, RowOrder
from .optimizer_state import OptimizerStates

_PIECE = 1 << 16  # rows turned at once


@runtime_checkable
class Collection(Protocol):
    """What pooled and unpooled collections have in common, sharded or not."""

    tables: tuple[BaseEmbeddingConfig, ...]
    plan: SizePlan
    layout: Layout
    row_order: RowOrder
    blocks: dict[str, tuple[Block, ...]]
    bases: Bases

    def block_weights(self) -> Mapping[str, Any]:
        """{block name: its real table}: a tensor of any kind that state_dict has."""
        ...

    @property
    def id_map_bytes(self) -> int:
        """Bytes of the id maps, which every rank has."""
        ...


class Trainable(Collection, Protocol):
    """An unsharded one."""

    def weight(self, block: Block) -> nn.Parameter:
        """The real table of a block, (rows, real_width)."""
        ...


@dataclass(frozen=True)
class Part:
    """A rectangle of a block: ``values``, a view of the weights, begins at (row, column) of it.

    replicated: every rank holds it.
    """

    row: int
    column: int
    values: Tensor
    replicated: bool

    @property
    def rows(self) -> slice:
        """Its rows of the block."""
        return slice(self.row, self.row + self.values.shape[0])

    @property
    def columns(self) -> slice:
        """Its columns of the block."""
        return slice(self.column, self.column + self.values.shape[1])


def local_parts(module: Collection) -> dict[str, list[Part]]:
    """{block name: what this rank holds of it}; an empty list where it holds nothing.

    Columns that only pad a real table are left out.
    """
    weights = module.block_weights()
    return {
        block.name: list(_unpadded(parts_of(weights[block.name]), block))
        for own in module.blocks.values()
        for block in own
    }


def _unpadded(parts: Iterable[Part], block: Block) -> Iterator[Part]:
    for part in parts:
        width = min(part.values.shape[1], block.width - part.column)
        if width > 0:
            yield replace(part, values=part.values[:, :width]) if block.padding else part


def parts_of(weight: Tensor | ShardedTensor | DTensor) -> Iterator[Part]:
    """What this rank holds of one tensor."""
    if isinstance(weight, ShardedTensor):
        for shard in weight.local_shards():
            row, column = shard.metadata.shard_offsets
            yield Part(row, column, shard.tensor.detach(), replicated=False)
    elif isinstance(weight, DTensor):
        local: Any = weight.to_local()  # TorchRec's LocalShardsWrapper
        for values, (row, column) in zip(local.local_shards(), local.local_offsets(), strict=True):
            yield Part(row, column, values.detach(), replicated=False)
    else:
        yield Part(0, 0, weight.detach(), replicated=True)


def table_weights(collection: nn.Module, kind: str) -> dict[str, Any]:
    """{table: weight} of one of TorchRec's, sharded or not; kind: where its state has them."""
    start, end = f"{kind}.", ".weight"
    return {
        key.removeprefix(start).removesuffix(end): weight
        for key, weight in collection.state_dict(keep_vars=True).items()
        if key.startswith(start) and key.endswith(end)
    }


@torch.no_grad()
def clear_padding(module: Collection) -> None:
    """Zeros where real tables are padded: some optimizers look at the whole row."""
    padded = [block for own in module.blocks.values() for block in own if block.padding]
    if not padded:
        return
    weights = module.block_weights()
    for block in padded:
        for part in parts_of(weights[block.name]):
            part.values[:, max(0, block.width - part.column) :] = 0


def refuse_full_tables(
    state: Mapping[str, Any], prefix: str, errors: list[str], kind: str = "embedding_bags"
) -> None:
    """For a module's loading: say what to do with the state of a plain collection.

    errors: what ``load_state_dict`` raises, strict or not. kind: where a plain one's state has its
    tables.
    """
    own = f"{prefix}{kind}."
    tables = sorted({key.removeprefix(own).split(".")[0] for key in state if key.startswith(own)})
    if tables:
        errors.append(
            "expected the state of a budgeted collection, got full tables "
            f"({', '.join(tables)}) of a plain collection: give them to load_full_tables({{name: "
            "rows}), which takes of each row what the plan keeps"
        )


@torch.no_grad()
def load_full_tables(
    module: Collection,
    tables: Mapping[str, Tensor],
    *,
    counts: Mapping[str, Any] | None = None,
    bases: Mapping[str, Basis] | None = None,
    process_group: dist.ProcessGroup | None = None,
) -> None:
    """Fill each row that this rank holds with the first entries of its row in full tables.

    Args:
        tables, counts, bases: as for ``BudgetedEmbeddingBagCollection.load_full_tables``.
        process_group: the ranks that a sharded module is spread over: the first's axes are taken.

    Raises:
        InvalidInputError: other tables, other rows, or tables too narrow.
    """
    if set(tables) != set(module.blocks):
        raise InvalidInputError(f"expected tables {sorted(module.blocks)}, got {sorted(tables)}")
    for name, full in tables.items():
        plan = module.plan[name]
        least = plan.read_width
        if full.ndim != 2 or len(full) != plan.rows or full.shape[1] < least:
            raise InvalidInputError(
                f"table {name!r}: expected ({plan.rows}, {least} or more), got {tuple(full.shape)}"
            )
    assert isinstance(module, nn.Module)
    OptimizerStates(module).forget_caches()
    wanted = [n for n in tables if module.plan[n].axes and n not in (bases or {})]
    principal = {
        name: principal_basis(
            tables[name][:, : module.plan[name].embedding_dim],
            lookups((counts or {}).get(name)),
            width=module.plan[name].axes,
        )
        for name in wanted
    }
    module.bases.put({**(bases or {}), **principal})
    module.bases.share(process_group)
    chosen = module.bases.told()
    parts = local_parts(module)
    for name, own in module.blocks.items():
        full, plan = tables[name], module.plan[name]
        axes = chosen.get(name)
        for block in own:
            ids = torch.from_numpy(block.ids(plan)).to(full.device)
            for part in parts[block.name]:
                if axes is None:
                    part.values.copy_(full[:, block.columns][:, part.columns][ids[part.rows]])
                    continue
                for start in range(0, len(part.values), _PIECE):  # never a turned table at once
                    some = part.values[start : start + _PIECE]
                    rows = full[ids[part.rows][start : start + _PIECE], : plan.embedding_dim]
                    turned = axes.coordinates(rows.float())
                    some.copy_(turned[:, block.columns][:, part.columns])


@torch.no_grad()
def full_tables(
    module: Collection, process_group: dist.ProcessGroup | None = None
) -> dict[str, Tensor]:
    """Copies {name: (rows, embedding_dim)} in id order, zeros beyond a row's size.

    process_group: the ranks that a sharded module is spread over; every rank gets all tables. None
        reads what this process holds, which is all of an unsharded module.
    """
    parts, full = local_parts(module), {}
    several = process_group is not None and process_group.size() > 1
    counts_here = not several or dist.get_rank(process_group) == 0
    for table in module.tables:
        device = next((p.values.device for p in _all(parts, module.blocks[table.name])), None)
        if device is None and several:
            device = dist.distributed_c10d._get_pg_default_device(process_group)
        width = coordinate_plan(module.plan[table.name]).embedding_dim
        whole = torch.zeros(table.num_embeddings, width, device=device)
        for block in module.blocks[table.name]:
            ids = torch.from_numpy(block.ids(module.plan[table.name])).to(whole.device)
            for part in parts[block.name]:
                if part.replicated and not counts_here:
                    continue
                first = block.first_column + part.column
                columns = slice(first, first + part.values.shape[1])
                whole[ids[part.rows], columns] = part.values.to(whole.dtype)
        if several:
            dist.all_reduce(whole, group=process_group)  # each entry has one owner
        full[table.name] = _turned_back(module, table, whole)
    return full


def _turned_back(module: Collection, table: BaseEmbeddingConfig, stored: Tensor) -> Tensor:
    """All columns of what is stored of a table, (rows, embedding_dim)."""
    axes = module.bases.axes(table.name)
    if axes is None:
        return F.pad(stored, (0, table.embedding_dim - stored.shape[1]))
    return stored @ axes.detach().to(stored)


def _all(parts: Mapping[str, list[Part]], blocks: tuple[Block, ...]) -> Iterator[Part]:
    for block in blocks:
        yield from parts[block.name]
