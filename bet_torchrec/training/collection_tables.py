"""TorchRec collections as the tables of a backbone, sharded or not. Importing this loads TorchRec.

A backbone asks for rows of one table at a time and a collection answers for all of its tables, so
every table is a collection of its own; plan them together, and they share one budget.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torchrec.distributed.types import Awaitable, ShardedModule
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from ..errors import InvalidInputError


class CollectionTables(nn.Module):
    """Tables by name over collections of one table each; fits ``models.EmbeddingModule``.

    collections: {table: BudgetedEmbeddingBagCollection, or TorchRec's EmbeddingBagCollection}, each
        of one table with one feature, all of the same embedding_dim. To shard them, wrap this in
        DistributedModelParallel, which replaces them in place, and go on using this.

    A read is a lookup of bags of one id. In a sharded run it is collective (all ranks read the same
    tables in the same order, each any ids), and ``table`` gives every rank the whole table: a graph
    that is partitioned reads its own rows by ``lookup`` instead.
    """

    def __init__(self, collections: Mapping[str, nn.Module]) -> None:
        super().__init__()
        configs = {name: _config(name, module) for name, module in collections.items()}
        dims = sorted({config.embedding_dim for config in configs.values()})
        if len(dims) != 1:
            raise InvalidInputError(f"expected tables of one common embedding_dim, got {dims}")
        self._rows = {name: config.num_embeddings for name, config in configs.items()}
        self._features = {name: _feature(config) for name, config in configs.items()}
        widths = [_width(module, name, dims[0]) for name, module in collections.items()]
        self.width = max(1, *widths)
        self.collections = nn.ModuleDict(dict(collections))

    @property
    def rows(self) -> dict[str, int]:
        """Rows by table."""
        return dict(self._rows)

    def table(self, name: str) -> Tensor:
        """The whole table, (rows, width), differentiable."""
        return self.lookup(name, torch.arange(self._rows[name], device=self.device))

    def lookup(self, name: str, ids: Tensor) -> Tensor:
        """Rows of int64 ids (B,), as (B, width), differentiable."""
        module = self.collections[name]
        # Row-wise lookups on gloo need as many bags on every rank, and all of TorchRec's at least
        # one: empty bags fill up.
        bags = max(1, len(ids))
        if isinstance(module, ShardedModule):
            bags = _most(bags, module, ids.device)
        lengths = F.pad(torch.ones_like(ids), (0, bags - len(ids)))
        features = KeyedJaggedTensor(keys=[self._features[name]], values=ids, lengths=lengths)
        pooled = module(features)
        if isinstance(pooled, Awaitable):
            pooled = pooled.wait()
        values: Tensor = pooled.values()
        return values[: len(ids), : self.width]

    @property
    def device(self) -> torch.device:
        """Where ids should be."""
        modules: Any = self.collections.values()
        owner = next((m.device for m in modules if getattr(m, "device", None) is not None), None)
        if owner is None:
            owner = next((p.device for p in self.parameters()), "cpu")
        return torch.device(owner)

    def replicated(self) -> Iterator[nn.Parameter]:
        """Weights that every rank holds whole and whose gradients TorchRec doesn't average."""
        for module in self.collections.values():
            if not isinstance(module, ShardedModule):
                yield from module.parameters()
            elif hasattr(module, "bases"):
                yield from module.bases.parameters()

    def load_full_tables(self, tables: Mapping[str, Tensor]) -> CollectionTables:
        """Fill each row with the first entries of its row in full tables; returns itself.

        tables: {name: (rows, embedding_dim)} in id order, on every rank of a sharded run.
        """
        if set(tables) != set(self._rows):
            raise InvalidInputError(f"expected tables {sorted(self._rows)}, got {sorted(tables)}")
        for name, module in self.collections.items():
            module.load_full_tables({name: tables[name]})  # type: ignore[operator]
        return self

    def draw(self, std: float, generator: torch.Generator | None = None) -> CollectionTables:
        """Fill with what full tables drawn from N(0, std^2) keep; returns itself.

        One full table at a time is in memory. With equally seeded generators all ranks draw alike,
        and as one process does.
        """
        for name, module in self.collections.items():
            dim = _config(name, module).embedding_dim
            full = torch.randn(self._rows[name], dim, generator=generator) * std
            # Axes stay: those of noise are as good as any.
            module.load_full_tables(  # type: ignore[operator]
                {name: full},
                bases=module.table_bases(),  # type: ignore[operator]
            )
        return self


def _most(own: int, module: Any, device: torch.device) -> int:
    """The largest of all ranks' numbers."""
    env = module.env if hasattr(module, "env") else module._env
    if env.world_size == 1:
        return own
    most = torch.tensor(own, device=device)
    dist.all_reduce(most, dist.ReduceOp.MAX, group=env.process_group)
    return int(most)


def _config(name: str, module: nn.Module) -> EmbeddingBagConfig:
    configs = module.embedding_bag_configs()  # type: ignore[operator]
    if len(configs) != 1 or configs[0].name != name or len(configs[0].feature_names or [name]) > 1:
        raise InvalidInputError(
            f"expected a collection of the one table {name!r} with one feature, got tables "
            f"{[(c.name, c.feature_names) for c in configs]}: make one collection a table"
        )
    config: EmbeddingBagConfig = configs[0]
    return config


def _feature(config: EmbeddingBagConfig) -> str:
    return config.feature_names[0] if config.feature_names else config.name


def _width(module: nn.Module, name: str, embedding_dim: int) -> int:
    """The widest read of a planned table; of any other its embedding_dim."""
    plan: Any = getattr(module, "plan", None)
    return embedding_dim if plan is None else plan[name].read_width
