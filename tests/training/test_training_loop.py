"""Loss, settings, the loop: learning, resuming, logging, failing."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch
from training_oracles import small_split

from bet_torchrec.errors import InvalidInputError
from bet_torchrec.evaluation import evaluate
from bet_torchrec.models import BipartiteGraph, LightGCN, make_backbone
from bet_torchrec.models.protocol import BPRTerms
from bet_torchrec.outcome import Outcome
from bet_torchrec.tasks import BPR, RankingTask
from bet_torchrec.tasks.ranking import BPRSampler, bpr_loss, scores_of
from bet_torchrec.training import (
    CheckpointError,
    Hopeless,
    SizedEmbedding,
    TensorTables,
    TrainSettings,
    fast,
    fit,
    of_size,
    paper,
    published_lightgcn,
    small,
)

SPLIT = small_split()
QUICK = TrainSettings(max_epochs=6, validate_every=20)
SMALL = BPR(batch_size=50)


def untrained(name: str = "lightgcn", dim: int = 8, seed: int = 0):
    torch.manual_seed(0)
    backbone = make_backbone(name, BipartiteGraph(SPLIT.train.csr()), dim=dim)
    backbone.reset_parameters(torch.Generator().manual_seed(seed))
    sizes = {key: torch.full((rows,), dim).numpy() for key, rows in backbone.table_rows.items()}
    return backbone, SizedEmbedding(sizes).draw(0.01, torch.Generator().manual_seed(seed))


def task_of(backbone=None, bpr=SMALL) -> RankingTask:
    return RankingTask(SPLIT, type(backbone).__name__.lower(), embedding_dim=8, bpr=bpr)


def run(backbone, embedding, settings=QUICK, *, seed=0, bpr=SMALL, **more) -> Outcome:
    task = task_of(backbone, bpr)
    return fit(task, backbone, embedding, settings, seed=seed, **more)


def weights(*modules) -> list[torch.Tensor]:
    return [p.detach().clone() for module in modules for p in module.parameters()]


def same(left, right) -> bool:
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


def test_loss_by_hand():
    terms = BPRTerms(margin=torch.tensor([0.0, 2.0]), l2=torch.tensor(6.0))
    expected = (math.log(2) + math.log1p(math.exp(-2))) / 2 + 0.1 * 6 / 2
    assert bpr_loss(terms, 0.1).item() == pytest.approx(expected)
    far = BPRTerms(margin=torch.tensor([-1e4]), l2=torch.tensor(0.0))
    assert bpr_loss(far, 0.0).item() == pytest.approx(1e4)


def test_a_step_is_plain_adam_on_the_plain_loss():
    backbone, embedding = untrained()
    settings = dataclasses.replace(QUICK, max_epochs=1)
    bpr = BPR(batch_size=10**6, sampler="pairs", l2=0.3)
    oracle = {k: t.clone().requires_grad_() for k, t in embedding.full_tables().items()}
    run(backbone, embedding, settings, seed=5, bpr=bpr)

    batch = BPRSampler(SPLIT.train, batch_size=10**6, how="pairs", seed=5).batch(0)
    users, positives, negatives = map(torch.from_numpy, batch)
    final_users, final_items = backbone.final(TensorTables(oracle))
    margin = (final_users[users] * (final_items[positives] - final_items[negatives])).sum(1)
    rows = oracle["user"][users], oracle["item"][positives], oracle["item"][negatives]
    norm = sum(part.square().sum() for part in rows) / 2 / len(users)
    (-torch.nn.functional.logsigmoid(margin).mean() + 0.3 * norm).backward()
    torch.optim.Adam(oracle.values(), lr=settings.lr).step()
    for name, table in embedding.full_tables().items():
        torch.testing.assert_close(table, oracle[name].detach(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["lightgcn", "ngcf", "ncf"])
def test_learns(name):
    backbone, embedding = untrained(name)
    before = evaluate(scores_of(backbone, embedding), SPLIT, on="test").quality()
    result = run(backbone, embedding, dataclasses.replace(QUICK, max_epochs=12))
    after = evaluate(backbone.scores(embedding), SPLIT, on="test").quality()
    assert after > 1.5 * before
    assert result.quality == max(q for _, q in result.history)
    found = evaluate(backbone.scores(embedding), SPLIT, on="validation").quality()
    assert found == pytest.approx(result.quality)


@pytest.mark.parametrize("name", ["lightgcn", "ngcf"])
def test_resumes_to_the_identical_result(name, tmp_path: Path):
    whole = untrained(name)
    expected = run(*whole)

    class Killed(Exception):
        pass

    def kill(step: int) -> None:
        if step == 47:
            raise Killed

    checkpoint = tmp_path / "run" / "state"
    with pytest.raises(Killed):
        run(*untrained(name), checkpoint=checkpoint, on_step=kill)
    second = untrained(name, seed=9)  # what it starts from doesn't matter
    steps = []
    found = run(*second, checkpoint=checkpoint, on_step=steps.append)
    assert steps[0] == 41
    assert same(weights(*whole), weights(*second))
    assert (found.history, found.quality) == (expected.history, expected.quality)
    again = untrained(name)
    assert run(*again, checkpoint=checkpoint).history == expected.history
    assert same(weights(*whole), weights(*again))


def test_same_seed_same_weights():
    first, second, third = untrained(), untrained(), untrained()
    run(*first, seed=1), run(*second, seed=1), run(*third, seed=2)
    assert same(weights(*first), weights(*second))
    assert not same(weights(*first), weights(*third))


def test_patience_keeps_the_best():
    backbone, embedding = untrained()
    qualities = iter([0.1, 0.3, 0.2, 0.2, 0.9])
    kept = []

    def validate() -> float:
        kept.append(weights(embedding))
        return next(qualities)

    settings = dataclasses.replace(QUICK, patience=2, validate_every=5)
    result = run(backbone, embedding, settings, validate=validate)
    assert (result.stopped, result.steps, result.best_step) == ("patience", 20, 10)
    assert result.quality == 0.3
    assert same(weights(embedding), kept[1])


def test_the_last_step_is_validated_too():
    backbone, embedding = untrained()
    result = run(backbone, embedding, dataclasses.replace(QUICK, validate_every=10**9))
    assert [step for step, _ in result.history] == [90]
    assert result.epochs == pytest.approx(6)
    assert result.best_step == result.steps == 90
    each = run(*untrained(), dataclasses.replace(QUICK, validate_every=None))
    assert [step for step, _ in each.history] == [15, 30, 45, 60, 75, 90]


def test_an_extra_loss_is_added():
    backbone, embedding = untrained()
    weight = embedding.values["user"]
    loss = dataclasses.replace(QUICK, lr=1e-2)
    run(backbone, embedding, loss, extra_loss=lambda: 100 * weight.square().sum())
    free = untrained()
    run(*free, loss)
    assert weight.abs().mean() < 0.2 * free[1].values["user"].abs().mean()


def test_parameter_groups_keep_their_share_of_the_rate():
    backbone, embedding = untrained()
    before = embedding.values["item"].detach().clone()

    def groups(weights):
        split = [{"params": [w], "lr_scale": 0.0 if w is embedding.values["item"] else 1.0}
                 for w in weights]  # fmt: skip
        return torch.optim.SGD(split, lr=1.0)

    run(backbone, embedding, make_optimizer=groups)
    assert torch.equal(embedding.values["item"], before)


def test_a_hopeless_run_is_pruned():
    def hopeless(step: int) -> None:
        if step == 7:
            raise Hopeless(0.125)

    found = run(*untrained(), on_step=hopeless)
    assert (found.state, found.quality, found.steps) == ("pruned", 0.125, 7)
    assert not found.ok


def test_log_and_progress(tmp_path: Path, capsys):
    log = tmp_path / "deep" / "log.jsonl"
    result = run(*untrained(), log=log, progress=True)
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [(line["step"], line["quality"]) for line in lines] == list(result.history)
    assert {"epoch", "loss", "lr", "seconds"} <= set(lines[0])
    assert "training" in capsys.readouterr().err


SAVED = {
    "step": 4,
    "best_quality": 0.5,
    "best_step": 2,
    "failures": 1,
    "history": [[2, 0.5], [4, 0.25]],
    "stopped": "",
    "seconds": 1.0,
}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"step": "4"}, "facts.step should be an int, got '4'"),
        ({"step": -1}, "steps should be 0 to"),
        ({"best_step": 5}, "steps should be 0 to the run's 4"),
        ({"history": [[2, "x"]]}, "history.0..1. should be a finite number"),
        ({"history": None}, "history should be"),
        ({"more": 1}, "has no 'more'"),
    ],
)
def test_facts_of_other_types_are_refused(change, says):
    class Crafted:
        def save(self, *_):
            pytest.fail("nothing is to be saved")

        def load(self, model, optimizer, run):
            return None, {"run": run, **SAVED, **change}

    with pytest.raises(CheckpointError, match=says):
        run(*untrained(), checkpoint=Crafted())


def test_foreign_and_broken_checkpoints(tmp_path: Path):
    checkpoint = tmp_path / "state"
    run(*untrained(), checkpoint=checkpoint)
    with pytest.raises(CheckpointError, match="another run"):
        run(*untrained(), seed=7, checkpoint=checkpoint)
    checkpoint.write_bytes(checkpoint.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="no checkpoint"):
        run(*untrained(), checkpoint=checkpoint)


def test_divergence_is_a_state():
    backbone, embedding = untrained()
    with torch.no_grad():
        embedding.values["user"].fill_(float("nan"))
    found = run(backbone, embedding)
    assert (found.state, found.steps) == ("diverged", 20)
    assert math.isnan(found.quality)
    odd = run(*untrained(), validate=lambda: math.inf)
    assert odd.state == "diverged"


def test_nothing_to_train():
    graph = BipartiteGraph(SPLIT.train.csr())
    empty = SizedEmbedding({"user": torch.zeros(60, dtype=int), "item": torch.zeros(80, dtype=int)})
    with pytest.raises(InvalidInputError, match="nothing to train"):
        run(LightGCN(graph), empty)


def test_learning_rate():
    settings = TrainSettings(lr=0.03, lr_decay=0.5, lr_decay_steps=10, lr_min=0.01)
    assert [settings.lr_at(s) for s in (0, 9, 10, 19, 20, 500)] == [
        0.03,
        0.03,
        0.015,
        0.015,
        0.01,
        0.01,
    ]
    assert TrainSettings(lr=1e-4).lr_at(10**6) == 1e-4


@pytest.mark.parametrize(
    "wrong",
    [
        {"lr": -1.0},
        {"lr": math.nan},
        {"lr_decay": 1.5},
        {"validate_every": 0},
        {"max_epochs": 1.5},
        {"patience": 0},
    ],
)
def test_settings_are_checked(wrong):
    with pytest.raises(InvalidInputError, match=next(iter(wrong))):
        TrainSettings(**wrong)


@pytest.mark.parametrize("wrong", [{"batch_size": 0}, {"l2": -1e-9}, {"sampler": "all"}])
def test_batches_are_checked(wrong):
    with pytest.raises(InvalidInputError, match=next(iter(wrong))):
        BPR(**wrong)


def test_recipes():
    assert paper("ngcf").bpr.l2 == 1e-3
    assert paper("ngcf").fine_tuning.max_epochs == 15
    assert paper().fine_tuning.lr_decay == 0.98
    assert published_lightgcn().bpr.batch_size == 2048
    assert fast("lightgcn").bpr.sampler == "pairs"


def test_an_epoch_has_ten_steps_or_more():
    assert of_size("ncf", 500_000) == fast("ncf")
    for pairs in (1, 7, 50_240, 499_999):
        recipe = of_size("lightgcn", pairs)
        assert recipe == small("lightgcn", pairs)
        assert -(-pairs // recipe.bpr.batch_size) == min(10, pairs)
    assert small("ncf", 50_240).bpr.batch_size == 5024
