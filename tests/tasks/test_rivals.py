"""The published rivals on a real click task: trained, kept, read back, and as cells of a grid."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from click_splits import planted

from bet_torchrec.comparison import METHODS, Cell, Settings, rivals
from bet_torchrec.comparison.run import run_cell
from bet_torchrec.comparison.tasks import Entry
from bet_torchrec.planning import Budget, BudgetPlanner
from bet_torchrec.planning.sizers import MDE, MGQE, MLET, PEP, Hashing, Magnitude, QuotientRemainder
from bet_torchrec.tasks import ClickTask
from bet_torchrec.training import TensorTables, TrainingWorkbench, TrainSettings

TRAINING = TrainSettings(
    lr=0.02, lr_decay=1.0, init_std=0.1, max_epochs=3, validate_every=None, patience=3
)
TASK = ClickTask(planted(1500), "fm", embedding_dim=8, batch_size=256)
FORMS = {
    "mlet": MLET(factors=(2,), init_std=0.1),
    "mde": MDE(blocks=2, init_std=0.1),
    "hashing": Hashing(init_std=0.1),
    "qr": QuotientRemainder(init_std=0.1),
    "mgqe": MGQE(init_std=0.1),
    "pep": PEP(form="mask", steps=12, init_std=0.1),
}


TRAININGS = {"mlet": 4, **dict.fromkeys(("magnitude", "pep", "darts", "optembed", "esapn"), 2)}
TRAININGS["ciess"] = 2


def asked(bench, amount, sizer):
    planner = BudgetPlanner(budget=Budget.parameters(amount), widths=(0, 1, 2, 4, 8), sizer=sizer)
    return planner.problem(bench.tables, bench.counts(), workbench=bench)


@pytest.mark.parametrize("name", FORMS)
def test_tables_of_their_own_form_train_and_are_read_back(name, tmp_path):
    bench = TrainingWorkbench(TASK, training=TRAINING, run_dir=tmp_path)
    plan = FORMS[name](asked(bench, 200, FORMS[name]))
    trained = bench.train_model(plan, seed=1)
    assert trained.outcome.ok
    drawn = plan.build(1)
    assert not torch.equal(drawn.table("user"), trained.embedding.table("user"))
    (kept,) = tmp_path.glob("models/built-*.safetensors")
    assert plan.fingerprint() in kept.name
    again = TrainingWorkbench(TASK, training=TRAINING, run_dir=tmp_path).train_model(plan, seed=1)
    for table in TASK.tables:
        assert torch.equal(again.embedding.table(table.name), trained.embedding.table(table.name))
    assert again.evaluate().mean() == trained.evaluate().mean()


def test_a_mask_of_everything_is_the_full_model():
    bench = TrainingWorkbench(TASK, training=TRAINING)
    full = bench.full()
    everything = Magnitude(form="mask")
    plan = everything(asked(bench, 10**6, everything))
    trained = bench.train_model(plan, start="full")
    assert trained.outcome.steps == 0  # nothing is trained again
    assert np.array_equal(
        TASK.predictions(trained.model, trained.embedding),
        TASK.predictions(full.model, full.embedding),
    )


def test_mlet_collapses_without_a_change():
    bench = TrainingWorkbench(TASK, training=TRAINING)
    trained = bench.train_model(FORMS["mlet"](asked(bench, 200, FORMS["mlet"])))
    stored = TensorTables(trained.embedding.collapsed())
    found = TASK.predictions(trained.model, stored)
    assert np.allclose(found, TASK.predictions(trained.model, trained.embedding), atol=1e-5)


RIVALS = [name for name, m in METHODS.items() if m.plans.__module__ == rivals.__name__]


@pytest.mark.parametrize("method", RIVALS)
def test_each_is_a_cell_of_a_grid(method, tmp_path, monkeypatch):
    monkeypatch.setattr(rivals, "PEP_STEPS", 12)
    monkeypatch.setattr(rivals, "ESAPN_STEPS", 4)
    cell = Cell(data="planted", model="fm", dim=8, budget="1/2", method=method, seed=0)
    entry = Entry(TASK, TRAINING, TRAINING, (0.02,), {"name": "planted"})
    record = run_cell(cell, entry, tmp_path, Settings(probes=2, finalists=1))
    assert record["cost"] <= record["limit"] == 56 * 8 // 2
    assert record["parameters"] == record["cost"]
    assert 0 < record["test"]["auc"] <= 1  # so brief a training teaches little
    indexed = method in ("magnitude-mask", "pep-mask", "mde")  # places of entries, id maps
    assert (record.get("bytes", 0) > 4 * record["parameters"]) == indexed
    if method != "mde":  # two of whose three alphas come to the same widths here
        assert record["trainings"] == TRAININGS.get(method, 1)
    assert METHODS[method].about
