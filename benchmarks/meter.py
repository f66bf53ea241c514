"""Bytes that this process really takes."""

from __future__ import annotations

import ctypes
import gc
import re
from pathlib import Path

import torch


class Meter:
    """Bytes of this process, or of its CUDA allocator."""

    def __init__(self, device: str) -> None:
        self.cuda = device == "cuda"
        self.zero = 0
        self.zero = self.now()

    def now(self) -> int:
        gc.collect()
        if self.cuda:
            torch.cuda.synchronize()
            return torch.cuda.memory_allocated() - self.zero
        ctypes.CDLL(None).malloc_trim(0)
        return _status("VmRSS") - self.zero

    def peak(self) -> int:
        """The most since ``restart``."""
        return (torch.cuda.max_memory_allocated() if self.cuda else _status("VmHWM")) - self.zero

    def restart(self) -> None:
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
        else:
            Path("/proc/self/clear_refs").write_text("5")


def _status(name: str) -> int:
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found, f"no {name} in /proc/self/status: this needs Linux"
    return int(found[1]) * 1024


def live_tensors(device: str) -> int:
    """Bytes of all storages of tensors that are alive on a device."""
    gc.collect()
    storages = {}
    for thing in gc.get_objects():
        # Sharded tensors are views of plain ones.
        if type(thing) in (torch.Tensor, torch.nn.Parameter) and thing.device.type == device:
            storage = thing.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())
