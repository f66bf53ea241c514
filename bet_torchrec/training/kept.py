"""Trained models kept in a folder, each under a key of everything that it depends on.

Processes that share the folder train each model once: the others wait for it and read it. In a
process group the first rank writes and all ranks read. How many ranks there were is no part
of a key: a model that is there serves any number of them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike
from torch import Tensor, nn

from ..files import holding
from ..team import Team
from .checkpoint import Checkpointer, CheckpointError, FileCheckpointer
from .optimizers import Optimizers
from .trained import Trained


class Train(Protocol):
    def __call__(self, *, checkpoint: Checkpointer | None, log: Path | None) -> Trained:
        """Train, keeping its state in ``checkpoint`` and a line a validation in ``log``."""
        ...


class KeptModels:
    """The models in ``folder``; without one nothing is kept. team: who asks, all ranks alike."""

    def __init__(self, folder: Path | None, team: Team) -> None:
        self.folder, self._team = folder, team

    def get(
        self, facts: Mapping[str, Any], load: Callable[[Path], Trained], train: Train
    ) -> Trained:
        """The model of these facts, read back if it is there, else trained and kept.

        facts: what the model depends on, JSON-serialisable; "what" names its file.

        Raises:
            CheckpointError: the file there is another's or broken; an unfinished training's too.
            CollectiveError: ranks ask for different models, or another rank failed.
        """
        self._team.agree("the model to train", (dict(facts), self.folder is not None))
        path = self.path(facts)
        if path is None or self.folder is None:
            return train(checkpoint=None, log=None)
        if (kept := self._read(path, load)) is not None:
            return kept
        with ExitStack() as held:
            # A lock a model, so that unlike ones are trained side by side.
            alone = holding(self.folder / ".locks" / path.stem, wait=True)
            self._team.first(f"waiting for {path}", lambda: held.enter_context(alone))
            kept = self._read(path, load)
            return self._trained(path, facts, train) if kept is None else kept

    def _read(self, path: Path, load: Callable[[Path], Trained]) -> Trained | None:
        if not self._team.broadcast(path.is_file()):
            return None
        read: Trained = self._team.together(f"reading {path}", lambda: load(path))
        return read

    def _trained(self, path: Path, facts: Mapping[str, Any], train: Train) -> Trained:
        # A run's identity differs between one process and several, so they don't share this file.
        suffix = ".checkpoint" if self._team.size == 1 else ".ranks.checkpoint"
        unfinished = FirstRanksFile(path.with_suffix(suffix), self._team)
        model = train(checkpoint=unfinished, log=path.with_suffix(".jsonl"))

        def keep() -> None:
            model.save(path, facts=facts)
            unfinished.path.unlink(missing_ok=True)

        self._team.first(f"writing {path}", keep)
        return model

    def path(self, facts: Mapping[str, Any]) -> Path | None:
        """Where the model of these facts is kept."""
        if self.folder is None:
            return None
        key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
        return self.folder / f"{facts['what']}-{key}.safetensors"


def content(
    sizes: Mapping[str, ArrayLike], precisions: Mapping[str, ArrayLike | str] | None
) -> str:
    """What training depends on: plans that differ in their origin alone share a model."""
    digest = hashlib.sha256()
    for part in (sizes, precisions or {}):
        for name in sorted(part):
            values = np.asarray(part[name])
            digest.update(name.encode() + str(values.dtype).encode() + values.tobytes())
    return digest.hexdigest()[:16]


class FirstRanksFile:
    """A ``Checkpointer`` of a run whose ranks all hold all weights: one file, the first rank's."""

    def __init__(self, path: Path, team: Team) -> None:
        self.path, self._team = path, team
        self._file = FileCheckpointer(path)

    def save(
        self,
        model: nn.Module,
        optimizer: Optimizers,
        best: Mapping[str, Tensor] | None,
        facts: Mapping[str, Any],
    ) -> None:
        self._team.first(
            f"writing {self.path}", lambda: self._file.save(model, optimizer, best, facts)
        )

    def load(
        self, model: nn.Module, optimizer: Optimizers, run: Mapping[str, Any]
    ) -> tuple[dict[str, Tensor] | None, dict[str, Any]] | None:
        def read() -> tuple[dict[str, Tensor] | None, dict[str, Any]]:
            found = self._file.load(model, optimizer, run)
            if found is None:
                raise CheckpointError(
                    f"the first rank has the checkpoint {self.path}, rank {self._team.rank} sees "
                    "none: use a folder that all ranks share"
                )
            return found

        # The first rank's word: one that sees no file would start anew while others continue.
        if not self._team.broadcast(self.path.is_file()):
            return None
        found: tuple[dict[str, Tensor] | None, dict[str, Any]] = self._team.together(
            f"reading {self.path}", read
        )
        return found
