"""Tensors and a few facts in one safetensors file: whole, with a checksum, without pickle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..errors import BetError, InvalidInputError
from ..files.tensors import TensorFileError, open_file, write_file
from ..files.torch_tensors import entry, read_tensor
from ..strict import StrictError, parse
from .optimizers import Optimizers

_FORMAT, _VERSION = "bet_torchrec.state", "1"


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
    metadata = {"format": _FORMAT, "version": _VERSION, "facts": json.dumps(dict(facts))}
    widest_first = sorted(tensors.items(), key=lambda item: -item[1].element_size())
    write_file(Path(path), metadata, [entry(name, tensor) for name, tensor in widest_first])


def load_state(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors (on the CPU) and facts of ``save_state``, once the checksum of it all fits.

    Raises:
        FileNotFoundError: nothing is there. CheckpointError: what is there is no such file, or was
            changed since.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"expected a checkpoint at {path}, found none")
    try:
        file = open_file(path)
        told = file.metadata
        if (told.get("format"), told.get("version")) != (_FORMAT, _VERSION):
            raise TensorFileError(
                f"it has format {told.get('format')!r}, version {told.get('version')!r}, not "
                f"{_FORMAT!r}, {_VERSION!r}"
            )
        file.verify()
        facts = parse(told.get("facts", ""), dict[str, Any], "its facts")
        return {name: read_tensor(file, name) for name in file.tensors}, facts
    except (TensorFileError, StrictError) as error:
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
            part, _, name = key.partition("/")
            if part not in parts:
                raise CheckpointError(
                    f"{self.path} should hold tensors of {', '.join(parts)}, got {key!r}: remove "
                    "it to start anew"
                )
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
