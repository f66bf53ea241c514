"""What users do with TorchRec's own collection works with ours, or says what to do instead."""

from __future__ import annotations

import pytest
import torch
from masked_cases import (
    LAYOUTS,
    PLAN,
    TABLES,
    VALUES,
    assert_alike,
    bags,
    config,
    masked,
    oracle,
    ours,
    plan_of,
)
from tensordict import TensorDict
from torchrec import EmbeddingBagCollection, KeyedJaggedTensor, KeyedTensor, PoolingType
from torchrec.inference.modules import quantize_embeddings, set_pruning_data
from torchrec.modules.embedding_configs import DataType
from torchrec.modules.embedding_modules import EmbeddingBagCollectionInterface
from torchrec.modules.feature_processor_ import PositionWeightedModule
from torchrec.modules.fp_embedding_modules import FeatureProcessedEmbeddingBagCollection
from torchrec.modules.mc_embedding_modules import ManagedCollisionEmbeddingBagCollection
from torchrec.modules.mc_modules import (
    DistanceLFU_EvictionPolicy,
    ManagedCollisionCollection,
    MCHManagedCollisionModule,
)
from torchrec.quant.embedding_modules import EmbeddingBagCollection as QuantEmbeddingBagCollection

from bet_torchrec.embeddings import (
    BudgetedEmbeddingBagCollection,
    BudgetedEmbeddingBagCollectionSharder,
    blocks,
    for_blocks,
)
from bet_torchrec.embeddings.merge import Merger
from bet_torchrec.embeddings.routing import Slot, block_key
from bet_torchrec.errors import InvalidInputError
from bet_torchrec.planning.plan import Bucket, TablePlan


def test_it_is_one_of_torchrec_s_interfaces_and_found_by_its_own_sharder():
    """TorchRec looks sharders up by exact type, so that the interface changes nothing there."""
    model = ours()
    assert isinstance(model, EmbeddingBagCollectionInterface)
    assert not isinstance(model, EmbeddingBagCollection)
    assert BudgetedEmbeddingBagCollectionSharder().module_type is type(model)


# Gradients of nothing


def empty_batches():
    no_examples = bags(batch=0)
    no_ids = bags(most=0)
    dropped = KeyedJaggedTensor(
        keys=["gone"], values=torch.tensor([0, 3]), lengths=torch.tensor([1, 1])
    )
    return {"no examples": no_examples, "no ids": no_ids, "no kept rows": dropped}


@pytest.mark.parametrize(("layout", "row_order"), LAYOUTS)
@pytest.mark.parametrize("case", ["no examples", "no ids", "no kept rows"])
def test_a_backward_pass_from_a_batch_of_nothing(case, layout, row_order):
    """As TorchRec's; an optimizer then changes nothing, and every weight has its gradient."""
    tables = [t for t in TABLES if t.name == "gone"] if case == "no kept rows" else TABLES
    model, kjt = ours(layout, row_order, tables), empty_batches()[case]
    values = model(kjt).values()
    values *= 2  # no leaf, like TorchRec's
    values.square().sum().backward()
    for weight in model.parameters():
        assert weight.grad is not None
        assert not weight.grad.any()
    with torch.no_grad():
        assert not model(kjt).values().requires_grad


# Types


def test_fp16_output_stays_fp16_with_mean_pooling():
    """As sharded collections put it out with output_dtype=FP16."""
    model = ours()
    assert any(slot.mean for slot in model.router.slots)
    kjt = bags()
    pooled = model.embedding_bag_collection(model.router(kjt))
    half = KeyedTensor(pooled.keys(), pooled.length_per_key(), pooled.values().half())
    found = model.merger(half, model.router.scale(kjt)).values()
    assert found.dtype == torch.float16
    torch.testing.assert_close(found.float(), oracle()(kjt).values(), atol=0.02, rtol=0.01)


# Devices


def test_the_meta_device_context_is_honoured():
    with torch.device("meta"):
        model = BudgetedEmbeddingBagCollection(TABLES, PLAN)
    assert model.device.type == "meta"
    assert all(weight.is_meta for weight in model.parameters())
    # It is whole: ids are routed as ever once there are weights.
    model.to_empty(device="cpu").load_full_tables({t.name: VALUES[t.name] for t in TABLES})
    assert_alike(model(bags()), oracle()(bags()))


