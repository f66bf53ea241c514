"""ClickTask: batches, loss and predictions by hand, exact resume, and that models learn."""

from __future__ import annotations

import dataclasses
import json
import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from click_splits import planted
from sklearn import metrics as sk

from bet_torchrec.data.clicks import ClickLog, ClickSplit, Field
from bet_torchrec.errors import InvalidInputError
from bet_torchrec.models.clicks import CLICK_MODELS
from bet_torchrec.tasks import ClickTask, clicks
from bet_torchrec.training import SizedEmbedding, TensorTables, TrainSettings, fit

SETTINGS = TrainSettings(
    lr=0.02, lr_decay=1.0, init_std=0.1, max_epochs=10, validate_every=None, patience=3
)


def drawn(task: ClickTask, size: int | None = None, seed: int = 0) -> SizedEmbedding:
    width = task.embedding_dim if size is None else size
    sizes = {table.name: np.full(table.num_embeddings, width) for table in task.tables}
    return SizedEmbedding(sizes).draw(0.1, torch.Generator().manual_seed(seed))


def by_hand() -> tuple[ClickTask, TensorTables]:
    """An FM of one linear weight and one factor; two examples, one of them without genres."""
    log = ClickLog.from_arrays(
        (Field("user", 2), Field("genres", 3, multi_hot=True)),
        labels=[1, 0],
        ids=[[1], [0]],
        bags={"genres": ([0, 2], [0, 2, 2])},
    )
    split = ClickSplit(train=log, validation=log, test=log)
    tables = {
        "user": torch.tensor([[0.5, 9.0], [1.0, 2.0]]),
        "genres": torch.tensor([[2.0, 3.0], [7.0, 7.0], [4.0, 5.0]]),
    }
    task = ClickTask(split, "fm", embedding_dim=2, batch_size=2, l2=0.25)
    return task, TensorTables(tables)


def test_loss_and_predictions_by_hand():
    """Example 0: user 1, genres 0 and 2 in the mean [3, 4]: 1 + 3 + 2 * 4 = 12. 1: 0.5."""
    task, tables = by_hand()
    model = task.new_model(0)
    assert task.predictions(model, tables).tolist() == [12.0, 0.5]
    norm = (1 + 4) + (0.25 + 81) + (4 + 9) + (16 + 25)
    expected = math.log1p(math.exp(-12)) + math.log1p(math.exp(0.5)) + 0.25 / 2 * norm
    loss = task.loss(model, tables, task.batch(0, 0))
    assert loss.item() == pytest.approx(expected / 2, rel=1e-6)


def test_sums_of_multi_hot_fields():
    task, tables = by_hand()
    summed = ClickTask(task.split, "fm", embedding_dim=2, pooling="sum")
    assert summed.predictions(summed.new_model(0), tables).tolist() == [1 + 6 + 2 * 8, 0.5]


@pytest.mark.parametrize("how", ["mean", "sum"])
def test_pooling_against_a_loop(how):
    rows = torch.randn(7, 3, requires_grad=True)
    offsets = torch.tensor([0, 0, 2, 7, 7])
    expected = torch.stack(
        [
            getattr(rows[a:b], how)(0) if b > a else torch.zeros(3)
            for a, b in pairwise(offsets.tolist())
        ]
    )
    pooled = clicks.pool(rows, offsets, how=how)
    torch.testing.assert_close(pooled, expected)
    weights = torch.randn(4, 3)
    (ours,) = torch.autograd.grad((pooled * weights).sum(), rows)
    (theirs,) = torch.autograd.grad((expected * weights).sum(), rows)
    torch.testing.assert_close(ours, theirs)
    assert torch.equal(clicks.pool(rows[:0], torch.tensor([0, 0, 0]), how=how), torch.zeros(2, 3))


def test_an_epoch_is_every_example_once():
    split = planted(500)
    task = ClickTask(split, "fm", batch_size=128)
    assert task.steps_per_epoch == 4  # 400 examples
    seen = []
    for step in range(4):
        batch = task.batch(3, step)
        assert len(batch.clicks.labels) == batch.examples == (128 if step < 3 else 16)
        seen.append(torch.column_stack([batch.clicks.ids, batch.clicks.labels]))
    everything = np.column_stack([split.train.ids, split.train.labels])
    assert sorted(torch.cat(seen).tolist()) == sorted(everything.tolist())


