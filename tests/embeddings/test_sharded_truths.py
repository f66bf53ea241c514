"""Sharded, what was wrong in silence now works or says what to do, in real gloo processes."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sharded_cases import TABLES, all_rows, batch, full_tables, make_module, make_plan, run_ranks
from tensordict import TensorDict
from torchrec import KeyedJaggedTensor

LR = 0.1


def fused(**options: Any) -> dict[str, Any]:
    from fbgemm_gpu.split_embedding_configs import EmbOptimType

    return {"optimizer": EmbOptimType.EXACT_SGD, "learning_rate": LR, **options}


def wrapped(module: torch.nn.Module, *, fused_params: Any = None, **options: Any) -> Any:
    from torchrec.distributed import DistributedModelParallel
    from torchrec.distributed.sharding_plan import get_default_sharders

    from bet_torchrec.embeddings import BudgetedEmbeddingBagCollectionSharder

    sharder = BudgetedEmbeddingBagCollectionSharder(
        fused_params or fused(), sharding_types=["table_wise"]
    )
    sharders = [*get_default_sharders(), sharder]
    return DistributedModelParallel(
        module, device=torch.device("cpu"), **{"sharders": sharders, **options}
    )


def sharded(**options: Any) -> Any:
    model = wrapped(make_module(make_plan(), device="meta"), **options)
    model.module.load_full_tables(full_tables())
    return model


def error_of(call: Any) -> str:
    """What a call raises, as "Type: text"."""
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


# Scenes, each on two ranks


def forgotten_sharder(rank: int, world: int) -> str:
    from torchrec.distributed import DistributedModelParallel

    model = torch.nn.Sequential(make_module(make_plan(), device="meta"))
    return error_of(lambda: DistributedModelParallel(model, device=torch.device("cpu")))


def no_sharder_and_no_plan_of_ours(rank: int, world: int) -> dict[str, Any]:
    """Left alone by a plan of other modules, it is a dense module like any other."""
    from torchrec.distributed import DistributedModelParallel
    from torchrec.distributed.types import ShardingPlan

    module = make_module(make_plan()).load_full_tables(full_tables())
    DistributedModelParallel(module, device=torch.device("cpu"), plan=ShardingPlan({}))
    return {name: table.numpy() for name, table in all_rows(module).items()}


def caches_reset(rank: int, world: int) -> list[int]:
    from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
        SplitTableBatchedEmbeddingBagsCodegen as Tables,
    )

    model, reset = sharded(), []
    original = Tables.reset_cache_states

    def counting(self: Any) -> None:
        before = self.split_embedding_weights()[0].clone()
        original(self)
        reset.append(int(torch.equal(before, self.split_embedding_weights()[0])))

    Tables.reset_cache_states = counting
    try:
        model.module.load_full_tables(full_tables(7))
    finally:
        Tables.reset_cache_states = original
    return reset


def replicas_kernels(rank: int, world: int) -> list[int]:
    """How often TorchRec's two-dimensional wrapper lists each kernel that it keeps in step."""
    from torchrec.distributed.model_parallel import DMPCollection

    # It takes CUDA alone, but how it finds kernels needs nothing of that.
    wrapper = SimpleNamespace(_dmp_wrapped_module=torch.nn.Sequential(sharded().module))
    context = SimpleNamespace(sharded_module=None, modules_to_sync=[])
    DMPCollection._group_sharded_modules(wrapper, [context])
    listed = [id(kernel) for kernel, _ in context.modules_to_sync]
    return [listed.count(kernel) for kernel in dict.fromkeys(listed)]


def contradictions(rank: int, world: int) -> dict[str, str]:
    """Two ranks must fail alike, or one waits for ever: every case is the same on both."""
    values, lengths = torch.tensor([0, 1, 2, 3, 4, 5]), torch.ones(6, dtype=torch.int64)

    def kjt(**changed: Any) -> KeyedJaggedTensor:
        return KeyedJaggedTensor(
            **{"keys": ["f1", "f2", "f3"], "values": values, "lengths": lengths, **changed}
        )

    cases = {
        "a key twice": kjt(keys=["f1", "f1", "f3"]),
        "surplus weights": kjt(weights=torch.ones(8)),
        "offsets": kjt(offsets=torch.tensor([0, 0, 2, 3, 4, 5, 6])),
        "too many ids": kjt(values=torch.arange(7)),
    }
    found = {}
    for name, wrong in cases.items():
        model = sharded()
        found[name] = error_of(lambda model=model, wrong=wrong: model(wrong).values())
    model = sharded()
    model(kjt())
    # After the first batch, whatever needs no waiting for a device.
    for name in ("a key twice", "surplus weights"):
        found[f"{name}, later"] = error_of(lambda wrong=cases[name]: model(wrong).values())
    return found


def position_weights(rank: int, world: int) -> dict[str, Any]:
    model = wrapped(make_module(make_plan(), device="meta", is_weighted=True))
    model.module.load_full_tables(full_tables())
    kjt, _ = batch(0, rank, world)
    weights = torch.ones(len(kjt.values()), requires_grad=True)

    def weighted(own: torch.Tensor) -> KeyedJaggedTensor:
        return KeyedJaggedTensor(kjt.keys(), kjt.values(), weights=own, lengths=kjt.lengths())

    found: dict[str, Any] = {"trained": error_of(lambda: model(weighted(weights)).values())}
    found["detached"] = error_of(lambda: model(weighted(weights.detach())).values())
    with torch.no_grad():
        found["evaluated"] = error_of(lambda: model(weighted(weights)).values())
    return found


