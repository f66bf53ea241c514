"""Where compiled libraries are kept: a folder that nobody else can write, files that tell damage.

A library is code that will run here, so what counts is who may have written it: the folder is ours
(made 0700; refused if another user owns it or may write to it) and so is every file in it, checked
on the opened file and not on a name. A file ends in a digest of its content and of what it was made
from, so that a truncated or damaged one is compiled anew instead of loaded. What was checked is
loaded from memory, so that no later change of the file reaches a running process.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import stat
import tempfile
from pathlib import Path
from types import TracebackType

from ...errors import BetError

_DIGEST = 32  # bytes


class UnsafeFolderError(BetError, RuntimeError):
    """Others could have written what is in a folder; says what to do."""


class LibraryCache:
    """Libraries by key (hex digits) in one folder, made if need be. A context manager.

    Raises:
        UnsafeFolderError: the folder is not ours alone, on entering.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __enter__(self) -> LibraryCache:
        try:
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            if not self.folder.is_symlink():
                self.folder.mkdir(mode=0o700, exist_ok=True)
            self._open = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError as error:
            raise self._unsafe(f"cannot be opened as a folder ({error})") from error
        if why := _not_ours(os.fstat(self._open)):
            os.close(self._open)
            raise self._unsafe(why)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.close(self._open)

    def read(self, key: str) -> bytes | None:
        """The library of a key; None if there is none, or it is damaged or not ours."""
        try:
            file = os.open(_name(key), os.O_RDONLY | os.O_NOFOLLOW, dir_fd=self._open)
        except OSError:
            return None
        with open(file, "rb") as opened:
            about = os.fstat(file)
            if not stat.S_ISREG(about.st_mode) or _not_ours(about):
                return None
            whole = opened.read()
        content, digest = whole[:-_DIGEST], whole[-_DIGEST:]
        return content if digest == _digest(key, content) else None

    def write(self, key: str, content: bytes) -> None:
        """Keep a library, whole or not at all, also if the machine loses power."""
        # Under a name of its own, then renamed: several processes may do this at once.
        temporary = f".{_name(key)}.{os.getpid()}.{os.urandom(4).hex()}"
        try:
            file = os.open(
                temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=self._open
            )
            with open(file, "wb") as opened:
                opened.write(content + _digest(key, content))
                opened.flush()
                os.fsync(file)
            os.replace(temporary, _name(key), src_dir_fd=self._open, dst_dir_fd=self._open)
            os.fsync(self._open)
        except OSError:  # a full disk: this process has the library, the next one compiles again
            if temporary in os.listdir(self._open):
                os.unlink(temporary, dir_fd=self._open)

    def _unsafe(self, why: str) -> UnsafeFolderError:
        return UnsafeFolderError(
            f"{self.folder} holds code that is run, so it should be a folder of yours that nobody "
            f"else can write to, but it {why}: remove it or make it so (chmod 700), or set "
            "XDG_CACHE_HOME to an absolute path of your own"
        )


def load(content: bytes) -> ctypes.CDLL:
    """A library, from memory where the system can, else from a file that is gone afterwards."""
    if hasattr(os, "memfd_create"):
        # Left open: the loader knows libraries by name, which no other one may then get.
        file = os.memfd_create("bet_torchrec", os.MFD_CLOEXEC)
        with open(os.dup(file), "wb") as opened:
            opened.write(content)
        try:
            return ctypes.CDLL(f"/proc/self/fd/{file}")
        except OSError:  # no /proc, or one that runs nothing
            os.close(file)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernels.so"
        path.write_bytes(content)
        return ctypes.CDLL(str(path))


def _name(key: str) -> str:
    return f"kernels-{key[:32]}.so"


def _digest(key: str, content: bytes) -> bytes:
    return hashlib.sha256(key.encode() + content).digest()


def _not_ours(about: os.stat_result) -> str | None:
    if about.st_uid != os.geteuid():
        return f"belongs to user {about.st_uid}, not to {os.geteuid()}"
    if about.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return f"can be written by others (mode {stat.S_IMODE(about.st_mode):o})"
    return None