def test_batches_are_a_function_of_seed_and_step():
    task, other = (ClickTask(planted(500), "fm", batch_size=64) for _ in range(2))
    late = task.batch(1, 9).clicks.ids
    for step in range(9):
        other.batch(1, step)
    assert torch.equal(other.batch(1, 9).clicks.ids, late)
    epoch = task.steps_per_epoch
    first, second = task.batch(1, 0).clicks.ids, task.batch(1, epoch).clicks.ids
    assert not torch.equal(first, second)
    assert not torch.equal(first, task.batch(2, 0).clicks.ids)


def test_quality_is_scikit_learns(monkeypatch):
    task = ClickTask(planted(), "deepfm")
    model, tables = task.new_model(0), drawn(task)
    for part in ("validation", "test"):
        whole = task.predictions(model, tables, part=part)
        labels = task.part(part).labels
        with torch.no_grad():
            batch = task.part(part).batch(np.arange(len(labels)))
            logits = model.eval()(task._rows(tables, batch)[0])
        np.testing.assert_allclose(whole, logits.numpy(), rtol=1e-5, atol=1e-6)
        auc = sk.roc_auc_score(labels, whole)
        assert task.validate(model, tables, part=part) == pytest.approx(auc)
        found = task.evaluate(model, tables, part=part)
        assert found.mean()["auc"] == pytest.approx(auc)
        by_loss = ClickTask(task.split, "deepfm", metric="logloss")
        assert by_loss.validate(model, tables, part=part) == pytest.approx(-found.log_loss)
    monkeypatch.setattr(clicks, "EVALUATED", 7)
    np.testing.assert_allclose(task.predictions(model, tables), whole, rtol=1e-5, atol=1e-6)


def test_check_is_a_tenth_of_either_class():
    task = ClickTask(planted(), "fm")
    labels, check = task.split.validation.labels, task.part("check").labels
    assert check.sum() == math.ceil(labels.sum() / 10)
    assert len(check) - check.sum() == math.ceil((len(labels) - labels.sum()) / 10)
    model, tables = task.new_model(0), drawn(task)
    scores = task.predictions(model, tables, part="check")
    assert task.validate(model, tables, part="check") == sk.roc_auc_score(check, scores)


def test_predictions_leave_the_mode_as_it_was():
    task = ClickTask(planted(500), "deepfm", model_settings={"dropout": 0.5})
    model, tables = task.new_model(0).train(), drawn(task)
    first = task.predictions(model, tables)
    assert model.training
    assert np.array_equal(first, task.predictions(model, tables))


def test_tables_and_counts_are_the_fields():
    task = ClickTask(planted(500), "fm", embedding_dim=5)
    shapes = {(t.name, t.num_embeddings, t.embedding_dim) for t in task.tables}
    assert shapes == {("user", 30, 5), ("genres", 6, 5), ("item", 20, 5)}
    expected = task.split.train.counts()
    for name, counts in task.counts().items():
        assert counts.rows == len(expected[name])
        assert np.array_equal(np.sort(expected[name])[::-1], counts.at_ranks(range(counts.rows)))


def test_identity_tells_everything_apart():
    split = planted(500)
    tasks = [
        ClickTask(split, "fm"),
        ClickTask(split, "deepfm"),
        ClickTask(split, "deepfm", model_settings={"layers": (8,)}),
        ClickTask(split, "fm", embedding_dim=8),
        ClickTask(split, "fm", batch_size=64),
        ClickTask(split, "fm", l2=1e-3),
        ClickTask(split, "fm", metric="logloss"),
        ClickTask(split, "fm", pooling="sum"),
        ClickTask(planted(500, seed=1), "fm"),
        ClickTask(dataclasses.replace(split, validation=split.test), "fm"),
    ]
    texts = [json.dumps(task.identity(), sort_keys=True) for task in tasks]
    assert len(set(texts)) == len(tasks)
    assert json.loads(texts[0]) == ClickTask(planted(500), "fm").identity()
    # the test part decides nothing
    other = dataclasses.replace(split, test=split.validation)
    assert ClickTask(other, "fm").identity() == tasks[0].identity()


