"""The command line end to end on a tiny set: what it writes, what it refuses, how it resumes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bet_torchrec import SizePlan, _versions, cli, load
from bet_torchrec.cli import options
from bet_torchrec.files import holding

MODEL = ["--dim", "8", "--max-epochs", "2", "--batch-size", "256", "--validate-every", "8"]
WIDTHS = ["--widths", "0,1,2,4,8"]
SEARCH = ["--iterations", "3", "--candidates", "8", "--finalists", "1", "--probe-epochs", "1"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny data set, a plan by search, equal sizes, and both trained."""
    folder = tmp_path_factory.mktemp("cli")
    rng = np.random.default_rng(0)
    users, items, pairs = 60, 80, 1500
    popular = np.arange(1, items + 1) ** -0.8
    busy = np.arange(1, users + 1) ** -0.6
    key = rng.choice(users, pairs, p=busy / busy.sum()) * items
    key = np.unique(key + rng.choice(items, pairs, p=popular / popular.sum()))
    np.savez(folder / "tiny.npz", user=key // items, item=key % items)
    data = ["--data", str(folder / "tiny.npz"), *MODEL, "--quiet"]
    budget = ["--sparsity", "0.75", *WIDTHS]
    for argv in (
        ["plan", *data, *budget, *SEARCH, "--run-dir", str(folder / "bet")],
        ["plan", *data, *budget, "--sizer", "es", "--run-dir", str(folder / "es")],
        ["train", *data, "--plan", str(folder / "bet"), "--run-dir", str(folder / "t-bet")],
        ["train", *data, "--plan", str(folder / "es"), "--run-dir", str(folder / "t-es")],
        ["train", *data, "--full", "--run-dir", str(folder / "t-full")],
    ):
        assert cli.main(argv) == 0, argv
    return folder


def arguments(home: Path, name: str, run_dir: Path, *more: str) -> list[str]:
    """A command on the fixture's data and model."""
    data = ["--data", str(home / "tiny.npz"), *MODEL, "--quiet"]
    return [name, *data, *more, "--run-dir", str(run_dir)]


def refused(argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that bad input is answered with."""
    capsys.readouterr()
    try:
        code = cli.main(argv)
    except SystemExit as stop:
        code = stop.code  # type: ignore[assignment]
    said = capsys.readouterr()
    assert code == 2
    assert "Traceback" not in said.err
    assert len(said.err.splitlines()) == 1
    return said.err


def test_plan_leaves_all_that_is_needed_to_repeat(home: Path):
    config = json.loads((home / "bet" / "config.json").read_text())
    assert config["command"] == "plan"
    assert config["seed"] == 0
    assert config["settings"]["sparsity"] == 0.75
    assert config["settings"]["widths"] == [0, 1, 2, 4, 8]
    assert config["data"]["users"] == 60
    assert config["data"]["fingerprint"]
    assert config["versions"]["torch"]
    plan = SizePlan.load(home / "bet" / "plan.safetensors")
    assert plan.cost() <= plan.limit == (60 + 80) * 8 // 4
    metrics = json.loads((home / "bet" / "metrics.json").read_text())
    assert metrics["cost"] == plan.cost()
    assert metrics["full_validation_quality"] > 0
    history = [json.loads(line) for line in (home / "bet" / "history.jsonl").open()]
    assert sum(line["kind"] == "probe" for line in history) == 3
    for picture in ("sizes.png", "fitness.png"):
        assert (home / "bet" / picture).stat().st_size > 1000
    assert not (home / "es" / "fitness.png").exists()


def test_train_keeps_weights_log_and_every_users_metrics(home: Path):
    metrics = json.loads((home / "t-bet" / "metrics.json").read_text())
    plan = SizePlan.load(home / "bet" / "plan.safetensors")
    assert SizePlan.load(home / "t-bet" / "plan.safetensors") == plan
    assert metrics["parameters"] == metrics["cost"] == plan.parameters()
    assert metrics["masked"] == "train+validation"
    with np.load(home / "t-bet" / "per_user.npz") as users:
        assert users["recall_20"].mean() == pytest.approx(metrics["recall@20"])
    log = [json.loads(line) for line in (home / "t-bet" / "train.jsonl").open()]
    assert max(line["quality"] for line in log[:-1]) == log[-1]["quality"]
    full = json.loads((home / "t-full" / "metrics.json").read_text())
    assert full["parameters"] == (60 + 80) * 8


def test_evaluate_reads_weights_back_and_compares(home: Path, capsys: pytest.CaptureFixture[str]):
    assert cli.main(["evaluate", str(home / "t-bet"), "--against", str(home / "t-es")]) == 0
    lines = capsys.readouterr().out.splitlines()
    metrics = json.loads((home / "t-bet" / "metrics.json").read_text())
    assert f"recall@20 {metrics['recall@20']:.4f}" in lines[1]
    assert sum(line.startswith(("recall@", "ndcg@")) and "p = " in line for line in lines) == 6
    assert cli.main(["evaluate", str(home / "t-full"), "--mask", "train", "--quiet"]) == 0
    assert "masked" not in capsys.readouterr().out


def test_evaluate_refuses_data_that_changed(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    copy = tmp_path / "run"
    copy.mkdir()
    for file in (home / "t-es").glob("*.*"):
        (copy / file.name).write_bytes(file.read_bytes())
    config = json.loads((copy / "config.json").read_text())
    config["data"]["fingerprint"] = "other"
    (copy / "config.json").write_text(json.dumps(config))
    assert "trained on data of fingerprint other" in refused(["evaluate", str(copy)], capsys)


def test_inspect_prints_and_draws(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    argv = ["inspect", str(home / "bet"), "--reference", str(home / "es"), "--out", str(tmp_path)]
    assert cli.main(argv) == 0
    said = capsys.readouterr().out
    assert "SizePlan by bet" in said
    assert "3 probes" in said
    assert (tmp_path / "sizes.png").exists()
    assert (tmp_path / "fitness.png").exists()
    plan = str(home / "es" / "plan.safetensors")
    assert cli.main(["inspect", plan, "--no-plots", "--quiet"]) == 0
    assert capsys.readouterr().out == ""


def test_data_describes_and_saves(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert cli.main(["data", str(home / "tiny.npz"), "--save", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "60 users" in said
    assert "80 items" in said
    parts = [load(tmp_path / f"{name}.npz") for name in ("train", "validation", "test")]
    with np.load(home / "tiny.npz") as before:
        assert sum(len(part) for part in parts) == len(before["user"])
    for counts in parts[0].counts().values():
        assert (np.diff(counts) <= 0).all()  # ids are in rank order
    columns = ["--user-column", "b", "--item-column", "0", "--quiet"]
    (tmp_path / "odd.csv").write_text("a,b\n1,5\n2,5\n1,6\n")
    assert cli.main(["data", str(tmp_path / "odd.csv"), *columns]) == 0


def test_a_longer_search_resumes_to_the_plan_of_an_uninterrupted_one(home: Path, tmp_path: Path):
    more = ["--sparsity", "0.75", *WIDTHS, "--candidates", "8", "--finalists", "0"]
    more += ["--probe-epochs", "1"]
    short = arguments(home, "plan", tmp_path / "a", *more, "--iterations", "2")
    long = arguments(home, "plan", tmp_path / "a", *more, "--iterations", "4", "--resume")
    whole = arguments(home, "plan", tmp_path / "b", *more, "--iterations", "4")
    for argv in (short, long, whole):
        assert cli.main(argv) == 0
    plans = [SizePlan.load(tmp_path / run / "plan.safetensors") for run in "ab"]
    assert plans[0] == plans[1]
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    assert config["settings"]["iterations"] == 4


def test_interruption_says_how_to_go_on(
    home: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(options, "open_data", interrupted)
    assert cli.main(arguments(home, "train", tmp_path / "a", "--full")) == 130
    said = capsys.readouterr().err
    assert "--resume" in said
    assert len(said.splitlines()) == 1
    assert cli.main(["evaluate", str(home / "t-es")]) == 130


def test_a_run_folder_is_never_overwritten(
    home: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    again = arguments(home, "train", home / "t-full", "--full")
    assert "already holds a run" in refused(again, capsys)
    other = [*again, "--resume", "--lr", "0.5"]
    assert "--lr None then, 0.5 now" in refused(other, capsys)
    assert "not of `train`" in refused(
        [*arguments(home, "train", home / "es", "--full"), "--resume"], capsys
    )
    assert cli.main([*again, "--resume"]) == 0
    (tmp_path / "config.json").write_text("{")
    assert "should be JSON" in refused(["evaluate", str(tmp_path)], capsys)
    assert "found none at" in refused(["evaluate", str(tmp_path / "no")], capsys)
    for text in ('{"settings": 3}', "[" * 99_999, '{"data": [1]}'):
        (tmp_path / "config.json").write_text(text)
        assert "config.json" in refused(["evaluate", str(tmp_path)], capsys)


def test_one_process_trains_in_a_run_folder(
    home: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    with holding(tmp_path / "run"):
        said = refused(arguments(home, "train", tmp_path / "run", "--full"), capsys)
    assert f"is in use by process {os.getpid()}" in said
    assert os.listdir(tmp_path / "run") == [".lock"]


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--sparsity", "1.5"], "sparsity"),
        (["--parameters", "many"], "expected an amount"),
        (["--parameters", "100", "--dtype", "int8"], "--dtype is about bytes"),
        (["--bytes", "2K", "--purpose", "training"], "optimizer"),
        (["--bytes", "2K", "--dtype", "int3"], "int3"),
        (["--sparsity", "0.99", "--widths", "4,8"], "the smallest possible one"),
        (["--sparsity", "0.5", "--widths", "4,x"], "whole number"),
        (["--sparsity", "0.5", "--sizer", "es", "--iterations", "3"], "is about --sizer bet"),
        (["--sparsity", "0.5", "--iterations", "0"], "whole number from 1 on"),
        (["--sparsity", "0.5", "--ratios", "1"], "three shares"),
        (["--sparsity", "0.5", "--ratios", "0,0,1"], "the first above it"),
        (["--sparsity", "0.5", "--sizer", "abacus"], "--sizer should be one of bet, es"),
        (["--sparsity", "0.5", "--device", "abacus"], "--device should be"),
        (["--sparsity", "0.5", "--lr", "-1"], "lr should be positive"),
        (["--sparsity", "0.5", "--split", "temporal"], "time"),
        ([], "is required"),
    ],
)
def test_bad_plans_are_refused_before_anything_is_written(
    home: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    more: list[str],
    says: str,
):
    assert says in refused(arguments(home, "plan", tmp_path / "a", *more), capsys)
    assert not (tmp_path / "a").exists()


def test_other_bad_input(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    wrong = arguments(home, "train", tmp_path / "a", "--plan", str(home / "es"), "--dim", "16")
    assert "--dim that it was made with" in refused(wrong, capsys)
    wrong = arguments(home, "train", tmp_path / "a", "--plan", str(home / "es"))
    assert "other counts" in refused([*wrong, "--split-seed", "5"], capsys)
    assert "found none" in refused(["inspect", str(tmp_path / "nothing")], capsys)
    refused(["data", str(tmp_path / "nothing.csv")], capsys)
    refused(["data"], capsys)
    refused(["nonsense"], capsys)
    (tmp_path / "plan.safetensors").write_bytes(b"nothing of the kind")
    assert "plan.safetensors" in refused(["inspect", str(tmp_path)], capsys)


def test_version_tells_of_a_bad_pair(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(SystemExit) as stop:
        cli.main(["--version"])
    assert stop.value.code == 0
    assert f"bet_torchrec {_versions.__version__}" in capsys.readouterr().out
    both = {"torch": "2.13.0", "fbgemm-gpu": "1.8.0", "fbgemm-gpu-cpu": "1.8.0"}
    monkeypatch.setattr(_versions, "installed", lambda: both)
    with pytest.raises(SystemExit):
        cli.main(["--version"])
    assert "warning: fbgemm-gpu 1.8.0 and fbgemm-gpu-cpu" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "value"), [("12", 12), ("2K", 2048), ("1.5MiB", 3 << 19), ("3gb", 3 << 30), ("8b", 8)]
)
def test_amounts(text: str, value: int):
    assert options.amount(text) == value


@pytest.mark.parametrize("argv", [["--help"], ["plan", "--help"], ["compare", "--help"]])
def test_help_loads_nothing_heavy(argv: list[str]):
    code = (
        "import sys\n"
        "from bet_torchrec import cli\n"
        f"try:\n    cli.main({argv!r})\n"
        "except SystemExit as stop:\n    assert stop.code == 0\n"
        "print('loaded', *{name.split('.')[0] for name in sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    said, loaded = done.stdout.rsplit("loaded", 1)
    assert "usage: bet-torchrec" in said
    assert not {"torch", "torchrec", "scipy", "matplotlib", "tqdm"} & set(loaded.split())


def test_a_plans_run_folder_knows_data_and_model(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    argv = ["train", "--plan", str(home / "es"), "--run-dir", str(tmp_path / "a"), "--quiet"]
    assert cli.main(argv) == 0
    kept = [
        json.loads((run / "config.json").read_text()) for run in (tmp_path / "a", home / "t-es")
    ]
    assert kept[0]["data"] == kept[1]["data"]
    for name in ("data", "dim", "max_epochs", "batch_size", "recipe"):
        assert kept[0]["settings"][name] == kept[1]["settings"][name]
    plan = str(home / "es" / "plan.safetensors")
    argv = ["train", "--plan", plan, "--run-dir", str(tmp_path / "b"), "--quiet"]
    assert "--data is required" in refused(argv, capsys)
    assert cli.main(["evaluate", str(tmp_path / "a"), "--device", "cpu", "--quiet"]) == 0
    other = ["evaluate", str(tmp_path / "a"), "--device", "abacus", "--quiet"]
    assert "--device should be" in refused(other, capsys)


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--widths", "any"], "expected widths as 0,1,2,4"),
        (["--device", "abacus"], "--device should be"),
        (["--methods", "magic"], "methods should be among"),
        (["--budgets", "1/4 bits"], "a budget should be a share"),
    ],
)
def test_bad_comparisons(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], says: str
):
    argv = ["compare", "--data", "frappe", "--models", "fm", "--run-dir", str(tmp_path), *more]
    assert says in refused(argv, capsys)
    assert not list(tmp_path.iterdir())
