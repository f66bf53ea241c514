"""TorchRec collections as a backbone's tables, in one process."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sharded_models import DIM, SPLIT, draw, one_process, plan_of, tables_of
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig

from bet_torchrec.errors import InvalidInputError
from bet_torchrec.tasks import BPR, RankingTask
from bet_torchrec.training import SizedEmbedding, TrainSettings, fit
from bet_torchrec.training.collection_tables import CollectionTables

ROWS = {"user": 60, "item": 80}


def config(name: str = "user", rows: int = 5, dim: int = 4, **more) -> EmbeddingBagConfig:
    return EmbeddingBagConfig(name=name, num_embeddings=rows, embedding_dim=dim, **more)


def test_reads_are_the_full_tables_rows():
    tables = draw(tables_of(ROWS))
    plan = plan_of(ROWS)
    full = {n: m.full_tables()[n] for n, m in tables.collections.items()}
    assert tables.rows == ROWS
    assert tables.width == DIM
    ids = torch.tensor([3, 3, 59, 0])
    for name in ROWS:
        assert torch.equal(tables.table(name), full[name])
        assert torch.equal(tables.lookup(name, ids), full[name][ids])
        assert tables.lookup(name, ids[:0]).shape == (0, DIM)
        kept = torch.arange(DIM)[None] < torch.from_numpy(plan.sizes(name))[:, None]
        assert torch.equal(full[name] != 0, kept)


def test_a_narrow_plan_computes_with_few_columns():
    narrow = {name: np.full(rows, 4) for name, rows in ROWS.items()}
    tables = tables_of(ROWS, plan=plan_of(ROWS, narrow))
    assert tables.width == 4
    assert tables.table("item").shape == (80, 4)


def test_plain_torchrec_collections_serve_too():
    plain = EmbeddingBagCollection(tables=[config(feature_names=["id"])])
    tables = CollectionTables({"user": plain})
    weight = plain.embedding_bags["user"].weight
    assert tables.width == 4
    ids = torch.tensor([4, 1, 4])
    tables.lookup("user", ids).sum().backward()
    assert torch.equal(weight.grad, torch.tensor([0.0, 1, 0, 0, 2])[:, None].expand(5, 4))
    assert torch.equal(tables.table("user"), weight)
    assert [id(p) for p in tables.replicated()] == [id(weight)]


@pytest.mark.parametrize("name", ["lightgcn", "ngcf", "ncf"])
def test_training_is_that_of_rows_in_plain_torch(name):
    backbone, tables = one_process(name)
    other, _ = one_process(name)
    rows = dict(backbone.table_rows)
    sized = SizedEmbedding({key: plan_of(rows).sizes(key) for key in rows})
    sized.load_prefix({key: tables.table(key).detach() for key in rows})
    task = RankingTask(SPLIT, embedding_dim=DIM, bpr=BPR(batch_size=150, l2=1e-2))
    settings = TrainSettings(max_epochs=1, lr=0.5)
    for model, embedding in ((backbone, tables), (other, sized)):
        fit(task, model, embedding, settings, seed=1, make_optimizer=torch.optim.SGD)
    for key in rows:
        torch.testing.assert_close(tables.table(key), sized.table(key), rtol=0, atol=1e-6)
    torch.testing.assert_close(list(backbone.parameters()), list(other.parameters()))


@pytest.mark.parametrize(
    ("collections", "says"),
    [
        ({"a": config("b")}, "one table 'a'"),
        ({"a": config("a", feature_names=["x", "y"])}, "one feature"),
        ({"a": config("a"), "b": config("b", dim=8)}, "common embedding_dim"),
    ],
)
def test_errors(collections, says):
    made = {n: EmbeddingBagCollection(tables=[c]) for n, c in collections.items()}
    with pytest.raises(InvalidInputError, match=says):
        CollectionTables(made)


def test_unknown_tables_are_refused():
    with pytest.raises(InvalidInputError, match="expected tables"):
        tables_of(ROWS).load_full_tables({"user": torch.zeros(60, DIM)})
