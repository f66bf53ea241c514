"""A user's DLRM as a task: counted, trained, searched, deployed, quantised."""

from __future__ import annotations

import dataclasses
from itertools import chain

import numpy as np
import pytest
import torch
from click_batches import DIM, ROWS, batches, model, tables
from torch.utils.data import DataLoader
from torchrec import EmbeddingBagCollection

from bet_torchrec import BET, Budget, BudgetPlanner, EqualSizes, SizePlan
from bet_torchrec.embeddings import quantize
from bet_torchrec.errors import InvalidInputError
from bet_torchrec.tasks.torchrec import TorchRecTask, count_ids, load_counts, save_counts
from bet_torchrec.tasks.torchrec.batches import Batches
from bet_torchrec.tasks.torchrec.slots import BagSlot
from bet_torchrec.training import SizedEmbedding, TrainingWorkbench, TrainSettings

TRAIN, VALIDATION, TEST = batches(2560), batches(640, seed=1), batches(640, seed=2)
SETTINGS = TrainSettings(lr=0.01, max_epochs=4, validate_every=None, init_std=0.05)


def task_of(**more) -> TorchRecTask:
    named = {"model": model, "train": TRAIN, "validation": VALIDATION, "test": TEST, **more}
    return TorchRecTask(tables(), **named)


def workbench(**more) -> TrainingWorkbench:
    settings = {"training": SETTINGS, "fine_tuning": dataclasses.replace(SETTINGS, max_epochs=1)}
    return TrainingWorkbench(task_of(), **settings | more)


def plan_of(task: TorchRecTask, share: float, **more) -> SizePlan:
    budget = Budget.parameters(int(share * sum(ROWS.values()) * DIM))
    planner = BudgetPlanner(budget=budget, widths=(0, 2, 4, 8), sizer=EqualSizes(), **more)
    return planner.plan(task.tables, task.counts())


@pytest.fixture(scope="module")
def bench() -> TrainingWorkbench:
    made = workbench()
    made.full()
    return made


def test_counts_are_those_of_all_batches(tmp_path):
    counts = count_ids(TRAIN, tables())
    for name, rows in ROWS.items():
        ids = np.concatenate([b.sparse_features[name].values().numpy() for b in TRAIN])
        assert np.array_equal(counts[f"t_{name}"], np.bincount(ids, minlength=rows))
    save_counts(tmp_path / "deep" / "counts.npz", counts)
    found = load_counts(tmp_path / "deep" / "counts.npz", tables())
    assert all(np.array_equal(found[name], counts[name]) for name in counts)
    task = task_of(train=TRAIN[:1], counts_file=tmp_path / "deep" / "counts.npz")
    assert task.counts()["t_day"].total == counts["t_day"].sum()  # read, not counted


def test_bad_ids_and_files_are_named(tmp_path):
    small = tables()
    small[1].num_embeddings = 100
    with pytest.raises(InvalidInputError, match="'t_item': ids should be from 0 to 99"):
        count_ids(TRAIN, small)
    small[1].feature_names = ["brand"]
    with pytest.raises(InvalidInputError, match="expected feature 'brand'"):
        count_ids(TRAIN, small)
    (tmp_path / "c.npz").write_bytes(b"PK nothing")
    with pytest.raises(InvalidInputError, match="holds no counts"):
        load_counts(tmp_path / "c.npz", tables())
    with pytest.raises(InvalidInputError, match="pass features="):
        count_ids([torch.ones(3)], tables())


def test_a_slot_is_torchrecs_collection():
    """Full tables through the slot equal TorchRec's own collection, forward and backward."""
    configs = tables()
    theirs = EmbeddingBagCollection(tables=configs)
    ours = SizedEmbedding({t.name: np.full(t.num_embeddings, DIM) for t in configs})
    ours.load_prefix({name: bag.weight for name, bag in theirs.embedding_bags.items()})
    slot, features = BagSlot(configs), TRAIN[0].sparse_features
    with slot.holding(ours):
        found = slot(features)
    expected = theirs(features)
    assert found.keys() == expected.keys()
    torch.testing.assert_close(found.values(), expected.values())
    for output in (found, expected):
        (output.values() ** 2).sum().backward()
    for name, bag in theirs.embedding_bags.items():
        torch.testing.assert_close(ours.values[name].grad.view(-1, DIM), bag.weight.grad)
    with pytest.raises(InvalidInputError, match="holds no tables"):
        slot(features)


def test_batches_are_a_function_of_seed_and_step():
    data = list(range(10))
    loader = DataLoader(data, batch_size=3, shuffle=True)
    source = Batches(loader, "train")
    assert source.steps == 4
    in_order = [source.batch(7, step).tolist() for step in range(8)]
    assert sorted(chain.from_iterable(in_order[:4])) == data
    assert in_order[:4] != in_order[4:]
    jumped = Batches(loader, "train")
    torch.manual_seed(123)
    assert [jumped.batch(7, step).tolist() for step in (6, 1, 2)] == [
        in_order[6],
        in_order[1],
        in_order[2],
    ]
    assert [source.batch(8, step).tolist() for step in range(4)] != in_order[:4]
    made = Batches(lambda seed, epoch: iter([seed, epoch]), "train")
    assert [made.batch(5, step) for step in (0, 1, 2, 3)] == [5, 0, 5, 1]
    with pytest.raises(InvalidInputError, match="iterator"):
        Batches(iter(data), "train")
    with pytest.raises(InvalidInputError, match="at least one batch"):
        _ = Batches([], "train").steps


