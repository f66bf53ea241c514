"""Crafted headers of saved clicks, checksum and all: a DataError, or a log that can be read."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path

import pytest
from click_oracles import examples_of, tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from mutations import mutated

from bet_torchrec.data import DataError
from bet_torchrec.data.clicks import ClickLog, ClickSplit, split_given
from bet_torchrec.data.clicks.files import _digest


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    tiny().save(folder / "log")
    split_given(tiny(), train=slice(0, 4), validation=[4], test=[5]).by_rank()[0].save(
        folder / "split"
    )
    return folder


def craft(folder: Path, draw: object) -> None:
    header = json.loads((folder / "header.json").read_text())
    del header["sha256"]
    header = mutated(draw, header)
    with contextlib.suppress(UnicodeEncodeError):
        header = {"sha256": _digest(header), **header} if isinstance(header, dict) else header
    (folder / "header.json").write_text(json.dumps(header))


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_only_data_errors_come_out(saved: Path, data: st.DataObject) -> None:
    for name, kind in (("log", ClickLog), ("split", ClickSplit)):
        folder = saved / name
        good = (folder / "header.json").read_bytes()
        craft(folder, data.draw)
        try:
            with contextlib.suppress(DataError):
                found = kind.load(folder, verify=True)
                examples_of(found if kind is ClickLog else found.train)
        finally:
            (folder / "header.json").write_bytes(good)


@pytest.mark.parametrize("text", ["[" * 100_000, "\x00", "[]", '{"sha256": 1}', "9" * 5000])
def test_headers_that_are_none(saved: Path, tmp_path: Path, text: str) -> None:
    folder = shutil.copytree(saved / "log", tmp_path / "log")
    (folder / "header.json").write_text(text)
    with pytest.raises(DataError, match="header.json"):
        ClickLog.load(folder)


@pytest.mark.parametrize("header", ["(" * 9000, "{'descr': '<f4'}", "\0"])
def test_arrays_whose_header_is_noise(saved: Path, tmp_path: Path, header: str) -> None:
    folder = shutil.copytree(saved / "log", tmp_path / "log")
    text = header.encode()
    data = b"\x93NUMPY\x01\0" + len(text).to_bytes(2, "little") + text
    (folder / "labels.npy").write_bytes(data)
    with pytest.raises(DataError, match="labels.npy is damaged"):
        ClickLog.load(folder)
