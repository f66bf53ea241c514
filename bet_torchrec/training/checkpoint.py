"""Tensors and a few facts in one safetensors file, written at once or not at all; no pickle."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..errors import BetError

_KEY = "bet_torchrec"


class CheckpointError(BetError, ValueError):
    """A file is no checkpoint, or one of something else."""


def save_state(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Write tensors and JSON-serialisable facts; the file appears complete or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    # Own memory each: safetensors refuses tensors that share theirs.
    owned = {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}
    try:
        save_file(owned, str(temporary), metadata={_KEY: json.dumps(dict(facts))})
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def load_state(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors (on the CPU) and facts of ``save_state``.

    Raises:
        FileNotFoundError: nothing is there. CheckpointError: what is there is no such file.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"expected a checkpoint at {path}, found none")
    try:
        with safe_open(str(path), framework="pt") as file:
            facts = json.loads((file.metadata() or {})[_KEY])
            return {name: file.get_tensor(name) for name in file.keys()}, facts  # noqa: SIM118
    except (SafetensorError, KeyError, json.JSONDecodeError) as error:
        raise CheckpointError(
            f"{path} is no checkpoint of this package ({error}): remove it to start anew"
        ) from error


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """An optimizer's state as flat named tensors: {"<parameter>.<name>": tensor}."""
    state = optimizer.state_dict()["state"]
    return {
        f"{number}.{name}": torch.as_tensor(value)
        for number, values in state.items()
        for name, value in values.items()
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put ``optimizer_tensors`` back into an optimizer over the same parameters."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        number, name = key.split(".", 1)
        state.setdefault(int(number), {})[name] = tensor
    optimizer.load_state_dict(
        {"state": state, "param_groups": optimizer.state_dict()["param_groups"]}
    )