def test_a_device_that_is_given_wins_over_the_context():
    with torch.device("meta"):
        model = BudgetedEmbeddingBagCollection(TABLES, PLAN, device="cpu")
    assert not any(weight.is_meta for weight in model.parameters())


def test_a_meta_batch_gives_the_output_s_shape():
    meta = torch.device("meta")
    model, kjt = ours(device=meta, values=None), bags().to(meta)
    found, expected = model(kjt), oracle()(bags())
    assert found.values().is_meta
    assert found.keys() == expected.keys()
    assert found.values().shape == expected.values().shape
    assert found.length_per_key() == expected.length_per_key()


# Inputs


def test_a_tensordict_is_taken_as_torchrec_takes_it():
    kjt = bags()
    given = TensorDict({key: kjt[key] for key in kjt.keys()})  # noqa: SIM118
    assert_alike(ours()(given), oracle()(given))


def test_a_batch_that_contradicts_itself():
    def kjt(**changed):
        options = {
            "keys": ["friend", "me"],
            "values": torch.arange(4),
            "lengths": torch.ones(4).long(),
        }
        return KeyedJaggedTensor(**{**options, **changed})

    model = ours(tables=[TABLES[0]])
    assert model(kjt()).values().shape == (2, 24)
    with pytest.raises(InvalidInputError, match="every key once, got me more than once"):
        model(kjt(keys=["me", "me"]))
    with pytest.raises(InvalidInputError, match="a weight for each of 4 ids, got 5"):
        model(kjt(weights=torch.ones(5)))
    with pytest.raises(InvalidInputError, match="5 offsets for 4 lengths, got 3"):
        model(kjt(offsets=torch.tensor([0, 2, 4])))


# State


@pytest.mark.parametrize("strict", [True, False])
def test_the_state_of_a_plain_collection_points_to_load_full_tables(strict):
    plain = EmbeddingBagCollection(tables=TABLES)
    with pytest.raises(RuntimeError, match=r"full tables \(gone, item, tag, user\).*load_full_tab"):
        ours().load_state_dict(plain.state_dict(), strict=strict)
    inside = torch.nn.ModuleDict({"tables": plain})
    with pytest.raises(RuntimeError, match="load_full_tables"):
        torch.nn.ModuleDict({"tables": ours()}).load_state_dict(inside.state_dict(), strict=strict)


# TorchRec's wrappers


def test_reaching_for_full_tables_is_refused():
    """A wrapper would take the rows of a plan for rows of full tables, without a word."""
    with pytest.raises(InvalidInputError, match="full_tables.. and load_full_tables"):
        _ = ours().embedding_bags


def test_unsharded_feature_processors_train_their_position_weights():
    tables = [config("t", 6, 4, "f")]
    plan, values = plan_of(tables, {"t": [4, 2, 2, 4, 0, 2]}), {"t": torch.randn(6, 4)}
    gradients = []
    for inner in (
        BudgetedEmbeddingBagCollection(tables, plan, is_weighted=True).load_full_tables(values),
        masked(tables, plan, values, is_weighted=True),
    ):
        processor = PositionWeightedModule(max_feature_length=5)
        torch.nn.init.constant_(processor.position_weight, 0.5)
        model = FeatureProcessedEmbeddingBagCollection(inner, {"f": processor})
        model(bags(rows={"f": 6})).values().square().sum().backward()
        gradients.append(processor.position_weight.grad)
    torch.testing.assert_close(*gradients)
    assert gradients[0].any()


