"""The heap context: leaves a working allocator behind, respects the environment."""

from __future__ import annotations

import platform

import pytest
import torch

from bet_torchrec.training import heap_for_large_arrays

GLIBC = platform.libc_ver()[0] == "glibc"


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GLIBC_TUNABLES", "MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("MALLOC_TRIM_THRESHOLD_", raising=False)


def test_arranged_on_glibc_and_allocations_work():
    with heap_for_large_arrays() as arranged:
        assert arranged == GLIBC
        assert torch.ones(20_000_000).sum() == 20_000_000
    assert torch.ones(20_000_000).sum() == 20_000_000


def test_leaves_on_errors():
    with pytest.raises(KeyError), heap_for_large_arrays():
        raise KeyError


def test_the_environment_wins(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "4294967296")
    with heap_for_large_arrays() as arranged:
        assert not arranged