@pytest.mark.parametrize("name", CLICK_MODELS)
@pytest.mark.parametrize("dense", [False, True])
def test_every_model_learns(name, dense):
    small = {"fm": {}, "autoint": {"attention": (8, 8)}}.get(name, {"layers": (16,)})
    task = ClickTask(
        planted(4000, dense=dense),
        name,  # type: ignore[arg-type]
        embedding_dim=6,
        model_settings=small,
        batch_size=200,
    )
    model, tables = task.new_model(0), drawn(task)
    before = task.evaluate(model, tables).auc
    outcome = fit(task, model, tables, SETTINGS, seed=0)
    assert outcome.ok
    assert before < 0.7
    assert task.evaluate(model, tables).auc > 0.78


def test_size_one_is_logistic_regression():
    """Rows cut to their first entries have nothing but linear weights."""
    task = ClickTask(planted(4000), "fm", embedding_dim=6, batch_size=200)
    model, tables = task.new_model(0), drawn(task, size=1)
    assert fit(task, model, tables, SETTINGS, seed=0).ok
    assert task.evaluate(model, tables).auc < 0.7
    ids = task.split.test.batch([0])
    values, _ = ids.bags["genres"]
    genres = tables.table("genres")[values].sum() / max(1, len(values))
    user, item = ids.ids[0]
    linear = tables.table("user")[user] + tables.table("item")[item] + genres + model.bias
    assert task.predictions(model, tables)[0] == pytest.approx(linear.item(), rel=1e-5)


def test_an_interrupted_run_ends_where_it_would_have(tmp_path: Path):
    task = ClickTask(planted(500), "deepfm", model_settings={"dropout": 0.3}, batch_size=64)
    settings = dataclasses.replace(SETTINGS, max_epochs=3, patience=9)

    def run(stop: int | None) -> tuple[float, torch.Tensor]:
        model, tables = task.new_model(0), drawn(task)

        def interrupt(step: int) -> None:
            if step == stop:
                raise KeyboardInterrupt

        outcome = fit(
            task, model, tables, settings, seed=0, checkpoint=tmp_path / "run", on_step=interrupt
        )
        return outcome.quality, tables.table("user").detach()

    with pytest.raises(KeyboardInterrupt):
        run(stop=17)  # in the third epoch
    resumed = run(stop=None)
    (tmp_path / "run").unlink()
    straight = run(stop=None)
    assert resumed[0] == straight[0]
    assert torch.equal(resumed[1], straight[1])


def test_a_model_that_has_diverged_has_no_quality():
    task = ClickTask(planted(500), "fm")
    tables = TensorTables({t.name: torch.full((t.num_embeddings, 16), 1e30) for t in task.tables})
    assert math.isnan(task.validate(task.new_model(0), tables))


def test_bad_input_is_refused():
    split = planted(500)
    for settings, match in (
        ({"model": "mlp"}, "model should be one of"),
        ({"model_settings": {"width": 3}}, "has settings"),
        ({"batch_size": 0}, "batch_size"),
        ({"l2": -1.0}, "l2"),
        ({"pooling": "max"}, "pooling"),
        ({"metric": "recall"}, "metric"),
    ):
        with pytest.raises(InvalidInputError, match=match):
            ClickTask(split, **settings)
    empty = dataclasses.replace(split, test=split.test.take(slice(0, 0)))
    task = ClickTask(empty, "fm")
    with pytest.raises(InvalidInputError, match="no examples"):
        task.evaluate(task.new_model(0), drawn(task))
    with pytest.raises(InvalidInputError, match="part should be"):
        task.validate(task.new_model(0), drawn(task), part="train")  # type: ignore[arg-type]
    ones = split.validation.take(np.flatnonzero(split.validation.labels > 0))
    task = ClickTask(dataclasses.replace(split, validation=ones), "fm")
    with pytest.raises(InvalidInputError, match="both classes"):
        task.validate(task.new_model(0), drawn(task))


def test_dense_features_reach_the_model():
    task = ClickTask(planted(500, dense=True), "fm")
    model, tables = task.new_model(0), drawn(task)
    assert model.dense_features == 2
    batch = task.batch(0, 0).clicks
    rows = task._rows(tables, batch)[0]
    moved = model(rows, batch.dense + 1) - model(rows, batch.dense)
    assert moved.abs().min() > 0
    assert F.binary_cross_entropy_with_logits(
        model(rows, batch.dense), batch.labels
    ).item() == pytest.approx(task.loss(model, tables, task.batch(0, 0)).item(), rel=1e-6)
