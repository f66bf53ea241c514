"""Rows: TorchRec's modules that hold a collection, and tables of special kinds."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from conformance_kinds import (
    DIM,
    FEATURES,
    Kind,
    assert_same_output,
    batch,
    fused,
    group,
    loss_of,
    plan,
    sharder,
    values,
)
from conformance_table import TABLE, missing, refused
from torch import nn
from torchrec import KeyedJaggedTensor
from torchrec.modules.feature_processor_ import PositionWeightedModuleCollection
from torchrec.modules.fp_embedding_modules import FeatureProcessedEmbeddingBagCollection
from torchrec.modules.itep_embedding_modules import (
    ITEPEmbeddingBagCollection,
    ITEPEmbeddingCollection,
)
from torchrec.modules.itep_modules import GenericITEPModule
from torchrec.modules.mc_embedding_modules import (
    ManagedCollisionEmbeddingBagCollection,
    ManagedCollisionEmbeddingCollection,
)
from torchrec.modules.mc_modules import (
    DistanceLFU_EvictionPolicy,
    ManagedCollisionCollection,
    MCHManagedCollisionModule,
)

WRAPPED = "Inside TorchRec's modules"
SPECIAL = "Special tables"


@TABLE.row(
    WRAPPED,
    "feature processors (`FeatureProcessedEmbeddingBagCollection`, position weights)",
    unpooled=missing("TorchRec processes features of pooled collections only"),
)
def feature_processors(kind: Kind) -> None:
    gradients = []
    for made in kind.both(is_weighted=True):
        weights = PositionWeightedModuleCollection(dict.fromkeys(FEATURES, 5))
        model = FeatureProcessedEmbeddingBagCollection(made, weights)
        loss_of(kind, model(batch(weighted=True))).backward()
        gradients.append([w.grad for w in weights.parameters()])
    for own, other in zip(*gradients, strict=True):
        torch.testing.assert_close(own, other)


def _collisions(kind: Kind, made: Any) -> Any:
    configs = made.embedding_bag_configs() if kind.pooled else made.embedding_configs()
    modules = {
        config.name: MCHManagedCollisionModule(
            zch_size=config.num_embeddings,
            device=torch.device("cpu"),
            input_hash_size=10_000,
            eviction_interval=2,
            eviction_policy=DistanceLFU_EvictionPolicy(),
        )
        for config in configs
    }
    collection = ManagedCollisionCollection(modules, configs)
    if kind.pooled:
        return ManagedCollisionEmbeddingBagCollection(made, collection)
    return ManagedCollisionEmbeddingCollection(made, collection)


@TABLE.row(WRAPPED, "managed collisions (ZCH)")
def managed_collisions(kind: Kind) -> None:
    ours, theirs = (_collisions(kind, made).train() for made in kind.both())
    for seed in range(4):
        one = batch(seed)
        wild = KeyedJaggedTensor(
            keys=one.keys(), values=one.values() * 131 + 7, lengths=one.lengths()
        )
        found, expected = (made(wild)[0] for made in (ours, theirs))
        assert_same_output(kind, lambda _, f=found: f, lambda _, e=expected: e, one)


@TABLE.row(WRAPPED, "in-training embedding pruning (ITEP)")
def pruning(kind: Kind) -> None:
    for made in kind.both():
        itep = GenericITEPModule(
            table_name_to_unpruned_hash_sizes={"a": 60},
            lookups=None,
            enable_pruning=True,
            pruning_interval=2,
        )
        wrap = ITEPEmbeddingBagCollection if kind.pooled else ITEPEmbeddingCollection
        wrap(made, itep)


class Sum(nn.Module):
    """An interaction."""

    def __init__(self, kind: Kind) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, found: Any) -> torch.Tensor:
        return torch.cat([rows.sum(0) for rows in self.kind.rows_of(found).values()])[None]


@TABLE.row(WRAPPED, "`EmbeddingTower`, not sharded")
def tower(kind: Kind) -> None:
    from torchrec.modules.embedding_tower import EmbeddingTower

    found, expected = (EmbeddingTower(made, Sum(kind))(batch()) for made in kind.both())
    torch.testing.assert_close(found, expected)


UNSUPPORTED = refused("Unsupported embedding type")


@TABLE.row(
    WRAPPED,
    "`EmbeddingTower` under TorchRec's `EmbeddingTowerSharder`",
    pooled=UNSUPPORTED,
    unpooled=UNSUPPORTED,
)
def tower_sharder(kind: Kind) -> None:
    """It knows TorchRec's two classes only; without it our own sharder takes what is inside."""
    from torchrec.distributed.embedding_tower_sharding import EmbeddingTowerSharder
    from torchrec.modules.embedding_tower import EmbeddingTower

    for made in reversed(kind.both()):
        tower = EmbeddingTower(made, Sum(kind))
        assert EmbeddingTowerSharder({}).shardable_parameters(tower)


