"""One process a folder: two that write the same run would each undo the other's work."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from ..errors import BetError

try:
    import fcntl
except ImportError:  # Windows: nobody is kept out
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"


class FolderInUseError(BetError, RuntimeError):
    """Another process works in the folder; says which, where and since when."""


@contextmanager
def holding(folder: Path | None, *, wait: bool = False) -> Iterator[None]:
    """Have a folder to oneself; it is made where missing. None: there is no folder to hold.

    The kernel keeps the lock and frees it however its process ends, ``kill -9`` included, so what
    a dead one left is simply taken over. Within one process a second call is refused too.

    Args:
        wait: until it is free, instead of the error.

    Raises:
        FolderInUseError: somebody has it.
    """
    if folder is None or fcntl is None:
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    # The file stays when the lock goes: were it removed, two could hold "it" by turns.
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    handle = os.open(folder / LOCK, flags, 0o666)
    with open(handle, "r+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            raise FolderInUseError(
                f"{folder} is in use by {_holder(file.read(1000))}: wait for it, end it, or use "
                "another folder"
            ) from None
        file.truncate(0)
        file.write(json.dumps(_self()).encode())
        file.flush()
        yield


def _self() -> dict[str, str | int]:
    started = datetime.now().astimezone().isoformat(timespec="seconds")
    return {"pid": os.getpid(), "host": socket.gethostname(), "since": started}


def _holder(said: bytes) -> str:
    """In words; the file may be empty yet, or anything."""
    try:
        who = json.loads(said)
        return f"process {who['pid']} on {who['host']} since {who['since']}"
    except (ValueError, LookupError, TypeError, RecursionError):
        return "another process"
