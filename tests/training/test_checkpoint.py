"""Saved state comes back exactly, or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bet_torchrec.training import CheckpointError
from bet_torchrec.training.checkpoint import (
    load_state,
    optimizer_tensors,
    restore_optimizer,
    save_state,
)


def test_round_trip(tmp_path: Path):
    shared = torch.randn(3, 4)
    tensors = {"a": shared, "view": shared[1:], "empty": torch.zeros(0), "one": torch.tensor(3)}
    facts = {"step": 3, "history": [[1, 0.25]], "none": None}
    path = tmp_path / "new" / "state"
    save_state(path, tensors, facts)
    found, read = load_state(path)
    assert read == facts
    assert set(found) == set(tensors)
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())
    assert [p.name for p in path.parent.iterdir()] == ["state"]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path):
    path = tmp_path / "state"
    save_state(path, {"a": torch.ones(2)}, {"step": 1})
    with pytest.raises(TypeError):
        save_state(path, {"a": torch.zeros(2)}, {"step": object()})
    assert load_state(path)[1] == {"step": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["state"]


@pytest.mark.parametrize("content", [b"", b"no checkpoint", b"\x08\0\0\0\0\0\0\0{}      "])
def test_foreign_files(tmp_path: Path, content: bytes):
    path = tmp_path / "state"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="no checkpoint"):
        load_state(path)
    with pytest.raises(FileNotFoundError):
        load_state(tmp_path / "missing")


def test_an_optimizer_continues_exactly():
    def steps(parameter, optimizer, n: int) -> None:
        for _ in range(n):
            optimizer.zero_grad()
            parameter.sin().sum().backward()
            optimizer.step()

    start = torch.randn(5)
    whole = torch.nn.Parameter(start.clone())
    steps(whole, torch.optim.Adam([whole], fused=True), 6)
    half = torch.nn.Parameter(start.clone())
    first = torch.optim.Adam([half], fused=True)
    steps(half, first, 3)
    second = torch.optim.Adam([half], fused=True)
    restore_optimizer(second, optimizer_tensors(first))
    steps(half, second, 3)
    assert torch.equal(half, whole)
