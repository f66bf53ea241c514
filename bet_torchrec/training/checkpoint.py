"""Tensors and a few facts in one safetensors file, written at once or not at all; no pickle."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ..errors import BetError, InvalidInputError
from .optimizers import Optimizers

_KEY = "bet_torchrec"


class CheckpointError(BetError, ValueError):
    """A file is no checkpoint, or one of something else."""


class Checkpointer(Protocol):
    """Where a training run is saved, and from where it continues.

    best: {name: values} of ``model.named_parameters()`` at the best validation, None before any;
    of sharded tables this rank's part. facts: JSON-serialisable; facts["run"] says which run it is.
    In a sharded run both methods are called on all ranks.
    """

    def save(
        self,
        model: nn.Module,
        optimizer: Optimizers,
        best: Mapping[str, Tensor] | None,
        facts: Mapping[str, Any],
    ) -> None: ...

    def load(
        self, model: nn.Module, optimizer: Optimizers, run: Mapping[str, Any]
    ) -> tuple[dict[str, Tensor] | None, dict[str, Any]] | None:
        """Restore in place; best and facts as saved, or None to start anew.

        Raises:
            CheckpointError: what is there belongs to another run than ``run``.
        """
        ...


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


class FileCheckpointer:
    """``Checkpointer`` of one process: all in one file."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)

    def save(
        self,
        model: nn.Module,
        optimizer: Optimizers,
        best: Mapping[str, Tensor] | None,
        facts: Mapping[str, Any],
    ) -> None:
        """Write it all at once; raises InvalidInputError for fused tables, whose state it lacks."""
        self._check(optimizer)
        tensors = {f"now/{name}": value for name, value in model.state_dict().items()}
        tensors |= {f"best/{name}": value for name, value in (best or {}).items()}
        if optimizer.dense is not None:
            state = optimizer_tensors(optimizer.dense)
            tensors |= {f"adam/{name}": value for name, value in state.items()}
        save_state(self.path, tensors, facts)

    def load(
        self, model: nn.Module, optimizer: Optimizers, run: Mapping[str, Any]
    ) -> tuple[dict[str, Tensor] | None, dict[str, Any]] | None:
        """Restore in place what ``save`` wrote; None where there is no file yet."""
        self._check(optimizer)
        if not self.path.exists():
            return None
        tensors, facts = load_state(self.path)
        if facts.get("run") != run:
            raise CheckpointError(
                f"{self.path} is the checkpoint of another run ({facts.get('run')}, this is "
                f"{run}): remove it, or choose another folder"
            )
        parts: dict[str, dict[str, Tensor]] = {"now": {}, "best": {}, "adam": {}}
        for key, value in tensors.items():
            part, name = key.split("/", 1)
            parts[part][name] = value
        model.load_state_dict(parts["now"])
        if optimizer.dense is not None:
            restore_optimizer(optimizer.dense, parts["adam"])
        return parts["best"] or None, facts

    def _check(self, optimizer: Optimizers) -> None:
        if optimizer.fused:
            raise InvalidInputError(
                "a checkpoint in one file doesn't hold the state of fused tables: pass a "
                "Checkpointer over torch.distributed.checkpoint"
            )
