"""Plan files: whole or not at all, and a clear error for anything that is none."""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mutations import mutated, rewritten
from safetensors.numpy import save_file

from bet_torchrec.errors import PlanFileError
from bet_torchrec.files.tensors import from_bytes
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


@pytest.mark.parametrize("amount", [2**62, 2**63, 10**30])
def test_a_budget_without_end_survives(plan, amount):
    large = SizePlan(plan.tables, Budget.parameters(amount), "es")
    assert SizePlan.from_bytes(large.to_bytes()) == large


def test_saving_again_replaces_the_file(plan, tmp_path):
    path = tmp_path / "a.plan"
    path.write_text("something else")
    plan.save(path)
    assert SizePlan.load(str(path)) == plan


def test_a_failed_save_leaves_the_old_file(plan, tmp_path, monkeypatch):
    path = plan.save(tmp_path / "a.plan")

    def full_disk(_):
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
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
    monkeypatch.setattr(plan_io, "VERSION", 3)
    tables = tuple(replace(table, basis="fixed") for table in plan.tables)
    data = SizePlan(tables, Budget.parameters(99), "es").to_bytes()
    monkeypatch.undo()
    with pytest.raises(PlanFileError, match="version 2 or older, got '3'; upgrade bet_torchrec"):
        SizePlan.from_bytes(data)


def crafted(plan, change):
    """A plan's file whose header was changed, with a checksum that fits."""
    header = json.loads(from_bytes(plan.to_bytes()).metadata["header"])
    order = np.array([2, 0, 1], dtype=np.int32)
    return plan_io.dump(change(header), {"order.0": order})


def changed(**changes):
    return lambda header: {**header, **changes}


def with_table(**changes):
    return lambda header: {**header, "tables": [{**header["tables"][0], **changes}]}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (changed(tables=[]), "its arrays should be"),
        (changed(tables=3), "header.tables should be a list, got 3"),
        (changed(sizer=None), "header.sizer should be a string, got None"),
        (changed(seed=2**64), "header.seed should be an int of 64 bits"),
        (changed(metadata={"a": 1}), r"header.metadata\['a'\] should be a string, got 1"),
        (changed(budget={"amount": 1}), "header.budget.unit is missing"),
        (changed(budget={"amount": -1, "unit": "bytes"}), "header.budget: a budget in bytes"),
        (with_table(rows="x"), r"header.tables\[0\].rows should be an int, got 'x'"),
        (with_table(rows=3.0), r"header.tables\[0\].rows should be an int, got 3.0"),
        (with_table(buckets=[[8, 3]]), r"buckets\[0\] should have 3 entries, got 2"),
        (with_table(buckets=[[8, 2**62, "fp32"]]), "makes no sense.*should hold all 3 rows"),
        (with_table(ranked=True), "its arrays should be"),
        (lambda _: [], "header should be an object"),
    ],
)
def test_a_sound_file_of_nonsense_is_no_plan(plan, change, says):
    with pytest.raises(PlanFileError, match=says):
        SizePlan.from_bytes(crafted(plan, change))


def test_a_plan_over_its_budget_in_a_file_is_refused(plan):
    less = changed(budget={**vars(plan.budget), "amount": 11})
    with pytest.raises(PlanFileError, match="at most 11"):
        SizePlan.from_bytes(crafted(plan, less))


def test_endless_nesting_is_told(plan, tmp_path):
    data = rewritten(plan.save(tmp_path / "a"), tmp_path / "b", {"header": "[" * 100_000})
    with pytest.raises(PlanFileError, match="nested"):
        SizePlan.load(data)
    data.write_bytes((100_000).to_bytes(8, "little") + b"[" * 100_000)
    with pytest.raises(PlanFileError, match="nested"):
        SizePlan.load(data)


@settings(max_examples=120, deadline=None)
@given(st.data())
def test_only_our_error_comes_out_of_a_crafted_header(data):
    table = TablePlan("t", 3, 8, (Bucket(8, 1), Bucket(2, 2)), np.array([2, 0, 1]))
    plan = SizePlan((table,), Budget.parameters(12), "es", 0, {"note": "n"})
    with contextlib.suppress(PlanFileError):
        again = SizePlan.from_bytes(crafted(plan, lambda header: mutated(data.draw, header)))
        again.fingerprint()
        again.summary()
        assert SizePlan.from_bytes(again.to_bytes()) == again


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=300), st.integers(0, 200))
def test_only_our_error_comes_out_of_noise(noise, length):
    header = length.to_bytes(8, "little") + noise
    for data in (noise, header, (8).to_bytes(8, "little") + b"{}      " + noise):
        with pytest.raises(PlanFileError):
            SizePlan.from_bytes(data)


def test_a_missing_file_says_so(tmp_path):
    with pytest.raises(FileNotFoundError):
        SizePlan.load(tmp_path / "none.plan")


def test_the_header_is_plain_json(plan):
    data = plan.to_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    assert header["__metadata__"]["format"] == "bet_torchrec.plan"
    assert json.loads(header["__metadata__"]["header"])["sizer"] == "es"