@TABLE.row(WRAPPED, "`EmbeddingTower`, what is inside sharded by our sharder")
def tower_sharded(kind: Kind) -> None:
    from torchrec.distributed import DistributedModelParallel
    from torchrec.modules.embedding_tower import EmbeddingTower

    with group():
        model: Any = DistributedModelParallel(
            EmbeddingTower(kind.ours(device="meta"), Sum(kind)),
            device=torch.device("cpu"),
            sharders=[sharder(kind, own=True, fused=fused())],
            init_parameters=False,
        )
        model.module.embedding.load_full_tables(values())
        found = model(batch())
    torch.testing.assert_close(found, EmbeddingTower(kind.theirs(), Sum(kind))(batch()))


@TABLE.row(
    WRAPPED,
    "TorchRec's DLRM",
    unpooled=missing("its models take pooled collections"),
)
def dlrm(kind: Kind) -> None:
    from torchrec.models.dlrm import DLRM

    found = []
    for made in kind.both():
        torch.manual_seed(0)
        model = DLRM(made, 4, [8, DIM], [8, 1])
        found.append(model(torch.ones(6, 4), batch()))
    torch.testing.assert_close(*found)


def _special(field: str, value: Any) -> Any:
    def check(kind: Kind) -> None:
        tables = kind.tables(**{field: value})
        kind.plain(tables=[dataclasses.replace(table) for table in tables])
        kind.own(tables, plan())

    return check


for field, value, advice in (
    ("use_virtual_table", True, "map ids to 0 .. num_embeddings - 1 first"),
    ("total_num_buckets", 2, "map ids to 0 .. num_embeddings - 1 first"),
    ("need_pos", True, "multiply position weights into the bag weights"),
    ("num_embeddings_post_pruning", 9, "allow width 0 when planning instead"),
    ("enable_embedding_update", True, "write them with load_full_tables"),
):
    TABLE.row(SPECIAL, f"`{field}`", pooled=refused(advice), unpooled=refused(advice))(
        _special(field, value)
    )

NO_SSD = missing("its kernels need CUDA")
TABLE.row(SPECIAL, "SSD and DRAM virtual tables' kernels", pooled=NO_SSD, unpooled=NO_SSD)(
    lambda kind: None
)


@TABLE.row(
    SPECIAL,
    "`set_pruning_data` by a table's name",
    pooled=refused("plan with width 0 among the widths"),
    unpooled=missing("TorchRec prunes pooled collections only"),
)
def pruned_rows(kind: Kind) -> None:
    from conformance_kinds import Model
    from torchrec.inference.modules import quantize_inference_model, set_pruning_data

    for made in reversed(kind.both()):
        model = Model(made)
        set_pruning_data(model, {"a": 10})
        quantize_inference_model(model)


@TABLE.row(
    SPECIAL,
    "`per_table_weight_dtype` by a table's name",
    pooled=refused("per_table_weight_dtype=for_blocks"),
    unpooled=refused("per_table_weight_dtype=for_blocks"),
)
def dtype_of_a_table(kind: Kind) -> None:
    from conformance_kinds import Model
    from torchrec.inference.modules import quantize_inference_model

    for made in reversed(kind.both()):
        model = Model(made)
        quantize_inference_model(model, per_table_weight_dtype={"a": torch.quint4x2})
