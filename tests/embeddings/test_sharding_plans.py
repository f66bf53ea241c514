"""What TorchRec's planner is told: types that pass, bag weights, optimizers, id maps."""

from __future__ import annotations

import copy
import itertools

import numpy as np
import pytest
import torch
from masked_cases import LAYOUTS, config, plan_of
from torch.distributed.optim import _apply_optimizer_in_backward as apply_in_backward
from torchrec.distributed.planner import EmbeddingShardingPlanner, Topology
from torchrec.distributed.planner.enumerators import EmbeddingEnumerator
from torchrec.distributed.planner.planners import to_sharding_plan
from torchrec.distributed.planner.storage_reservations import FixedPercentageStorageReservation
from torchrec.distributed.planner.types import ParameterConstraints
from torchrec.distributed.sharding_plan import get_default_sharders
from torchrec.modules.feature_processor_ import PositionWeightedModule
from torchrec.modules.fp_embedding_modules import FeatureProcessedEmbeddingBagCollection
from torchrec.modules.mc_embedding_modules import ManagedCollisionEmbeddingBagCollection
from torchrec.modules.mc_modules import (
    DistanceLFU_EvictionPolicy,
    ManagedCollisionCollection,
    MCHManagedCollisionModule,
)

from bet_torchrec import Budget
from bet_torchrec.embeddings import (
    BudgetedEmbeddingBagCollection,
    BudgetedEmbeddingBagCollectionSharder,
    IdMapReservation,
    ShardingError,
    sharding_constraints,
)
from bet_torchrec.embeddings.sharding.checks import EmbOptimType, check_sharding
from bet_torchrec.errors import InvalidInputError

TABLES = [config("big", 64, 16, "f", "g"), config("few", 5, 8, "h")]
RANKED = {"big": np.repeat([16, 8, 4], [20, 20, 24]), "few": np.repeat([8, 4], [3, 2])}
SHUFFLED = {name: own[::-1].copy() for name, own in RANKED.items()}  # ids are no ranks
SGD = {"optimizer": EmbOptimType.EXACT_SGD, "learning_rate": 0.1}
TYPES = ["table_wise", "row_wise", "column_wise", "data_parallel", "table_row_wise"]


def collection(sizes=RANKED, budget=None, layout="bucketed", row_order="ranked", **options):
    plan = plan_of(TABLES, sizes, budget)
    return BudgetedEmbeddingBagCollection(
        TABLES, plan, layout=layout, row_order=row_order, device="meta", **options
    )


def options_of(module, sharder, world=2, device="cpu", constraints=None):
    """Everything that TorchRec's planner would choose from, with its estimates."""
    topology = Topology(world_size=world, compute_device=device, local_world_size=world)
    enumerator = EmbeddingEnumerator(topology, batch_size=8, constraints=constraints)
    return topology, enumerator.enumerate(module, [sharder])


def planned(topology, module, options):
    """As if the planner had chosen one option for each block."""
    for option in options:
        for place, shard in enumerate(option.shards):
            shard.rank = place % topology.world_size
    return to_sharding_plan(options, topology).plan[""]


@pytest.mark.parametrize("device", ["cuda", "cpu"])
@pytest.mark.parametrize("world", [2, 3, 4])
@pytest.mark.parametrize(("layout", "row_order"), LAYOUTS)
def test_constraints_never_offer_what_the_sharder_refuses(layout, row_order, world, device):
    module = collection(layout=layout, row_order=row_order)
    for wanted, types in ((None, None), (TYPES, None), (["row_wise"], TYPES)):
        sharder = BudgetedEmbeddingBagCollectionSharder(SGD, sharding_types=types)
        constraints = sharding_constraints(module, sharding_types=wanted, world_size=world)
        topology, options = options_of(module, sharder, world, device, constraints)
        own = {
            name: list(some)
            for name, some in itertools.groupby(
                sorted((o for o in options if o.compute_kernel == "fused"), key=lambda o: o.name),
                key=lambda o: o.name,
            )
        }
        assert set(own) == {block.name for laid in module.blocks.values() for block in laid}
        for choice in itertools.zip_longest(*own.values()):
            chosen = [one or some[0] for one, some in zip(choice, own.values(), strict=True)]
            params = planned(topology, module, copy.deepcopy(chosen))
            check_sharding(module, params, SGD, world, torch.device(device))


