"""Every field of TorchRec's table config is honoured or refused, none dropped in silence."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from masked_cases import config, plan_of
from torchrec import EmbeddingBagConfig, PoolingType
from torchrec.modules.embedding_configs import DataType

from bet_torchrec.embeddings import BudgetedEmbeddingBagCollection
from bet_torchrec.embeddings.table_configs import HONOURED
from bet_torchrec.errors import InvalidInputError

# A value that is not the default, of every field that a collection has no use for.
REFUSED = {
    "num_embeddings_post_pruning": 2,
    "need_pos": True,
    "total_num_buckets": 4,
    "use_virtual_table": True,
    "virtual_table_eviction_policy": object(),
    "enable_embedding_update": True,
}
SIZES = {"t": [4, 4, 2, 0]}


def built(table: EmbeddingBagConfig) -> BudgetedEmbeddingBagCollection:
    return BudgetedEmbeddingBagCollection([table], plan_of([table], SIZES))


def test_no_field_is_dropped_in_silence():
    """A field that a newer TorchRec adds fails here until somebody has decided."""
    known = {field.name for field in dataclasses.fields(EmbeddingBagConfig)}
    assert known == HONOURED | set(REFUSED)
    assert not HONOURED & set(REFUSED)


@pytest.mark.parametrize(("field", "value"), REFUSED.items())
def test_a_field_without_effect_is_refused_with_what_to_do(field, value):
    with pytest.raises(InvalidInputError, match=f"table 't': {field} should be .*: [a-z]+ .*"):
        built(config("t", 4, 4, "f", **{field: value}))


def test_a_field_of_a_newer_torchrec_is_refused():
    @dataclasses.dataclass
    class Newer(EmbeddingBagConfig):
        sharpen: bool = False

    assert built(Newer(name="t", num_embeddings=4, embedding_dim=4, feature_names=["f"]))
    with pytest.raises(InvalidInputError, match="sharpen should be False, got True: leave it out"):
        built(Newer(name="t", num_embeddings=4, embedding_dim=4, sharpen=True))


def test_what_is_honoured_reaches_every_real_table():
    table = config(
        "t",
        4,
        4,
        "f",
        pooling=PoolingType.MEAN,
        data_type=DataType.FP16,
        weight_init_min=2.0,
        weight_init_max=3.0,
        stash_weights=True,
        input_dim=7,
    )
    model = built(table)
    real = model.embedding_bag_collection.embedding_bag_configs()
    assert len(real) == 2
    for one in real:
        assert one.data_type is DataType.FP16
        assert (one.weight_init_min, one.weight_init_max, one.stash_weights) == (2, 3, True)
    for weight in model.parameters():
        assert weight.dtype == torch.float16
        assert 2 <= weight.min() <= weight.max() <= 3
    assert model.embedding_bag_configs() == [table]
    assert model.embedding_bag_configs()[0].input_dim == 7
