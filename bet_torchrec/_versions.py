"""This package's version, and whether the installed torch and FBGEMM fit together.

A wrong pair does not fail by name: loading FBGEMM's library ends in an undefined symbol. So the
building wing calls :func:`check` before it loads anything. Nothing is imported to find out:
versions are read from the installed packages' metadata.
"""

from __future__ import annotations

import platform
import re
from collections.abc import Mapping
from importlib import metadata

from .errors import BetError

__version__ = "0.1.0"

PACKAGES = ("torch", "fbgemm-gpu", "fbgemm-gpu-cpu", "torchrec", "numpy", "scipy", "safetensors")

#: FBGEMM 1.n is built against torch 2.(n + 5): 1.8 with 2.13, 1.6 with 2.11.
_TORCH_MINOR_OFFSET = 5


class VersionMismatchError(BetError, ImportError):
    """The installed torch, FBGEMM and TorchRec do not fit together; says what to install."""


def installed() -> dict[str, str | None]:
    """Versions of this package, Python and all that it computes with; None where not installed."""
    versions: dict[str, str | None] = {
        "bet_torchrec": __version__,
        "python": platform.python_version(),
    }
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return versions


def problem(versions: Mapping[str, str | None]) -> str | None:
    """Why the building wing cannot load, in one line that ends in what to do; None if it can.

    ``versions`` is what :func:`installed` returns. A version that does not look like ``n.n...`` is
    given the benefit of the doubt.
    """
    torch, cuda, cpu = (versions.get(k) for k in ("torch", "fbgemm-gpu", "fbgemm-gpu-cpu"))
    if torch is None:
        return "torch is not installed. Install bet_torchrec with an extra: .[cpu] or .[cuda]"
    if cuda is not None and cpu is not None:
        return (
            f"fbgemm-gpu {cuda} and fbgemm-gpu-cpu {cpu} are both installed and overwrite each "
            "other's files. Make a fresh environment with one backend: BACKEND=cpu or BACKEND=cuda"
        )
    fbgemm = cuda if cuda is not None else cpu
    if fbgemm is None:
        return "FBGEMM is not installed. Install bet_torchrec with an extra: .[cpu] or .[cuda]"
    if cuda is not None and torch.endswith("+cpu"):
        return (
            f"fbgemm-gpu {cuda} is a CUDA build and torch {torch} is a CPU build. "
            "Install fbgemm-gpu-cpu of the same version in a fresh environment"
        )
    has, built = _major_minor(torch), _major_minor(fbgemm)
    if has and built and built[0] == 1:
        wants = (2, built[1] + _TORCH_MINOR_OFFSET)
        if has != wants:
            fits = ""
            if has[0] == 2 and has[1] > _TORCH_MINOR_OFFSET:
                fits = f", or FBGEMM 1.{has[1] - _TORCH_MINOR_OFFSET}"
            return (
                f"FBGEMM {fbgemm} is built for torch {wants[0]}.{wants[1]}, but torch {torch} is "
                f"installed. Install torch {wants[0]}.{wants[1]}{fits}"
            )
    if versions.get("torchrec") is None:
        hint = "pip install --no-deps torchrec" if cpu is not None else "pip install torchrec"
        return f"torchrec is not installed. Install the release that fits FBGEMM {fbgemm}: {hint}"
    return None


def check(versions: Mapping[str, str | None] | None = None) -> None:
    """Raise :class:`VersionMismatchError` if the building wing cannot load; imports nothing."""
    found = problem(installed() if versions is None else versions)
    if found is not None:
        raise VersionMismatchError(found)


def report() -> str:
    """What ``bet-torchrec --version`` prints: all versions, and a second line if they clash."""
    versions = installed()
    parts = [f"{k} {v}" for k, v in versions.items() if v is not None]
    found = problem(versions)
    return ", ".join(parts) + (f"\nwarning: {found}" if found else "")


def _major_minor(version: str) -> tuple[int, int] | None:
    match = re.match(r"(\d+)\.(\d+)", version)
    return (int(match[1]), int(match[2])) if match else None