def test_row_wise_is_still_offered_where_it_passes():
    """The rule has not become one that refuses everything."""
    module = collection(row_order="interleaved")
    found = sharding_constraints(module, world_size=2)
    assert "row_wise" in found["big/w16"].sharding_types
    assert (
        "row_wise" not in sharding_constraints(collection(), world_size=2)["big/w16"].sharding_types
    )


def test_data_parallel_is_not_offered_for_weights_with_an_optimizer_of_their_own():
    """TorchRec would drop it: such tables never train."""
    module = collection()
    apply_in_backward(torch.optim.SGD, module.parameters(), {"lr": 0.1})
    for block in sharding_constraints(module).values():
        assert "data_parallel" not in block.sharding_types


def test_weighted_collections_are_planned_as_weighted():
    sharder = BudgetedEmbeddingBagCollectionSharder(SGD)
    for weighted in (False, True):
        _, options = options_of(collection(is_weighted=weighted), sharder)
        assert {option.is_weighted for option in options} == {weighted}


# Storage


def storage(optimizer, sizes=RANKED):
    """{block: bytes that TorchRec estimates for it whole on one rank}."""
    sharder = BudgetedEmbeddingBagCollectionSharder(
        {"optimizer": optimizer, "learning_rate": 0.1}, sharding_types=["table_wise"]
    )
    module = collection(sizes)
    _, options = options_of(module, sharder)
    return module, {o.name: o.total_storage.ddr for o in options if o.compute_kernel == "fused"}


@pytest.mark.parametrize(
    ("optimizer", "a_weight", "a_row"),
    [
        (EmbOptimType.EXACT_SGD, 0, 0),
        (EmbOptimType.EXACT_ADAGRAD, 4, 0),
        (EmbOptimType.EXACT_ROWWISE_ADAGRAD, 0, 4),
        (EmbOptimType.ADAM, 8, 0),
        (EmbOptimType.LAMB, 8, 0),
    ],
)
def test_the_planner_knows_the_fused_optimizer_s_state(optimizer, a_weight, a_row):
    _, without = storage(EmbOptimType.EXACT_SGD)
    module, found = storage(optimizer)
    for own in module.blocks.values():
        for block in own:
            state = block.rows * (a_weight * block.width + a_row)
            assert found[block.name] - without[block.name] == state


def test_the_planner_knows_the_budget_s_optimizer_for_dense_kernels():
    """A torch optimizer comes after planning; the budget has counted it."""
    budget = Budget.bytes(10**5, purpose="training", dtype="fp32", optimizer="adam")
    module = collection(RANKED, budget)
    for weight in BudgetedEmbeddingBagCollectionSharder().shardable_parameters(module).values():
        assert weight.is_meta
        assert weight._optimizer_classes == [torch.optim.Adam]
    assert not any(hasattr(weight, "_optimizer_classes") for weight in module.parameters())


def test_every_rank_s_room_for_id_maps_is_set_aside():
    module = collection(SHUFFLED)
    assert module.router.id_map_bytes == 4 * (64 + 5)
    for device in ("cpu", "cuda"):
        topology = Topology(world_size=2, compute_device=device)
        left = [
            reservation.reserve(topology, 8, module, [BudgetedEmbeddingBagCollectionSharder(SGD)])
            for rest in [FixedPercentageStorageReservation(0.1)]
            for reservation in (rest, IdMapReservation(rest))
        ]
        for before, after in zip(*(reserved.devices for reserved in left), strict=True):
            assert before.storage.ddr - after.storage.ddr == 4 * 69
            assert before.storage.hbm - after.storage.hbm == (4 * 69 if device == "cuda" else 0)
    topology = Topology(world_size=2, compute_device="cpu")
    planner = EmbeddingShardingPlanner(topology=topology, storage_reservation=IdMapReservation())
    assert planner.plan(module, [BudgetedEmbeddingBagCollectionSharder(SGD)]).plan[""]


# The budget on several ranks


def cost(sizes, world_size=1, **options):
    budget = Budget.bytes(10**6, purpose="training", dtype="fp32", world_size=world_size, **options)
    return plan_of(TABLES, sizes, budget).cost()


