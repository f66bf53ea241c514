"""Every example runs by the command in its docstring, in small."""

from __future__ import annotations

import os
import re
import runpy
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from gloo_ranks import free_port

REPOSITORY = Path(__file__).resolve().parents[2]
EXAMPLES = REPOSITORY / "examples"
SHORT = ("gowalla_lightgcn", "yelp_ncf", "train_sharded", "dlrm_budget")
SMALL = ("--epochs", "2", "--dim", "16")


@pytest.mark.parametrize("name", SHORT)
def test_an_example_is_short_and_says_how_it_is_run(name: str) -> None:
    text = (EXAMPLES / f"{name}.py").read_text()
    assert text.count("\n") < 90
    assert f"examples/{name}.py" in text.split('"""')[1]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Run an example in this process; what it printed."""

    def go(name: str, *arguments: str, data: Path | None = None) -> str:
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        monkeypatch.setenv("BET_TORCHREC_DATA", str(data or "/nowhere"))
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
        return capsys.readouterr().out

    return go


def test_gowalla_lightgcn(run, tmp_path: Path) -> None:
    out = run("gowalla_lightgcn", "--probes", "2", "--out", str(tmp_path), *SMALL)
    assert "built-in generator" in out
    full, planned = (int(n.replace(",", "")) for n in re.findall(r": ([\d,]+) bytes, recall", out))
    assert planned <= 12 * 5000 < full == 4 * 16 * 5000
    names = {"plan.safetensors", "user.safetensors", "item.safetensors"}
    assert {path.name for path in tmp_path.iterdir()} == names


@pytest.mark.parametrize("sizer", ["es", "mr"])
def test_yelp_ncf(run, tmp_path: Path, sizer: str) -> None:
    out = run("yelp_ncf", "--sizer", sizer, "--out", str(tmp_path), *SMALL)
    assert "built-in generator" in out
    assert "32,000 parameters used" in out
    assert re.search(r"served in [\d,]+ bytes, where full tables in fp32 take 640,000", out)
    for name in ("user", "item", "user_gmf", "item_gmf"):
        assert (tmp_path / f"{name}.safetensors").is_file()


@pytest.mark.slow
def test_yelp_ncf_searches(run, tmp_path: Path) -> None:
    assert "by bet" in run("yelp_ncf", "--sizer", "bet", "--out", str(tmp_path), *SMALL)


@pytest.mark.slow
def test_dlrm_budget(run, tmp_path: Path) -> None:
    check_dlrm(run("dlrm_budget", "--probes", "1", "--out", str(tmp_path)))


@pytest.mark.slow
def test_dlrm_budget_on_criteo(run, tmp_path: Path, data_dir: Path) -> None:
    out = run("dlrm_budget", "--out", str(tmp_path), data=data_dir)
    assert "made up" not in out
    check_dlrm(out)


def check_dlrm(out: str) -> None:
    found = re.findall(r": ([\d,]+) bytes, test AUC ([\d.]+)", out)
    full, planned = (int(size.replace(",", "")) for size, _ in found)
    assert planned <= full // 16
    assert all(float(auc) > 0.55 for _, auc in found)
    clicks = re.search(r"served: clicks at ([\d.]+), ([\d.]+), ([\d.]+)", out)
    assert all(0 < float(p) < 1 for p in clicks.groups())


def torchrun(ranks: int, *arguments: str) -> subprocess.Popen[str]:
    path = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")]))
    return subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node",
         str(ranks), str(EXAMPLES / "train_sharded.py"), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )  # fmt: skip


def test_train_sharded(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As torchrun starts one rank; a second run goes on from the checkpoint."""
    one = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0, "MASTER_PORT": free_port()}
    for name, value in {**one, "MASTER_ADDR": "127.0.0.1"}.items():
        monkeypatch.setenv(name, str(value))
    before = signal.getsignal(signal.SIGINT)
    try:
        for steps in (3, 5):
            out = run("train_sharded", "--steps", str(steps), "--folder", str(tmp_path / "saved"))
            assert re.findall(r"step (\d+): loss", out) == [str(steps)]
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.slow
@pytest.mark.distributed
def test_train_sharded_is_stopped_and_goes_on_with_another_world_size(tmp_path: Path) -> None:
    folder = ("--folder", str(tmp_path / "checkpoint"))
    with torchrun(2, "--steps", "1000000", *folder) as process:
        try:
            said = ""
            while "step 50:" not in said:
                said += (line := process.stdout.readline())
                assert line, said
            os.killpg(process.pid, signal.SIGINT)  # as a terminal does on Ctrl-C
            said += process.communicate(timeout=60)[0]
        finally:
            process.kill()
    stopped = int(re.findall(r"step (\d+): loss", said)[-1])
    assert stopped > 50
    assert "[rank" not in said.split(f"step {stopped}:")[1], said
    with torchrun(1, "--steps", str(stopped + 2), *folder) as process:
        said = process.communicate(timeout=120)[0]
    assert re.findall(r"step (\d+): loss", said) == [str(stopped + 2)], said
    assert process.returncode == 0
