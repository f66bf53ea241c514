"""Saved state comes back exactly, or not at all."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mutations import mutated, rewritten
from safetensors.torch import load_file, save_file

from bet_torchrec.errors import InvalidInputError
from bet_torchrec.files.torch_tensors import DTYPES
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


def state(path: Path) -> Path:
    tensors = {"w": torch.linspace(0, 1, 50).view(10, 5), "n": torch.arange(3)}
    save_state(path, tensors, {"run": {"seed": 1}, "quality": float("nan")})
    return path


def test_every_type_that_models_have(tmp_path: Path):
    values = torch.linspace(-3, 3, 7)
    tensors = {str(dtype): values.to(dtype) for dtype in DTYPES}
    save_state(tmp_path / "state", {**tensors, "column": torch.eye(4)[:, 1]}, {})
    found, _ = load_state(tmp_path / "state")
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name].view(torch.uint8), tensor.view(torch.uint8))
    assert found["column"].tolist() == [0, 1, 0, 0]
    with pytest.raises(InvalidInputError, match="'z' should be a dense tensor"):
        save_state(tmp_path / "state", {"z": torch.zeros(2, dtype=torch.complex64)}, {})
    with pytest.raises(InvalidInputError, match="'z' should be a dense tensor"):
        save_state(tmp_path / "state", {"z": torch.eye(2).to_sparse()}, {})


def test_other_readers_of_the_format_agree(tmp_path: Path):
    found, _ = load_state(state(tmp_path / "state"))
    theirs = load_file(str(tmp_path / "state"))
    assert {name: t.tolist() for name, t in found.items()} == {
        name: t.tolist() for name, t in theirs.items()
    }


def test_any_flipped_bit_is_noticed(tmp_path: Path):
    good = state(tmp_path / "state").read_bytes()
    for at in range(len(good)):
        bad = bytearray(good)
        bad[at] ^= 1 << at % 8
        (tmp_path / "bad").write_bytes(bytes(bad))
        with pytest.raises(CheckpointError, match="bad is no checkpoint"):
            load_state(tmp_path / "bad")
    for length in range(0, len(good), 13):
        (tmp_path / "bad").write_bytes(good[:length])
        with pytest.raises(CheckpointError, match="bad is no checkpoint"):
            load_state(tmp_path / "bad")


def test_a_file_without_checksum_is_refused(tmp_path: Path):
    save_file({"w": torch.zeros(3)}, str(tmp_path / "old"), metadata={"bet_torchrec": "{}"})
    with pytest.raises(CheckpointError, match="format None.*remove it to start anew"):
        load_state(tmp_path / "old")


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.data())
def test_only_our_error_comes_out_of_a_crafted_file(tmp_path: Path, data: st.DataObject):
    facts = json.dumps(mutated(data.draw, {"run": {"seed": 1}, "history": [[1, 0.5]]}))
    with contextlib.suppress(CheckpointError):
        path = rewritten(state(tmp_path / "state"), tmp_path / "bad", {"facts": facts})
        assert isinstance(load_state(path)[1], dict)
    good = (tmp_path / "state").read_bytes()
    length = int.from_bytes(good[:8], "little")
    header = mutated(data.draw, json.loads(good[8 : 8 + length]))
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + good[8 + length :])
    with contextlib.suppress(CheckpointError):
        assert set(load_state(path)[0]) == {"w", "n"}


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
