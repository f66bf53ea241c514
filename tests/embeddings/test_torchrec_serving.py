"""TorchRec's own inference path: its quantisation of a model with ours in it, and its sharding."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from serving_cases import TABLES, full_tables, inference, make_plan, trained
from torch import nn
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor
from torchrec.distributed import global_settings
from torchrec.distributed.quant_embeddingbag import QuantEmbeddingBagCollectionSharder
from torchrec.inference.modules import quantize_inference_model, shard_quant_model
from torchrec.quant.embedding_modules import EmbeddingBagCollection as QuantEmbeddingBagCollection

from bet_torchrec import Budget, SizePlan
from bet_torchrec.embeddings import BudgetedEmbeddingBagCollection, quantize
from bet_torchrec.errors import InvalidInputError
from bet_torchrec.planning.plan import Bucket, TablePlan


def bags(batch: int = 9, seed: int = 0) -> KeyedJaggedTensor:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, 5, (3, batch))
    ids = np.concatenate([rng.integers(0, 33, own.sum()) for own in lengths])
    return KeyedJaggedTensor(
        keys=["f1", "f2", "f3"],
        values=torch.from_numpy(ids),
        lengths=torch.from_numpy(lengths.ravel()),
    )


@pytest.fixture
def on_cpu():
    """TorchRec's inference lookups go to CUDA unless told to follow the device."""
    global_settings.set_propogate_device(True)
    yield
    global_settings.set_propogate_device(False)


@pytest.mark.parametrize(
    ("precision", "layout", "ranks"),
    [("int8", "bucketed", 2), ("int8", "prefix", 2), ("int4", "bucketed", 3)],
)
def test_sharded_over_ranks_it_serves_alike(precision, layout, ranks, on_cpu):
    """TorchRec gives a rank's keys after another's; outputs are cut by key, not by position."""
    served = nn.Sequential(quantize(trained(make_plan(inference(precision))), layout=layout))
    sharded, plan = shard_quant_model(
        copy.deepcopy(served),
        world_size=ranks,
        compute_device="cpu",
        sharding_device="cpu",
        sharders=[QuantEmbeddingBagCollectionSharder(fused_params={})],
    )
    used = {rank for own in plan.plan.values() for table in own.values() for rank in table.ranks}
    assert used == set(range(ranks))
    # TorchRec gives rows below a byte a type of their own, and loads bytes.
    state = {name: getattr(rows, "elem", rows) for name, rows in served.state_dict().items()}
    sharded.load_state_dict(state)
    found, wanted = sharded(bags()), served(bags())
    assert found.keys() == wanted.keys()
    torch.testing.assert_close(found.values(), wanted.values(), atol=1e-5, rtol=1e-5)


class Model(nn.Module):
    """One collection of ours and one of TorchRec's."""

    def __init__(self, ours: nn.Module) -> None:
        super().__init__()
        self.ours = ours
        table = EmbeddingBagConfig(
            name="x", num_embeddings=40, embedding_dim=8, feature_names=["f1"]
        )
        self.theirs = EmbeddingBagCollection([table])

    def forward(self, features: KeyedJaggedTensor) -> torch.Tensor:
        first = KeyedJaggedTensor(
            keys=["f1"], values=features["f1"].values(), lengths=features["f1"].lengths()
        )
        return torch.cat([self.ours(features).values(), self.theirs(first).values()], dim=1)


def test_torchrec_s_quantisation_leaves_what_is_quantised_already():
    ours = trained(make_plan(inference(("int4", "int8")), {"a": "int4", "b": "int8"}))
    model = quantize(Model(ours))
    wanted = model.ours(bags()).values()
    quantize_inference_model(model)
    assert type(model.theirs) is QuantEmbeddingBagCollection
    assert torch.equal(model(bags())[:, : wanted.shape[1]], wanted)


def test_another_precision_than_the_plan_s_is_refused_with_what_to_do():
    plan = make_plan(inference("int4"))
    with pytest.raises(
        InvalidInputError, match=r"in int4.*asked for int8: call .*quantize\(model\)"
    ):
        quantize_inference_model(Model(trained(plan)))


def test_odd_widths_are_refused_before_fbgemm_sees_them():
    with pytest.raises(InvalidInputError, match="multiples of 2 columns, got 9.*takes any width"):
        quantize_inference_model(Model(trained(make_plan(Budget.parameters(10**5)))))


def test_even_widths_without_planned_precisions_are_torchrec_s_to_quantise():
    buckets = {"a": (Bucket(20, 30), Bucket(8, 30)), "b": (Bucket(12, 33),)}
    parts = tuple(
        TablePlan(t.name, t.num_embeddings, t.embedding_dim, buckets[t.name]) for t in TABLES
    )
    plan = SizePlan(parts, Budget.parameters(10**5), "test")
    module = BudgetedEmbeddingBagCollection(TABLES, plan).load_full_tables(full_tables())
    model = quantize_inference_model(Model(copy.deepcopy(module)))
    wanted = quantize(module, precision="int8")(bags()).values()
    torch.testing.assert_close(model(bags())[:, : wanted.shape[1]], wanted, atol=1e-5, rtol=1e-5)