def checked(module, how, world, optimizer=EmbOptimType.EXACT_SGD):
    params = {"optimizer": optimizer, "learning_rate": 0.1}
    sharder = BudgetedEmbeddingBagCollectionSharder(params, sharding_types=TYPES)
    constraints = {
        block.name: ParameterConstraints(sharding_types=[how], min_partition=4)
        for own in module.blocks.values()
        for block in own
    }
    topology = Topology(world_size=world, compute_device="cpu")
    plan = EmbeddingShardingPlanner(topology=topology, constraints=constraints).plan(
        module, [sharder]
    )
    if how == "data_parallel":
        params = {}
    check_sharding(module, plan.plan[""], params, world, torch.device("cpu"))


def budgeted(sizes, amount, optimizer="sgd", **options):
    budget = Budget.bytes(amount, purpose="training", dtype="fp32", optimizer=optimizer, **options)
    return collection(sizes, budget)


def test_every_rank_s_copy_of_the_id_maps_is_counted():
    exact = cost(SHUFFLED, optimizer="sgd")
    maps = 4 * 69
    checked(budgeted(SHUFFLED, exact), "table_wise", 1)
    with pytest.raises(ShardingError, match=f"take {exact + maps} bytes.*world_size"):
        checked(budgeted(SHUFFLED, exact), "table_wise", 2)
    assert cost(SHUFFLED, 3, optimizer="sgd") == exact + 2 * maps
    checked(budgeted(SHUFFLED, exact + 2 * maps, world_size=3), "table_wise", 3)
    checked(budgeted(RANKED, exact - maps), "table_wise", 3)  # no maps, no copies


def test_every_rank_s_copy_of_a_data_parallel_table_is_counted():
    exact = cost(RANKED, optimizer="adam")
    checked(budgeted(RANKED, exact, "adam"), "data_parallel", 1)
    with pytest.raises(ShardingError, match=f"take {2 * exact} bytes"):
        checked(budgeted(RANKED, exact, "adam"), "data_parallel", 2)
    checked(budgeted(RANKED, 2 * exact, "adam"), "data_parallel", 2)


def test_every_column_shard_s_row_wise_state_is_counted():
    exact = cost(RANKED, optimizer="rowwise_adagrad")
    rowwise = EmbOptimType.EXACT_ROWWISE_ADAGRAD
    checked(budgeted(RANKED, exact, "rowwise_adagrad"), "table_wise", 2, rowwise)
    with pytest.raises(ShardingError, match="its own row-wise state"):
        checked(budgeted(RANKED, exact, "rowwise_adagrad"), "column_wise", 2, rowwise)


def test_another_optimizer_than_the_budget_s_is_counted():
    exact = cost(RANKED, optimizer="sgd")
    with pytest.raises(ShardingError, match=f"take {2 * exact} bytes"):
        checked(budgeted(RANKED, exact), "table_wise", 2, EmbOptimType.EXACT_ADAGRAD)
    checked(budgeted(RANKED, 2 * exact), "table_wise", 2, EmbOptimType.EXACT_ADAGRAD)


def test_other_budgets_are_no_account_of_training():
    inference = Budget.bytes(10**4, purpose="inference", dtype="int8")
    for budget in (None, inference):
        checked(collection(SHUFFLED, budget), "table_wise", 3)


def test_torchrec_s_wrappers_around_ours_say_that_they_cannot_be_sharded():
    """They reach for the tables inside, whose rows are no ids."""
    processed = FeatureProcessedEmbeddingBagCollection(
        collection(is_weighted=True), {name: PositionWeightedModule(3) for name in "fgh"}
    )
    inner = collection()
    mappers = {
        table.name: MCHManagedCollisionModule(
            zch_size=table.num_embeddings,
            device=torch.device("cpu"),
            eviction_interval=1,
            eviction_policy=DistanceLFU_EvictionPolicy(),
        )
        for table in TABLES
    }
    collisions = ManagedCollisionEmbeddingBagCollection(
        inner, ManagedCollisionCollection(mappers, inner.embedding_bag_configs())
    )
    sharders = [*get_default_sharders(), BudgetedEmbeddingBagCollectionSharder(SGD)]
    planner = EmbeddingShardingPlanner(topology=Topology(world_size=2, compute_device="cpu"))
    for module in (processed, collisions):
        with pytest.raises(InvalidInputError, match="feature processors, managed collisions"):
            planner.plan(module, sharders)
