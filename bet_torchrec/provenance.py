"""Where a result comes from: seed, settings, versions, data and commit, as one JSON-able dict."""

from __future__ import annotations

import datetime
import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ._versions import installed


def provenance(
    *,
    seed: int | None,
    settings: Mapping[str, Any],
    data: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """What is needed to repeat a result.

    ``settings`` is everything that was chosen (all command-line arguments, say); ``data`` says what
    it ran on, for instance ``{"name": ..., "fingerprint": ...}``. Values that JSON does not know
    are kept as text. The time is UTC, ISO 8601.
    """
    record = {
        "seed": seed,
        "settings": dict(settings),
        "data": dict(data) if data is not None else None,
        "versions": installed(),
        "git": git_commit(),
        "machine": {
            "platform": platform.platform(),
            "processors": os.cpu_count(),
            "threads": _torch_threads(),
        },
        "started": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }
    return json.loads(json.dumps(record, default=_plain))


def git_commit(package: Path | None = None) -> dict[str, Any] | None:
    """Commit of the checkout that this package runs from, and whether files differ from it.

    None when the package is not run from a checkout of its own (installed from a wheel, say inside
    somebody else's repository), has no commit yet, or git is missing.
    """
    package = package or Path(__file__).resolve().parent
    marker = f"{package.name}/__init__.py"
    try:
        commit = _git(package.parent, "rev-parse", "HEAD")
        # Fails when the package lies in a repository that does not track it.
        _git(package.parent, "ls-files", "--error-unmatch", marker)
        changed = _git(package.parent, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": commit, "modified": bool(changed)}


def _git(folder: Path, *args: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(folder), *args], capture_output=True, text=True, check=True, timeout=10
    )
    return done.stdout.strip()


def _torch_threads() -> int | None:
    # Only where torch is in use already: asking must not cost its import.
    torch = sys.modules.get("torch")
    return torch.get_num_threads() if torch is not None else None


def _plain(value: Any) -> Any:
    """JSON's stand-in for a value that it does not know."""
    if hasattr(value, "item") and getattr(value, "size", None) == 1:
        return value.item()
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    return str(value)