def test_unsharded_managed_collisions_look_up_remapped_ids():
    tables = [config("t", 6, 4, "f")]
    plan, values = plan_of(tables, {"t": [4, 2, 2, 4, 0, 2]}), {"t": torch.randn(6, 4)}
    found = []
    for inner in (
        BudgetedEmbeddingBagCollection(tables, plan).load_full_tables(values),
        masked(tables, plan, values),
    ):
        mapper = MCHManagedCollisionModule(
            zch_size=6,
            device=torch.device("cpu"),
            eviction_interval=1,
            eviction_policy=DistanceLFU_EvictionPolicy(),
        )
        collisions = ManagedCollisionCollection({"t": mapper}, inner.embedding_bag_configs())
        model = ManagedCollisionEmbeddingBagCollection(inner, collisions)
        for seed in range(3):
            output, _ = model(bags(seed, rows={"f": 10**6}))
        found.append(output)
    assert_alike(*found)


def test_torchrec_s_from_float_of_ours_says_what_to_do():
    """It would quantise real tables as if they were full ones, whose ids are no rows."""
    tables = [config("t", 6, 4, "f", pooling=PoolingType.SUM)]
    plan = plan_of(tables, {"t": [4, 0, 4, 4, 4, 4]})  # one width: the table's own name
    model = BudgetedEmbeddingBagCollection(tables, plan)
    model.qconfig = torch.ao.quantization.QConfig(
        activation=torch.ao.quantization.PlaceholderObserver.with_args(dtype=torch.float),
        weight=torch.ao.quantization.PlaceholderObserver.with_args(dtype=torch.qint8),
    )
    with pytest.raises(InvalidInputError, match="quantize"):
        QuantEmbeddingBagCollection.from_float(model)


def two_widths():
    tables = [config("t", 6, 8, "f"), config("one", 6, 8, "g")]
    plan = plan_of(tables, {"t": [8, 8, 8, 4, 4, 4], "one": [8] * 6})
    return torch.nn.ModuleDict({"tables": BudgetedEmbeddingBagCollection(tables, plan)})


def precisions(model):
    own = model["tables"].embedding_bag_collection
    assert isinstance(own, QuantEmbeddingBagCollection)
    return {config.name: config.data_type for config in own.embedding_bag_configs()}


def test_precisions_by_a_table_s_name_reach_all_of_its_blocks_or_are_refused():
    def quantised(by_table):
        return quantize_embeddings(
            two_widths(), torch.qint8, inplace=False, per_table_weight_dtype=by_table
        )

    int4, int8 = DataType.INT4, DataType.INT8
    assert precisions(quantised({"one": torch.quint4x2}))["one"] == int4
    with pytest.raises(InvalidInputError, match="not reach its real tables t/w4, t/w8: .*for_blo"):
        quantised({"t": torch.quint4x2})
    by_block = for_blocks(two_widths()["tables"], {"t": torch.quint4x2, "other": torch.qint8})
    assert list(by_block) == ["t/w8", "t/w4", "other"]
    assert precisions(quantised(by_block)) == {"t/w8": int4, "t/w4": int4, "one": int8}


@pytest.mark.parametrize("table", ["t", "one", "t/w4"])
def test_pruning_data_is_refused(table):
    """It would cut rows of a real table, in whose order ids are no rows."""
    model = set_pruning_data(two_widths(), {table: 3})
    with pytest.raises(InvalidInputError, match="width 0"):
        quantize_embeddings(model, torch.qint8, inplace=False)
    other = set_pruning_data(two_widths(), {"elsewhere": 3})
    assert precisions(quantize_embeddings(other, torch.qint8, inplace=False))


def test_the_merger_reads_no_columns_that_only_pad():
    """A real table four wide of rows three wide, forward and backward."""
    plan = TablePlan("t", 4, 7, (Bucket(7, 1), Bucket(3, 3)))
    laid = {"t": blocks(plan, "bucketed", width_multiple=4)}
    assert [(b.width, b.real_width) for b in laid["t"]] == [(7, 8), (3, 4)]
    slot = Slot("f", "t", "f")
    values = torch.randn(2, 12, dtype=torch.float64, requires_grad=True)

    def merge(values):
        pooled = KeyedTensor([block_key(slot, b) for b in laid["t"]], [8, 4], values)
        return Merger([slot], {"t": 7}, laid)(pooled).values()

    expected = values[:, :7].clone()
    expected[:, :3] += values[:, 8:11]
    torch.testing.assert_close(merge(values), expected)
    assert torch.autograd.gradcheck(merge, (values,))
