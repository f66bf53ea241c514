"""Saved click logs: they come back whole, mapped from files, and damage is told."""

from __future__ import annotations

import json
import os
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from click_oracles import examples_of, logs, tiny
from hypothesis import HealthCheck, given, settings

from bet_torchrec.data import DataError, DataNotFoundError
from bet_torchrec.data.clicks import ClickLog, ClickSplit, Field, split_given, split_random

any_folder = settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@any_folder
@given(logs())
def test_a_saved_log_comes_back_whole(tmp_path: Path, log: ClickLog):
    view = log.take(np.arange(len(log))[::-1])
    again = ClickLog.load(view.save(tmp_path / "log"), verify=True)
    assert examples_of(again) == examples_of(view)
    assert again.fields == view.fields
    assert again.timestamps.tolist() == view.timestamps.tolist()
    assert again.fingerprint() == view.fingerprint()
    assert os.listdir(tmp_path) == ["log"]


def test_a_loaded_log_is_mapped_not_read(tmp_path: Path):
    again = ClickLog.load(tiny().save(tmp_path / "log"))
    assert isinstance(again.store.ids, np.memmap)
    assert isinstance(again.store.bags["genres"].values, np.memmap)
    assert type(again.compact().store.ids) is np.ndarray
    assert again.vocabularies["user"].encode(["bob"]).tolist() == [2]
    assert again.dense_names == ("price",)


def test_a_saved_split_comes_back_with_its_ranks(tmp_path: Path):
    split, ranks = split_given(tiny(), train=slice(0, 4), validation=[4], test=[5]).by_rank()
    again = ClickSplit.load(split.save(tmp_path / "split"), verify=True)
    assert again.fingerprint() == split.fingerprint()
    assert (again.name, again.how, again.seed) == (split.name, split.how, split.seed)
    assert {k: v.tolist() for k, v in again.ranks.items()} == {
        k: v.tolist() for k, v in ranks.items()
    }
    np.savez(tmp_path / "split" / "ranks.npz", field_0=[0])
    with pytest.raises(DataError, match="is damaged: its ranks are .'field_0'."):
        ClickSplit.load(tmp_path / "split")
    empty = split_given(tiny(), train=slice(0, 6), validation=[], test=[])
    assert [len(part) for part in ClickSplit.load(empty.save(tmp_path / "e")).parts()] == [6, 0, 0]


def test_saving_again_replaces_and_a_failure_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder = tiny().save(tmp_path / "log")
    tiny().take(slice(0, 4)).save(folder)
    assert len(ClickLog.load(folder)) == 4

    def full(*_: object, **__: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(np.lib.format, "open_memmap", full)
    with pytest.raises(OSError, match="disk full"):
        tiny().save(folder)
    monkeypatch.undo()
    assert len(ClickLog.load(folder, verify=True)) == 4
    assert os.listdir(tmp_path) == ["log"]


def test_a_folder_of_others_is_left_alone(tmp_path: Path):
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "thesis.txt").write_text("years")
    with pytest.raises(DataError, match="holds no saved clicks; choose another"):
        tiny().save(tmp_path / "own")
    with pytest.raises(DataNotFoundError, match="should be a folder that save wrote"):
        ClickLog.load(tmp_path / "own")
    split = split_given(tiny(), train=slice(0, 6), validation=[], test=[])
    with pytest.raises(DataError, match="should be of a bet_torchrec click log, got .*split"):
        ClickLog.load(split.save(tmp_path / "split"))


def test_truncation_anywhere_is_told(tmp_path: Path):
    folder = tiny().save(tmp_path / "log")
    for path in sorted(folder.iterdir()):
        whole = path.read_bytes()
        for length in (0, len(whole) // 2, len(whole) - 1):
            path.write_bytes(whole[:length])
            if path.name == "header.json" and length == len(whole) - 1:
                continue  # the last line's end
            with pytest.raises(DataError, match="damaged|truncated|should be"):
                ClickLog.load(folder)
        path.unlink()
        with pytest.raises(DataError):
            ClickLog.load(folder)
        path.write_bytes(whole)
    assert len(ClickLog.load(folder)) == 6


def test_changed_content_is_told(tmp_path: Path):
    folder = tiny().save(tmp_path / "log")
    ids = np.load(folder / "ids.npy")
    np.save(folder / "ids.npy", ids[::-1])
    assert len(ClickLog.load(folder)) == 6
    with pytest.raises(DataError, match="its arrays have the fingerprint"):
        ClickLog.load(folder, verify=True)
    np.save(folder / "ids.npy", ids[:, :1])
    with pytest.raises(DataError, match=r"should be int32 \(6, 2\) by its header, got .*\(6, 1\)"):
        ClickLog.load(folder)
    header = json.loads((folder / "header.json").read_text())
    (folder / "header.json").write_text(json.dumps({**header, "name": "other"}))
    with pytest.raises(DataError, match="does not match its checksum"):
        ClickLog.load(folder)
    (folder / "header.json").write_text(json.dumps({**header, "version": 9}))
    with pytest.raises(DataError, match="upgrade bet_torchrec"):
        ClickLog.load(folder)


def test_pickled_arrays_are_never_read(tmp_path: Path):
    folder = tiny().save(tmp_path / "log")
    np.save(folder / "labels.npy", np.array([{}, [], 1, 2, 3, 4], dtype=object))
    with pytest.raises(DataError, match="damaged"):
        ClickLog.load(folder)


def test_a_log_on_disk_is_worked_on_in_blocks(tmp_path: Path):
    """Counting, splitting, ranking and saving take less memory than the ids would."""
    n, columns = 400_000, 26
    path = tmp_path / "ids.npy"
    np.save(path, np.random.default_rng(0).integers(1, 1_000, (n, columns), dtype=np.int32))
    fields = [Field(f"f{i}", 1_000) for i in range(columns)]
    labels = np.arange(n, dtype=np.float32) % 2
    tiny().batch([0])  # loads torch
    tracemalloc.start()  # numpy reports its arrays to it, but not maps of files
    try:
        log = ClickLog.from_arrays(fields, labels=labels, ids=np.load(path, mmap_mode="r"))
        split, _ = split_random(log, seed=0).with_vocabulary(2).by_rank()
        split.save(tmp_path / "split")
        mapped = ClickSplit.load(tmp_path / "split")
        batch = mapped.train.batch(np.arange(0, 300_000, 10_000))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < path.stat().st_size / 2
    assert (batch.ids.numpy() == split.train.batch(np.arange(0, 300_000, 10_000)).ids.numpy()).all()
