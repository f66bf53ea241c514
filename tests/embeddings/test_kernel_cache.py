"""Compiled libraries: only what we compiled is loaded, whoever else can write where it is kept."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from bet_torchrec.embeddings.native import build
from bet_torchrec.embeddings.native.cache import LibraryCache, UnsafeFolderError, load

COMPILER = next((c for c in ("g++", "c++", "clang++") if shutil.which(c)), None)
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")
KEY, OTHER = "a" * 64, "b" * 64


def tiny(number: int) -> bytes:
    """A library with one function, which returns a number."""
    source = f'extern "C" int number() {{ return {number}; }}'
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "tiny.so"
        command = [str(COMPILER), "-shared", "-fPIC", "-x", "c++", "-", "-o", str(made)]
        subprocess.run(command, input=source.encode(), check=True)
        return made.read_bytes()


def only_file(folder: Path) -> Path:
    (file,) = folder.iterdir()
    return file


def test_what_was_written_is_read(tmp_path):
    with LibraryCache(tmp_path / "kept") as cache:
        assert cache.read(KEY) is None
        cache.write(KEY, b"code")
        cache.write(OTHER, b"other code")
        assert cache.read(KEY) == b"code"
        assert cache.read(OTHER) == b"other code"
    assert (tmp_path / "kept").stat().st_mode & 0o777 == 0o700
    assert all(file.stat().st_mode & 0o777 == 0o600 for file in (tmp_path / "kept").iterdir())


def test_a_file_that_is_not_what_was_written_is_not_read(tmp_path):
    folder = tmp_path / "kept"
    with LibraryCache(folder) as cache:
        cache.write(KEY, bytes(range(200)))
        whole = only_file(folder).read_bytes()
        for damaged in (b"", whole[:10], whole[:-1], whole + b"x", b"x" + whole[1:]):
            only_file(folder).write_bytes(damaged)
            assert cache.read(KEY) is None
        only_file(folder).write_bytes(whole)
        assert cache.read(KEY) == bytes(range(200))
        only_file(folder).rename(folder / f"kernels-{OTHER[:32]}.so")
        assert cache.read(OTHER) is None  # of another source


def test_files_that_others_could_have_written_are_not_read(tmp_path):
    folder = tmp_path / "kept"
    with LibraryCache(folder) as cache:
        cache.write(KEY, b"code")
        file = only_file(folder)
        file.chmod(0o622)
        assert cache.read(KEY) is None
        file.chmod(0o600)
        assert cache.read(KEY) == b"code"
        file.rename(tmp_path / "elsewhere")
        file.symlink_to(tmp_path / "elsewhere")
        assert cache.read(KEY) is None


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o1777, 0o702])
def test_a_folder_that_others_can_write_is_refused(tmp_path, mode):
    folder = tmp_path / "kept"
    folder.mkdir()
    folder.chmod(mode)
    with pytest.raises(UnsafeFolderError, match=f"mode {mode:o}.*chmod 700"), LibraryCache(folder):
        pass


def test_a_folder_of_another_user_or_a_link_is_refused(tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(os, "geteuid", lambda: 12345)
        with (
            pytest.raises(UnsafeFolderError, match="not to 12345"),
            LibraryCache(tmp_path / "kept"),
        ):
            pass
    (tmp_path / "link").symlink_to(tmp_path / "kept")
    with pytest.raises(UnsafeFolderError, match="folder"), LibraryCache(tmp_path / "link"):
        pass
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UnsafeFolderError, match="folder"), LibraryCache(tmp_path / "file"):
        pass


def test_a_full_disk_costs_the_next_process_a_compilation(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    with LibraryCache(tmp_path / "kept") as cache:
        monkeypatch.setattr(os, "fsync", full)
        cache.write(KEY, b"code")
        assert cache.read(KEY) is None
    assert not list((tmp_path / "kept").iterdir())


@needs_compiler
def test_a_library_runs_from_memory(tmp_path, monkeypatch):
    one, two = load(tiny(1)), load(tiny(2))
    assert (one.number(), two.number()) == (1, 2)
    monkeypatch.delattr(os, "memfd_create")
    assert load(tiny(3)).number() == 3
    with pytest.raises(OSError, match="."):
        load(b"no library")


@needs_compiler
def test_it_is_compiled_once_and_again_when_damaged(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    compiled = []

    def count(compiler, flags):
        compiled.append(flags)
        return tiny(7)

    monkeypatch.setattr(build, "compiled", count)

    def number() -> int:
        build.library.cache_clear()
        return build.library().number()

    try:
        assert [number(), number()] == [7, 7]
        assert len(compiled) == 1
        file = only_file(tmp_path / "bet_torchrec")
        os.truncate(file, 4096)
        assert number() == 7
        assert len(compiled) == 2
        monkeypatch.setattr(build, "FLAGS", (*build.FLAGS, "-DOTHER"))
        assert number() == 7
        assert len(compiled) == 3
    finally:
        build.library.cache_clear()


@needs_compiler
def test_a_planted_folder_is_refused_with_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "bet_torchrec").mkdir()
    (tmp_path / "bet_torchrec").chmod(0o777)
    build.library.cache_clear()
    try:
        with pytest.raises(build.CompilerError, match="bet_torchrec.*nobody else can write"):
            build.library()
    finally:
        build.library.cache_clear()


def test_the_folder_is_never_below_the_working_one(monkeypatch):
    """Not by a relative path, nor by what an unpickled object made of pathlib."""
    for relative in ("", ".", "cache", "../x"):
        monkeypatch.setenv("XDG_CACHE_HOME", relative)
        with monkeypatch.context() as patched:
            patched.setattr(Path, "home", classmethod(lambda cls: Path()))
            found = build._cache_folder()
        assert found == Path(os.path.expanduser("~")) / ".cache" / "bet_torchrec"


@needs_compiler
@pytest.mark.slow
def test_a_truncated_file_does_not_kill_a_process(tmp_path):
    """Neither one that starts nor one that runs: SIGBUS is what a mapped file would give."""
    script = f"""
import os
from pathlib import Path
from bet_torchrec.embeddings.native import build
build.library()
(file,) = Path({str(tmp_path)!r}, "bet_torchrec").iterdir()
os.truncate(file, 0)

print(build.library().bet_lookup is not None)
build.library.cache_clear()
build.library()
print(file.stat().st_size > 1000)
"""
    env = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True)
    assert done.stdout.split() == ["True", "True"], done.stderr[-2000:]
    assert done.returncode == 0
