"""Compiles the C++ beside this file on first use, and keeps the library for the next process.

Only a C++ compiler is needed: the interface is plain C, so neither torch's headers nor its version
matter and the compilation takes seconds. It is for this machine's CPU, whose features are part of
the library's name, as are the source, the compiler and the flags. (A wheel with the library in it
would serve one CPU for all, and one built at install time would need the compiler then; without any
compiler everything but the fused step works, through TorchRec's kernels.)
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import warnings
from functools import lru_cache
from pathlib import Path

from ...errors import BetError
from .cache import LibraryCache, UnsafeFolderError, load

_FOLDER = Path(__file__).parent
_SOURCES = ("rows.h", "lookup.cpp", "update.cpp", "route.cpp")
# Not -ffast-math: linked into a library, it changes how the whole process rounds denormals.
FLAGS = (
    "-O3",
    "-march=native",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fno-signed-zeros",
    "-fassociative-math",
    "-fopenmp",
    "-shared",
    "-fPIC",
    "-std=c++17",
)


class CompilerError(BetError, RuntimeError):
    """There is no C++ compiler, or it failed, or its work can't be kept; says what to do."""


@lru_cache(maxsize=1)
def library() -> ctypes.CDLL:
    """The compiled kernels.

    Raises:
        CompilerError: no compiler (CXX, g++, c++ or clang++) is found, or it fails; or the cache's
            folder could be written by others.
    """
    compiler = _compiler()
    sources = [_FOLDER / name for name in _SOURCES]
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True).stdout
    facts = (*(s.read_text() for s in sources), *FLAGS, compiler, version, _cpu())
    key = hashlib.sha256("\0".join(facts).encode()).hexdigest()
    try:
        with LibraryCache(_cache_folder()) as cache:
            content = cache.read(key)
            if content is None:
                content = compiled(compiler, FLAGS)
                cache.write(key, content)
    except UnsafeFolderError as error:
        raise CompilerError(str(error)) from error
    return load(content)


@lru_cache(maxsize=1)
def available() -> bool:
    """Whether ``library`` can be had; says once why, if it can't."""
    try:
        library()
    except CompilerError as error:
        warnings.warn(f"lookups go through TorchRec's kernels, more slowly: {error}", stacklevel=2)
        return False
    return True


def compiled(compiler: str, flags: tuple[str, ...]) -> bytes:
    """The library, as bytes."""
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "kernels.so"
        units = [str(_FOLDER / name) for name in _SOURCES if name.endswith(".cpp")]
        command = [compiler, *flags, *units, "-o", str(made)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise CompilerError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
        return made.read_bytes()


def _compiler() -> str:
    for name in (os.environ.get("CXX"), "g++", "c++", "clang++"):
        if name and (found := shutil.which(name)):
            return found
    raise CompilerError(
        "our CPU kernels need a C++ compiler, found none: install g++ or set CXX; to train without "
        "one, go through DistributedModelParallel"
    )


def _cpu() -> str:
    """What -march=native depends on."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else [platform.processor()]
    wanted = ("flags", "Features", "model name", "cpu family", "model\t")
    told = dict.fromkeys(line for line in lines if line.startswith(wanted))
    return "\n".join((platform.machine(), *told))


def _cache_folder() -> Path:
    # As the XDG specification has it: a relative path there is no path.
    base = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(base):
        base = os.path.join(os.path.expanduser("~"), ".cache")
    return Path(base) / "bet_torchrec"
