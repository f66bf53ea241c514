"""Importing is cheap, planning never pays for the training stack, and bad installs are named."""

from __future__ import annotations

import subprocess
import sys

import pytest

import bet_torchrec
from bet_torchrec import _versions

GOOD = {"torch": "2.13.0+cpu", "fbgemm-gpu": None, "fbgemm-gpu-cpu": "1.8.0", "torchrec": "1.8.0"}


def run_python(code: str) -> str:
    """What a fresh interpreter prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout


def loaded_after(code: str) -> set[str]:
    """Top-level modules in memory after running code in a fresh interpreter."""
    names = "{m.split('.')[0] for m in sys.modules}"
    return set(run_python(f"import sys\n{code}\nprint(*{names})").splitlines()[-1].split())


def test_import_loads_nothing_heavy():
    modules = loaded_after("import bet_torchrec; dir(bet_torchrec)")
    assert "bet_torchrec" in modules
    assert not modules & {"torch", "torchrec", "fbgemm_gpu", "matplotlib", "numpy", "scipy"}


def test_import_takes_less_than_a_second():
    code = "import time; t = time.perf_counter(); import bet_torchrec; "
    code += "print(time.perf_counter() - t)"
    assert min(float(run_python(code)) for _ in range(3)) < 1.0


def test_planning_and_models_never_load_torchrec():
    modules = loaded_after(
        "from bet_torchrec import Budget, BudgetPlanner, EqualSizes, TableSpec\n"
        "import numpy as np\n"
        "table = TableSpec(name='user', num_embeddings=9, embedding_dim=8)\n"
        "planner = BudgetPlanner(budget=Budget.sparsity(0.5), widths=(1, 2, 4, 8),"
        " sizer=EqualSizes(), seed=0)\n"
        "plan = planner.plan([table], {'user': np.arange(9)[::-1]})\n"
        "assert plan.cost() <= plan.limit\n"
        "import bet_torchrec.models.clicks"
    )
    assert not modules & {"torchrec", "fbgemm_gpu", "matplotlib"}


def test_every_export_exists():
    for name in bet_torchrec.__all__:
        assert getattr(bet_torchrec, name) is not None
    assert set(bet_torchrec.__all__) <= set(dir(bet_torchrec))


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="nothing_of_this_name"):
        _ = bet_torchrec.nothing_of_this_name


@pytest.mark.parametrize(
    "versions",
    [
        GOOD,
        {**GOOD, "torch": "2.11.0+cu130", "fbgemm-gpu-cpu": None, "fbgemm-gpu": "1.6.0"},
        {**GOOD, "torch": "2.13.0", "fbgemm-gpu-cpu": None, "fbgemm-gpu": "1.8.0"},
        {**GOOD, "fbgemm-gpu-cpu": "built here"},
    ],
)
def test_versions_that_fit(versions: dict[str, str | None]):
    _versions.check(versions)


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"torch": None}, "torch is not installed"),
        ({"torch": "2.11.0"}, r"built for torch 2\.13, but torch 2\.11\.0 .*FBGEMM 1\.6"),
        ({"fbgemm-gpu-cpu": "1.6.0"}, r"built for torch 2\.11"),
        ({"fbgemm-gpu-cpu": None}, r"FBGEMM is not installed.*\.\[cpu\]"),
        ({"fbgemm-gpu": "1.8.0"}, "both installed"),
        ({"fbgemm-gpu": "1.8.0", "fbgemm-gpu-cpu": None}, "torch 2.13.0.cpu is a CPU build"),
        ({"torchrec": None}, "pip install --no-deps torchrec"),
    ],
)
def test_versions_that_do_not_fit(changed: dict[str, str | None], says: str):
    with pytest.raises(bet_torchrec.VersionMismatchError, match=says):
        _versions.check({**GOOD, **changed})


def test_this_environment_fits():
    assert _versions.problem(_versions.installed()) is None
