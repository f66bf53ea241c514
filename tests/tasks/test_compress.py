"""compress on tasks that are learnt in seconds: within budget, never worse for training on."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from click_splits import planted

from bet_torchrec import Budget, ClickTask, compress
from bet_torchrec.column_codes import CodedEmbedding, coded_bytes
from bet_torchrec.errors import InfeasibleBudgetError, InvalidInputError
from bet_torchrec.serving.column_codes import read_coded_tables
from bet_torchrec.training import TrainingWorkbench, clicks
from bet_torchrec.training.checkpoint import load_state


@pytest.fixture(scope="module")
def full():
    task = ClickTask(planted(), "fm", embedding_dim=8, batch_size=200)
    return TrainingWorkbench(task, training=clicks(2e-2).training).full()


def test_every_budget_is_kept_and_training_on_never_loses(full):
    found = compress(full, budget=[1200, Budget.bytes(500, purpose="inference", dtype="int8"), 300])
    report = found.report
    rows = 30 + 6 + 20
    assert (report.rows, report.full_bytes) == (rows, 4 * 8 * rows)
    assert report.full_quality == full.quality
    assert [point.limit for point in report.points] == [1200, 500, 300]
    for form in found.forms:
        assert coded_bytes(form.tables) == form.bytes <= form.point.limit
        assert form.point.after >= form.point.before
        # What the report says is what the codes give.
        assert form.evaluate(part="validation").auc == pytest.approx(form.point.after, abs=1e-6)
    assert found.model is found.forms[0].model
    assert found.tables is found.forms[0].tables
    assert any(point.after > point.before for point in report.points)
    assert report.points[0].after > full.quality - 0.02
    assert f"{report.points[2].after:.5f}" in str(report)


def test_the_trained_model_is_left_alone(full):
    before = {name: table.clone() for name, table in full.full_tables().items()}
    weights = {name: value.clone() for name, value in full.model.state_dict().items()}
    compress(full, budget=400)
    assert all(torch.equal(before[name], table) for name, table in full.full_tables().items())
    assert all(torch.equal(weights[k], v) for k, v in full.model.state_dict().items())


def test_without_training_on_the_model_is_the_same(full):
    found = compress(full, budget=600, fine_tune=False)
    (point,) = found.report.points
    assert point.after == point.before
    for name, value in found.model.state_dict().items():
        assert torch.equal(value, full.model.state_dict()[name])


def test_only_a_users_own_model_is_deployed(full):
    form = compress(full, budget=600, fine_tune=False).forms[0]
    with pytest.raises(InvalidInputError, match="deploy is for a TorchRecTask, got ClickTask"):
        form.deploy()


def test_what_is_saved_reads_back(full, tmp_path):
    found = compress(full, budget=[800, 400], fine_tune=False)
    folder = found.save(tmp_path / "out")
    told = json.loads((folder / "report.json").read_text())
    assert [point["limit"] for point in told["points"]] == [800, 400]
    assert (folder / "curve.png").read_bytes()[1:4] == b"PNG"
    for form in found.forms:
        own = folder / str(form.point.limit)
        tables = read_coded_tables(own / "codes.safetensors")
        weights, facts = load_state(own / "model.safetensors")
        assert facts["point"]["bytes"] == sum(table.nbytes for table in tables.values())
        model = form.task.new_model(0)
        model.load_state_dict(weights)
        quality = form.task.validate(model, CodedEmbedding(tables))
        assert quality == pytest.approx(form.point.after, abs=1e-6)


def test_errors_say_what_came(full):
    with pytest.raises(InvalidInputError, match="bytes that are served"):
        compress(full, budget=Budget.parameters(100))
    with pytest.raises(InvalidInputError, match="from 1 on, got 0"):
        compress(full, budget=0)
    with pytest.raises(InvalidInputError, match="or several, got none"):
        compress(full, budget=[])
    with pytest.raises(InfeasibleBudgetError, match="a single column a table"):
        compress(full, budget=20)
    with pytest.raises(InvalidInputError, match="should be a Trained"):
        compress(full.model, budget=100)
    other = ClickTask(planted(seed=1), "fm", embedding_dim=8)
    with pytest.raises(InvalidInputError, match="leave task= out"):
        compress(full, budget=1000, task=other)
    assert np.isfinite(full.quality)


def test_from_the_shell(tmp_path, monkeypatch, capsys):
    from bet_torchrec import cli
    from bet_torchrec.comparison import tasks

    def entry(cell, data_dir, device):
        assert (cell.data, cell.model, cell.dim) == ("planted", "fm", 8)
        task = ClickTask(planted(), "fm", embedding_dim=8, batch_size=200)
        recipe = clicks(2e-2)
        data = {"name": "planted", "fingerprint": "f"}
        return tasks.Entry(task, recipe.training, recipe.fine_tuning, (2e-2,), data)

    monkeypatch.setattr(tasks, "make_entry", entry)
    run = tmp_path / "run"
    command = ["compress", "--data", "planted", "--model", "fm", "--dim", "8", "--quiet"]
    command += ["--run-dir", str(run)]
    assert cli.main([*command, "--bytes", "1K,400"]) == 0
    told = json.loads((run / "report.json").read_text())
    assert [point["limit"] for point in told["points"]] == [1024, 400]
    assert set(json.loads((run / "metrics.json").read_text())["test"]) == {"full", "1024", "400"}
    assert (run / "400" / "codes.safetensors").stat().st_size > 0
    assert "| bytes a row |" in capsys.readouterr().out
    # The same again is refused without --resume, with it the kept full model is read.
    assert cli.main([*command, "--bytes", "1K,400"]) == 2
    assert "already holds a run" in capsys.readouterr().err
    assert cli.main([*command, "--bytes", "1K,400", "--resume"]) == 0
    assert cli.main([*command[:-1], str(tmp_path / "other"), "--bytes", "10"]) == 2
    assert "a single column a table takes" in capsys.readouterr().err
