"""The most memory that a stretch of work took."""

from __future__ import annotations

import re
from pathlib import Path

import torch

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Peak:
    """Megabytes at the most since it was made: of the process (Linux), or of the CUDA allocator.

    None where the system does not tell. What the process holds already is among them.
    """

    def __init__(self, device: torch.device) -> None:
        self._device, self._told = device, True
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            return
        try:
            _CLEAR.write_text("5")
        except OSError:
            self._told = False

    def megabytes(self) -> int | None:
        """So far."""
        if self._device.type == "cuda":
            return int(torch.cuda.max_memory_allocated(self._device)) >> 20
        if not self._told:
            return None
        found = re.search(r"VmHWM:\s+(\d+) kB", _STATUS.read_text())
        return int(found[1]) >> 10 if found else None
