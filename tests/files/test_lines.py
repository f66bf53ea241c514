"""Lines that vouch for themselves and for those before them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bet_torchrec.files.lines import LineError, append_line, read_lines

VALUES = [{"a": 1.5, "ä": "ö"}, {}, {"b": [None, {"c": True}]}]


def written(path: Path) -> Path:
    before = 0
    for value in VALUES:
        before = append_line(path, value, before)
    assert read_lines(path).checksum == before
    return path


def test_there_and_back(tmp_path: Path) -> None:
    path = written(tmp_path / "lines")
    found = read_lines(path)
    assert found.values == VALUES
    assert found.size == path.stat().st_size
    assert [set(json.loads(line)) for line in path.read_text().splitlines()] == [
        {"a", "ä", "crc32"},
        {"crc32"},
        {"b", "crc32"},
    ]
    (tmp_path / "empty").touch()
    assert read_lines(tmp_path / "empty").values == []


def test_a_line_cut_short_is_none(tmp_path: Path) -> None:
    path = written(tmp_path / "lines")
    whole = path.read_bytes()
    for cut in range(1, 20):
        path.write_bytes(whole[:-cut])
        found = read_lines(path)
        assert found.values == VALUES[:2]
        path.write_bytes(whole[: found.size])
        append_line(path, VALUES[2], found.checksum)
        assert path.read_bytes() == whole


def test_numbers_that_json_lacks_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        append_line(tmp_path / "lines", {"a": float("nan")}, 0)
    assert not (tmp_path / "lines").exists()


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    path = written(tmp_path_factory.mktemp("good") / "lines")
    return path, path.read_bytes()


@settings(deadline=None)
@given(st.data())
def test_any_changed_byte_is_noticed(good: tuple[Path, bytes], data: Any) -> None:
    path, whole = good[0], bytearray(good[1])
    at = data.draw(st.integers(0, len(whole) - 2))
    whole[at] ^= data.draw(st.integers(1, 255))
    path.write_bytes(bytes(whole))
    try:
        found = read_lines(path)
    except LineError as error:
        assert str(error).startswith("line ")  # noqa: PT017
    else:  # white space, or a line's end in a line's end
        assert found.values == VALUES[: len(found.values)]
