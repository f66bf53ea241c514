"""A result's origin is complete and JSON-able."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from bet_torchrec.provenance import git_commit, provenance


def test_record_is_json_and_complete():
    settings = {"lr": np.float32(0.5), "path": Path("a"), "widths": (4, 8), "none": None}
    record = provenance(seed=3, settings=settings, data={"fingerprint": "ab"})
    assert json.loads(json.dumps(record)) == record
    assert record["seed"] == 3
    assert record["settings"] == {"lr": 0.5, "path": "a", "widths": [4, 8], "none": None}
    assert record["data"] == {"fingerprint": "ab"}
    assert record["versions"]["torch"]
    assert record["versions"]["bet_torchrec"]
    assert record["started"].endswith("+00:00")


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_commit_only_of_the_checkout_that_holds_the_package(tmp_path: Path):
    package = tmp_path / "thing"
    package.mkdir()
    (package / "__init__.py").write_text("")
    assert git_commit(package) is None  # no repository

    def git(*args: str) -> None:
        who = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
        subprocess.run(["git", *who, "-C", str(tmp_path), *args], check=True, capture_output=True)

    git("init")
    (tmp_path / "other").write_text("x")
    git("add", "other")
    git("commit", "-m", "1")
    assert git_commit(package) is None  # somebody else's repository
    git("add", ".")
    git("commit", "-m", "2")
    found = git_commit(package)
    assert found is not None
    assert len(found["commit"]) == 40
    assert not found["modified"]
    (package / "__init__.py").write_text("a = 1")
    changed = git_commit(package)
    assert changed is not None
    assert changed["modified"]
