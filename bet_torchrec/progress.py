"""Progress bars that suit a terminal, and say little where their output goes to a file."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm

_TERMINAL, _FILE = 0.1, 60.0  # seconds between updates


def progress_bar(*args: Any, shown: bool, **more: Any) -> Any:
    """A tqdm bar on stderr; arguments as tqdm takes them."""
    every = _TERMINAL if sys.stderr.isatty() else _FILE
    return tqdm(*args, disable=not shown, mininterval=every, maxinterval=max(every, 10), **more)
