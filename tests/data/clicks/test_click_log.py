"""A click log: views without copies, batches, counts, and what is refused."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import torch
from click_oracles import FIELDS, examples_of, logs, tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from bet_torchrec.data import DataError
from bet_torchrec.data.clicks import ClickLog, Field


def test_a_batch_by_hand():
    batch = tiny().batch(np.array([5, 0, 3]))
    assert batch.single == ("user", "item")
    assert batch.ids.tolist() == [[3, 1], [1, 1], [3, 1]]
    values, offsets = batch.bags["genres"]
    assert (values.tolist(), offsets.tolist()) == ([1, 2, 1, 2], [0, 0, 2, 4])
    assert batch.dense.tolist() == [[5.0], [0.5], [3.0]]
    assert batch.labels.tolist() == [0.0, 1.0, 1.0]
    assert batch.size == 3
    types = [t.dtype for t in (batch.ids, values, offsets, batch.dense, batch.labels)]
    assert types == [torch.int64] * 3 + [torch.float32] * 2
    meta = batch.to("meta")
    assert meta.ids.device.type == meta.bags["genres"][0].device.type == "meta"
    assert meta.size == 3


def test_counts_by_hand():
    counts = tiny().counts()
    assert {name: count.tolist() for name, count in counts.items()} == {
        "user": [0, 2, 1, 3, 0],
        "genres": [0, 3, 3, 0],
        "item": [0, 4, 2],
    }


@given(logs(), st.data())
@settings(max_examples=60, deadline=None)
def test_views_say_what_plain_lists_say(log: ClickLog, data: st.DataObject):
    whole = examples_of(log)
    picks = data.draw(st.lists(st.integers(0, len(log) - 1), max_size=20))
    start = data.draw(st.integers(0, len(picks)))
    view = log.take(picks).take(slice(start, None))
    assert examples_of(view) == [whole[i] for i in picks[start:]]
    assert examples_of(log.take(slice(2, 9)).take(slice(1, 4))) == whole[3:6]
    maps = {
        f.name: np.roll(np.arange(f.rows, dtype=np.int32), data.draw(st.integers(0, 5)))
        for f in log.fields[::2]
    }
    renamed = view.relabelled(maps, view.fields)
    own = renamed.compact()
    assert examples_of(own) == examples_of(renamed)
    assert own.fingerprint() == renamed.fingerprint()
    for name, map_ in maps.items():
        old = Counter(_values(view, name))
        assert Counter(_values(renamed, name)) == Counter({int(map_[i]): old[i] for i in old})
    counted = renamed.counts()
    for f in log.fields:
        assert (
            counted[f.name].tolist()
            == np.bincount(
                np.array(_values(renamed, f.name), dtype=np.int64), minlength=f.rows
            ).tolist()
        )


def _values(log: ClickLog, name: str) -> list[int]:
    if name in log.multi:
        return log.bags[name].values.tolist()
    return log.ids[:, log.single.index(name)].tolist()


@given(logs(), st.integers(1, 7))
@settings(max_examples=30, deadline=None)
def test_blocks_lie_end_to_end(log: ClickLog, size: int):
    for view in (log, log.take(np.arange(len(log))[::-1])):
        blocks = list(view.blocks(size))
        assert all(len(block) == size for block in blocks[:-1])
        assert np.concatenate([block.ids for block in blocks]).tolist() == view.ids.tolist()
        for name, bag in view.bags.items():
            parts = [np.diff(block.bags[name].offsets) for block in blocks]
            assert np.concatenate(parts).tolist() == np.diff(bag.offsets).tolist()
            values = [block.bags[name].values for block in blocks]
            assert np.concatenate(values).tolist() == bag.values.tolist()


def test_views_share_the_arrays():
    log = tiny()
    assert np.shares_memory(log.take(slice(1, 4)).ids, log.store.ids)
    assert log.take([4, 2]).store is log.store
    assert np.shares_memory(log.store.ids, log.compact().store.ids)


def test_a_fingerprint_tells_content_apart():
    log = tiny()
    same = log.take(np.arange(6))
    others = [
        log.take(slice(0, 5)),
        log.take([1, 0, 2, 3, 4, 5]),
        log.relabelled({"item": np.array([0, 2, 1], np.int32)}, log.fields),
        log.relabelled({"genres": np.array([0, 2, 1, 3], np.int32)}, log.fields),
        log.relabelled({}, [*FIELDS[:2], Field("item", 4)]),
    ]
    assert same.fingerprint() == log.fingerprint()
    assert len({log.fingerprint(), *(other.fingerprint() for other in others)}) == 6


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"labels": []}, "at least one example"),
        ({"labels": [0, 2, 0, 1, 1, 1]}, "labels should be 0 or 1, got 2 at example 1"),
        ({"labels": [0, np.nan, 0, 1, 1, 1]}, "0 or 1, got nan at example 1"),
        ({"labels": list("abcdef")}, "labels should be numbers"),
        ({"ids": [[1, 1]] * 5}, r"ids should be integers \(6, 2\)"),
        ({"ids": [[1.0, 1.0]] * 6}, "float64"),
        ({"ids": [[1, 1]] * 5 + [[5, 1]]}, "'user' should have ids from 0 to 4, got 5 at.* 5"),
        ({"ids": [[1, 1]] * 5 + [[1, -1]]}, "'item' should have ids from 0 to 2, got -1"),
        ({"bags": {}}, r"bags should be of the multi-hot fields \['genres'\], got \[\]"),
        ({"bags": {"genres": ([1], [0, 1])}}, r"offsets should be integers \(7,\)"),
        ({"bags": {"genres": ([1], [0, 1, 0, 0, 0, 0, 1])}}, "rise from 0 to the 1 values"),
        ({"bags": {"genres": ([4], [0, 1, 1, 1, 1, 1, 1])}}, "ids from 0 to 3, got 4"),
        ({"dense": [[1]] * 5}, r"dense should be numbers \(6, K\)"),
        ({"dense": [[1.0]] * 5 + [[np.inf]]}, "got inf at example 5, column 0"),
        ({"dense_names": ["a", "b"]}, "dense_names should be 1, got 2"),
        ({"timestamps": [1.5] * 6}, "timestamps should be integers"),
    ],
)
def test_arrays_that_are_no_log(change: dict[str, object], says: str):
    log = tiny()
    good = {"labels": log.labels, "ids": log.ids, "bags": log.bags, "dense": log.dense}
    with pytest.raises(DataError, match=f"clicks:.*{says}"):
        ClickLog.from_arrays(FIELDS, **{**good, **change})


def test_fields_that_are_none():
    with pytest.raises(DataError, match="different names, got twice: user"):
        ClickLog.from_arrays([FIELDS[0], FIELDS[0]], labels=[0], ids=[[0, 0]])
    with pytest.raises(DataError, match="rows should be from 1 to"):
        Field("x", 0)
    with pytest.raises(DataError, match="oov should be a row from 0 to 2"):
        Field("x", 3, oov=3)
    with pytest.raises(DataError, match="one of user, genres, item, got 'itme'"):
        tiny().field("itme")


@pytest.mark.parametrize("rows", [[6], [-1], [[0]], [0.5]])
def test_examples_that_there_are_not(rows: object):
    with pytest.raises(DataError, match="examples should be"):
        tiny().batch(rows)


def test_reading_clicks_does_not_load_torch():
    code = "import sys, bet_torchrec.data.clicks; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
