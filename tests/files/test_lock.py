"""A folder's lock: one at a time, who it is, and free again however its holder ended."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from bet_torchrec.errors import BetError
from bet_torchrec.files import FolderInUseError, holding

HOLD = """
import sys, time
from pathlib import Path
from bet_torchrec.files import holding
with holding(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def hold_elsewhere(folder: Path) -> subprocess.Popen[str]:
    """Another process that has the folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_second_process_is_told_who_holds_it(tmp_path: Path) -> None:
    folder = tmp_path / "new"
    other = hold_elsewhere(folder)
    try:
        with pytest.raises(FolderInUseError) as error, holding(folder):
            pytest.fail("two hold it")
        said = str(error.value)
        assert said.startswith(f"{folder} is in use by process {other.pid} on")
        assert socket.gethostname() in said
        assert isinstance(error.value, BetError)
    finally:
        other.send_signal(signal.SIGKILL)
        other.wait()
    with holding(folder):  # the killed one left its name there, and no lock
        assert str(os.getpid()) in (folder / ".lock").read_text()


def test_it_is_free_after_the_end_and_after_an_error(tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(KeyError), holding(tmp_path):
            raise KeyError
    with holding(tmp_path):
        with pytest.raises(FolderInUseError, match=f"process {os.getpid()} on"), holding(tmp_path):
            pass
        with holding(tmp_path / "inner"):
            pass
    with holding(None):
        pass


@pytest.mark.parametrize("content", [b"", b"\xff", b"[" * 999, b"{}", b"x" * 9999])
def test_a_lock_file_may_hold_anything(tmp_path: Path, content: bytes) -> None:
    with holding(tmp_path):
        (tmp_path / ".lock").write_bytes(content)
        with pytest.raises(FolderInUseError, match="another process"), holding(tmp_path):
            pass
    with holding(tmp_path):
        assert (tmp_path / ".lock").read_text().startswith('{"pid"')
