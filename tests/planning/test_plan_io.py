"""Plan files: whole or not at all, and a clear error for anything that is none."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from bet_torchrec.errors import PlanFileError
from bet_torchrec.planning import plan_io
from bet_torchrec.planning.budget import Budget
from bet_torchrec.planning.plan import Bucket, SizePlan, TablePlan


@pytest.fixture
def plan():
    table = TablePlan("t", 3, 8, (Bucket(8, 1), Bucket(2, 2)), np.array([2, 0, 1]))
    return SizePlan((table,), Budget.parameters(12), "es", 0, {"note": "n"})


def test_save_and_load(plan, tmp_path):
    path = plan.save(tmp_path / "folder" / "a.plan")
    assert SizePlan.load(path) == plan
    assert [p.name for p in path.parent.iterdir()] == ["a.plan"]  # no temporary file stays


def test_saving_again_replaces_the_file(plan, tmp_path):
    path = tmp_path / "a.plan"
    path.write_text("something else")
    plan.save(path)
    assert SizePlan.load(str(path)) == plan


def test_a_failed_save_leaves_the_old_file(plan, tmp_path, monkeypatch):
    path = plan.save(tmp_path / "a.plan")

    def full_disk(_):
        raise OSError("no space left on device")

    monkeypatch.setattr(plan_io.os, "fsync", full_disk)
    with pytest.raises(OSError, match="no space"):
        SizePlan(plan.tables, plan.budget, "mr").save(path)
    assert SizePlan.load(path) == plan
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("size", [0, 5, 40, -1])
def test_a_truncated_file_is_no_plan(plan, tmp_path, size):
    path = tmp_path / "a.plan"
    path.write_bytes(plan.to_bytes()[:size])
    with pytest.raises(PlanFileError, match=r"a\.plan should be a plan"):
        SizePlan.load(path)


def test_any_flipped_byte_is_noticed(plan):
    data = plan.to_bytes()
    for at in range(len(data)):
        damaged = bytearray(data)
        damaged[at] ^= 0x11
        try:
            again = SizePlan.from_bytes(bytes(damaged))
        except PlanFileError:
            continue
        assert again == plan  # padding of the header, which means nothing


@pytest.mark.parametrize(
    "content", [b"hello world, no plan at all", b"\x80\x04pickle" * 9, b"{}" * 50]
)
def test_something_else_is_no_plan(tmp_path, content):
    path = tmp_path / "a.plan"
    path.write_bytes(content)
    with pytest.raises(PlanFileError, match="should be a plan"):
        SizePlan.load(path)


def test_a_foreign_safetensors_file_is_no_plan(tmp_path):
    path = tmp_path / "weights.safetensors"
    save_file({"w": np.zeros(3)}, path, metadata={"format": "pt"})
    with pytest.raises(PlanFileError, match="a safetensors file of 'pt'"):
        SizePlan.load(path)
    save_file({"w": np.zeros(3)}, path)
    with pytest.raises(PlanFileError):
        SizePlan.load(path)


def test_a_newer_version_asks_for_an_upgrade(plan, monkeypatch):
    monkeypatch.setattr(plan_io, "VERSION", 2)
    data = plan.to_bytes()
    monkeypatch.undo()
    with pytest.raises(PlanFileError, match="version 1 or older, got '2'; upgrade bet_torchrec"):
        SizePlan.from_bytes(data)


@pytest.mark.parametrize(
    "change", [{"tables": []}, {"sizer": None, "tables": 3}, {"budget": {"amount": 1}}]
)
def test_a_sound_file_of_nonsense_is_no_plan(plan, change):
    header, arrays = plan_io.parse(plan.to_bytes(), source="x")
    with pytest.raises(PlanFileError, match="makes no sense"):
        SizePlan.from_bytes(plan_io.dump({**header, **change}, arrays))


def test_a_plan_over_its_budget_in_a_file_is_refused(plan):
    header, arrays = plan_io.parse(plan.to_bytes(), source="x")
    header["budget"]["amount"] = 11
    with pytest.raises(PlanFileError, match="at most 11"):
        SizePlan.from_bytes(plan_io.dump(header, arrays))


def test_a_missing_file_says_so(tmp_path):
    with pytest.raises(FileNotFoundError):
        SizePlan.load(tmp_path / "none.plan")


def test_the_header_is_plain_json(plan):
    data = plan.to_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    assert header["__metadata__"]["format"] == "bet_torchrec.plan"
    assert json.loads(header["__metadata__"]["header"])["sizer"] == "es"