def test_the_full_model_learns_and_a_cut_one_starts_warm(bench):
    assert bench.full().quality > 0.75
    assert bench.full().evaluate().auc > 0.75
    plan = plan_of(bench.task, 0.5)
    cut = bench.fine_tune(plan, epochs=0).quality
    tuned, scratch = bench.fine_tune(plan).quality, bench.train(plan).quality
    assert 0.5 < cut < tuned
    assert scratch > 0.7


def test_a_search_plans_trains_and_deploys(bench, tmp_path):
    """The README's example: from loaders to a quantised model."""
    budget = Budget.bytes(2500, purpose="inference", dtype=("int8", "fp16"), alignment=1)
    sizer = BET(iterations=4, candidates=8, finalists=1)
    planner = BudgetPlanner(budget=budget, widths=(0, 2, 4, 8), sizer=sizer)
    plan = planner.plan(bench.tables, bench.counts(), workbench=bench, progress=False)
    assert plan.cost() <= 2500
    trained = bench.train_model(plan)
    deployed = bench.task.deploy(trained, plan)
    labels, logits = [], []
    for batch in TEST:
        with torch.no_grad():
            logits.append(deployed(batch.dense_features, batch.sparse_features).flatten())
        labels.append(batch.labels)
    fp32 = dataclasses.replace(trained, precisions=None).evaluate()
    from sklearn.metrics import roc_auc_score

    assert roc_auc_score(torch.cat(labels), torch.cat(logits)) == pytest.approx(fp32.auc, abs=1e-6)
    served = quantize(deployed)
    with torch.no_grad():
        quantised = [served(b.dense_features, b.sparse_features).flatten() for b in TEST]
    found = roc_auc_score(torch.cat(labels), torch.cat(quantised))
    assert found == pytest.approx(trained.evaluate().auc, abs=1e-6)


def test_a_model_that_was_trained_elsewhere_is_adopted(bench):
    theirs = model(EmbeddingBagCollection(tables=tables()))
    full = bench.full()
    state = {k.removeprefix("model."): v for k, v in full.model.state_dict().items()}
    theirs.load_state_dict(state, strict=False)
    collection = theirs.sparse_arch.embedding_bag_collection
    with torch.no_grad():
        for name, rows in full.full_tables().items():
            collection.embedding_bags[name].weight.copy_(rows)
    other = workbench()
    adopted = other.adopt(*other.task.parts_of(theirs))
    assert adopted.quality == pytest.approx(bench.full().quality, abs=1e-9)
    assert other.identity()["adopted"]
    assert other.identity() != bench.identity()
    plan = plan_of(other.task, 0.5)
    cut = [b.fine_tune(plan, epochs=0).quality for b in (bench, other)]
    assert cut[0] == pytest.approx(cut[1], abs=1e-9)
    with pytest.raises(InvalidInputError, match="before anything"):
        other.adopt(*other.task.parts_of(theirs))
    with pytest.raises(InvalidInputError, match="got none"):
        other.task.parts_of(torch.nn.Linear(1, 1))


def test_own_losses_and_metrics():
    seen = []

    def loss(module, batch):
        seen.append(module.training)
        out = module(batch.dense_features, batch.sparse_features).flatten()
        return (out.sigmoid() - batch.labels).square().mean()

    def metric(module, held_out):
        assert not module.training
        errors = [
            (module(b.dense_features, b.sparse_features).flatten().sigmoid() - b.labels).square()
            for b in held_out
        ]
        return -float(torch.cat(errors).mean())

    bench = TrainingWorkbench(task_of(loss=loss, metric=metric), training=SETTINGS)
    assert -0.25 < bench.full().quality < 0
    assert bench.full().evaluate().mean() == {"quality": pytest.approx(-0.2, abs=0.1)}
    assert all(seen)


def test_identity_follows_data_model_and_version():
    one = task_of().identity()
    assert task_of().identity() == one
    assert task_of(version="2").identity() != one
    assert task_of(train=TRAIN[:-1]).identity() != one
    assert task_of(metric="log_loss").identity() != one


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"model": torch.nn.Linear(1, 1)}, "function from a collection"),
        ({"metric": "accuracy"}, "metric should be"),
        ({"train": 3}, "iterable of batches"),
    ],
)
def test_bad_arguments(more, says):
    with pytest.raises(InvalidInputError, match=says):
        task_of(**more)


def test_a_model_without_its_collection_is_refused():
    with pytest.raises(InvalidInputError, match="without it"):
        task_of(model=lambda ebc: torch.nn.Linear(1, 1)).new_model(0)
    with pytest.raises(InvalidInputError, match="no test batches"):
        task_of(test=None).validate(None, None, part="test")
