"""Compiles bags.cpp on first use and keeps the library in the user's cache.

Only a C++ compiler is needed: the interface is plain C, so neither torch's headers nor its version
matter and the compilation takes seconds.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
from functools import lru_cache
from pathlib import Path

from ...errors import BetError

_SOURCE = Path(__file__).with_name("bags.cpp")
# Not -ffast-math: linked into a library, it changes how the whole process rounds denormals.
_FLAGS = (
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
    """There is no C++ compiler, or it failed; says what to do."""


@lru_cache(maxsize=1)
def library() -> ctypes.CDLL:
    """The compiled kernels.

    Raises:
        CompilerError: no compiler (CXX, g++, c++ or clang++) is found, or it fails.
    """
    compiler = _compiler()
    cpu = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    model = next((line for line in cpu.splitlines() if line.startswith("flags")), "")
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True).stdout
    key = "\0".join((_SOURCE.read_text(), *_FLAGS, compiler, version, model))
    name = f"bags-{hashlib.sha256(key.encode()).hexdigest()[:16]}.so"
    path = _cache() / name
    if not path.exists():
        _compile(compiler, path)
    loaded = ctypes.CDLL(str(path))
    loaded.bet_places.restype = ctypes.c_int64
    return loaded


def _compiler() -> str:
    for name in (os.environ.get("CXX"), "g++", "c++", "clang++"):
        if name and (found := shutil.which(name)):
            return found
    raise CompilerError(
        "the fused CPU step needs a C++ compiler, found none: install g++ or set CXX, or train "
        "through DistributedModelParallel, which needs none"
    )


def _cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(base) / "bet_torchrec"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _compile(compiler: str, path: Path) -> None:
    # Under a name of its own, then renamed: several processes may do this at once.
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        made = Path(folder) / path.name
        done = subprocess.run(
            [compiler, *_FLAGS, str(_SOURCE), "-o", str(made)], capture_output=True, text=True
        )
        if done.returncode:
            raise CompilerError(f"{compiler} failed on {_SOURCE.name}:\n{done.stderr[-2000:]}")
        os.replace(made, path)
