"""Files that are replaced: whole or not at all, and nothing left behind."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from bet_torchrec.files import replace_file, replacing


def test_a_file_appears_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "deep" / "file"
    with replacing(path) as file:
        file.write(b"half")
        file.flush()
        assert not path.exists()
        file.write(b" and half")
    assert path.read_bytes() == b"half and half"
    replace_file(path, "ä")
    assert path.read_bytes() == "ä".encode()
    assert os.listdir(path.parent) == ["file"]


@pytest.mark.parametrize("broken", ["fsync", "replace"])
def test_a_failed_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    path = tmp_path / "file"
    replace_file(path, "old")

    def full(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(os, broken, full)
    with pytest.raises(OSError, match="no space"):
        replace_file(path, "new")
    monkeypatch.undo()

    def interrupted() -> None:
        with replacing(path) as file:
            file.write(b"new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


def test_threads_do_not_meet_in_one_temporary_file(tmp_path: Path) -> None:
    both = threading.Barrier(2)
    ends: list[str] = []

    def write(text: str) -> None:
        with replacing(tmp_path / "file") as file:
            both.wait(10)
            file.write(text.encode())
            both.wait(10)
        ends.append(text)

    threads = [threading.Thread(target=write, args=(letter * 10_000,)) for letter in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert (tmp_path / "file").read_text() in ends
    assert len(ends) == 2
