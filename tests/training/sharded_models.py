"""The three backbones over planned TorchRec tables, in one process and on a group's ranks."""

from __future__ import annotations

import numpy as np
import torch
import torch.distributed as dist
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from torch import nn
from torchrec import EmbeddingBagConfig
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.planner import EmbeddingShardingPlanner, Topology
from torchrec.distributed.types import ShardingEnv
from training_oracles import small_split

from bet_torchrec.embeddings import (
    BudgetedEmbeddingBagCollection,
    BudgetedEmbeddingBagCollectionSharder,
    sharding_constraints,
    with_dense_kernels,
)
from bet_torchrec.models import NGCF, BipartiteGraph, PartitionedGraph, make_backbone
from bet_torchrec.planning import Budget, RowCounts, SizePlan, TableSpec
from bet_torchrec.training.collection_tables import CollectionTables

SPLIT = small_split()
DIM = 8
FUSED = {"sgd": EmbOptimType.EXACT_SGD, "rowwise": EmbOptimType.EXACT_ROWWISE_ADAGRAD}


def backbone_of(name: str, graph: BipartiteGraph) -> nn.Module:
    """Without dropout, its weights drawn."""
    if name == "ngcf":
        made = NGCF(graph, dim=DIM, layers=(6, 5), message_dropout=0, node_dropout=0)
    else:
        made = make_backbone(name, graph, dim=DIM)
    made.reset_parameters(torch.Generator().manual_seed(1))
    return made


def counts_of(rows: dict[str, int]) -> dict[str, RowCounts]:
    by_side = {
        number: counts for counts in SPLIT.train.counts().values() if (number := len(counts))
    }
    return {name: RowCounts.from_rows(by_side[number]) for name, number in rows.items()}


def plan_of(rows: dict[str, int], sizes: dict[str, np.ndarray] | None = None) -> SizePlan:
    """Sizes 8, 4 and 0, falling with the count, unless given."""
    specs = [TableSpec(name, n, DIM) for name, n in rows.items()]
    budget = Budget.parameters(sum(rows.values()) * DIM)
    sizes = _falling(rows) if sizes is None else sizes
    return SizePlan.from_sizes(specs, sizes, counts_of(rows), budget=budget, sizer="test")


def _falling(rows: dict[str, int]) -> dict[str, np.ndarray]:
    sizes = {}
    for name, counts in counts_of(rows).items():
        ranked = np.repeat([8, 4, 0], [rows[name] // 3, rows[name] // 2, rows[name]])[: rows[name]]
        sizes[name] = ranked.copy()
        if counts.order is not None:
            sizes[name][counts.order] = ranked
    return sizes


def tables_of(
    rows: dict[str, int], device: str = "cpu", plan: SizePlan | None = None
) -> CollectionTables:
    plan = plan_of(rows) if plan is None else plan
    return CollectionTables(
        {
            name: BudgetedEmbeddingBagCollection(
                [EmbeddingBagConfig(name=name, num_embeddings=n, embedding_dim=DIM)],
                plan,
                device=device,
                row_order="interleaved",
            )
            for name, n in rows.items()
        }
    )


def draw(tables: CollectionTables) -> CollectionTables:
    return tables.draw(0.3, torch.Generator().manual_seed(2))


def one_process(name: str) -> tuple[nn.Module, CollectionTables]:
    backbone = backbone_of(name, BipartiteGraph(SPLIT.train.csr()))
    return backbone, draw(tables_of(dict(backbone.table_rows)))


def on_group(
    name: str, pg: dist.ProcessGroup, how: str, fused: str | None = None
) -> tuple[nn.Module, CollectionTables]:
    """As ``one_process``, sharded; fused: the tables' optimizer, None for torch's own."""
    backbone = backbone_of(name, PartitionedGraph(SPLIT.train.csr(), pg))
    rows, world = dict(backbone.table_rows), dist.get_world_size(pg)
    tables = tables_of(rows, device="meta")
    constraints = {}
    for module in tables.collections.values():
        constraints |= sharding_constraints(
            module, counts_of(rows), sharding_types=[how], world_size=world
        )
    fused_params = {"optimizer": FUSED[fused], "learning_rate": 9.0, "eps": 1e-8} if fused else None
    types = ["table_wise", "row_wise", "data_parallel"]
    sharders = [BudgetedEmbeddingBagCollectionSharder(fused_params, sharding_types=types)]
    planner = EmbeddingShardingPlanner(
        topology=Topology(world_size=world, compute_device="cpu"), constraints=constraints
    )
    plan = planner.collective_plan(tables, sharders, pg)
    DistributedModelParallel(
        tables,
        env=ShardingEnv.from_process_group(pg),
        device=torch.device("cpu"),
        plan=plan if fused else with_dense_kernels(plan, tables),
        sharders=sharders,
    )
    return backbone, draw(tables)