def resharded(rank: int, world: int) -> dict[str, Any]:
    """Every block to the other rank, between two steps of training."""
    from torchrec.distributed.types import EmbeddingModuleShardingPlan

    parts = {"tables": make_module(make_plan(), device="meta"), "top": torch.nn.Linear(40, 1)}
    model = wrapped(torch.nn.ModuleDict(parts))  # TorchRec reshards models with dense parts only
    tables = model.module["tables"]
    tables.load_full_tables(full_tables())
    before = {name: how.ranks for name, how in tables.module_sharding_plan.items()}
    kjt, target = batch(0, rank, world)

    def step() -> None:
        (tables(kjt).values() - target).square().sum().backward()

    step()
    moved = EmbeddingModuleShardingPlan()
    for name, how in tables.module_sharding_plan.items():
        to = 1 - how.ranks[0]
        spec = dataclasses.replace(how.sharding_spec)
        spec.shards = [
            dataclasses.replace(shard, placement=torch.distributed._remote_device(f"rank:{to}/cpu"))
            for shard in how.sharding_spec.shards
        ]
        moved[name] = dataclasses.replace(how, ranks=[to], sharding_spec=spec)
    unknown = error_of(lambda: model.reshard({"tables": (0.0, {"a": moved["a/w8"]})}, "tables"))
    model.reshard({"tables": (0.0, moved)}, "tables")
    step()
    return {
        "moved": all(
            how.ranks == [1 - before[name][0]] for name, how in tables.module_sharding_plan.items()
        ),
        "unknown": unknown,
        "tables": {name: table.numpy() for name, table in tables.full_tables().items()},
    }


def steps_without_resharding(rank: int, world: int) -> dict[str, Any]:
    model = sharded()
    kjt, target = batch(0, rank, world)
    for _ in range(2):
        (model(kjt).values() - target).square().sum().backward()
    return {name: table.numpy() for name, table in model.module.full_tables().items()}


def inputs_and_types(rank: int, world: int) -> dict[str, Any]:
    kjt, _ = batch(0, rank, world)
    model = sharded()
    expected = model(kjt).values()
    given = model(TensorDict({key: kjt[key] for key in kjt.keys()})).values()  # noqa: SIM118
    from torchrec.modules.embedding_configs import DataType

    half = sharded(fused_params=fused(output_dtype=DataType.FP16))(kjt).values()
    plain = {f"embedding_bags.{name}.weight": table for name, table in full_tables().items()}
    return {
        "tensordict": torch.equal(given, expected),
        "half": str(half.dtype),
        "half error": (half.float() - expected).abs().max().item(),
        "plain state": error_of(lambda: model.module.load_state_dict(plain)),
    }


SCENES = (
    forgotten_sharder,
    no_sharder_and_no_plan_of_ours,
    caches_reset,
    replicas_kernels,
    contradictions,
    position_weights,
    resharded,
    steps_without_resharding,
    inputs_and_types,
)


def every_scene(rank: int, world: int) -> dict[str, Any]:
    return {scene.__name__: scene(rank, world) for scene in SCENES}


@pytest.fixture(scope="module")
def found() -> list[dict[str, Any]]:
    """What each scene gave on each rank; all in one process group, whose start takes seconds."""
    return run_ranks(2, every_scene)


pytestmark = pytest.mark.distributed


def of(found: list[dict[str, Any]], scene: Any) -> list[Any]:
    return [own[scene.__name__] for own in found]


def test_a_forgotten_sharder_is_an_error(found):
    """TorchRec's own would train the tables inside by SGD at 0.01."""
    for text in of(found, forgotten_sharder):
        assert text.startswith("ShardingError: TorchRec's default sharder")
        assert "BudgetedEmbeddingBagCollectionSharder(fused_params=" in text


def test_a_plan_without_it_leaves_it_whole(found):
    expected = all_rows(make_module(make_plan()).load_full_tables(full_tables()))
    for tables in of(found, no_sharder_and_no_plan_of_ours):
        for name, table in tables.items():
            torch.testing.assert_close(torch.from_numpy(table), expected[name])


def test_loading_full_tables_resets_caches_first(found):
    """A row that FBGEMM keeps on the device would be written back over what was loaded."""
    for reset in of(found, caches_reset):
        assert reset
        assert all(reset)  # before the weights are written


def test_each_kernel_is_listed_once_for_replicas(found):
    for counts in of(found, replicas_kernels):
        assert counts == [1]


def test_batches_that_contradict_themselves_are_refused(found):
    for errors in of(found, contradictions):
        assert len(errors) == 6
        for name, text in errors.items():
            assert text.startswith("InvalidInputError: "), (name, text)


def test_weights_that_would_get_no_gradient_are_refused(found):
    for errors in of(found, position_weights):
        assert errors["trained"].startswith("ShardingError: bag weights that need a gradient")
        assert errors["detached"] == errors["evaluated"] == "nothing"


def test_resharding_moves_blocks_and_keeps_their_rows(found):
    expected = of(found, steps_without_resharding)
    for result, plain in zip(of(found, resharded), expected, strict=True):
        assert result["moved"]
        assert result["unknown"].startswith("ShardingError: expected a new sharding of blocks a/w")
        for name, table in result["tables"].items():
            torch.testing.assert_close(torch.from_numpy(table), torch.from_numpy(plain[name]))
    assert {t.name for t in TABLES} == set(expected[0])


def test_inputs_types_and_states(found):
    for result in of(found, inputs_and_types):
        assert result["tensordict"]
        assert result["half"] == "torch.float16"
        assert result["half error"] < 0.02
        assert "load_full_tables" in result["plain state"]
