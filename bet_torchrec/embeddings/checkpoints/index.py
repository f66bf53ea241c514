"""The index of a checkpoint: one JSON file that says what the folder beside it holds.

It is written last and replaced at once, so that a save that is interrupted leaves the checkpoint
before it as it was; folders that no index names are what such a save left.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ...errors import PlanFileError
from ...files import replace_file
from ...planning.plan import SizePlan
from ...strict import StrictError, parse, typed
from .manifest import Manifest
from .stored import DamagedCheckpointError, StoredTensor

_INDEX, _FORMAT, _VERSION = "checkpoint.json", "bet_torchrec.checkpoint", 2


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds, but for the tensors.

    plans: {path of a collection in the model: its plan}. manifest: layouts, tensors, states.
    facts: what was given to ``save_checkpoint``.
    """

    plans: Mapping[str, SizePlan]
    manifest: Manifest
    facts: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Body:
    """The index's JSON.

    data: the folder of the tensors. files: their sha256. stored: where which tensor is.

    Raises:
        ValueError: its parts contradict each other.
    """

    data: str
    files: Mapping[str, str]
    stored: Mapping[str, StoredTensor]
    manifest: Manifest
    facts: Mapping[str, Any]

    def __post_init__(self) -> None:
        plans = [facts.plan for facts in self.manifest.collections.values()]
        for pattern, names in (("data-[0-9a-f]+", [self.data]), ("[0-9a-f]+", plans)):
            if wrong := [name for name in names if not re.fullmatch(pattern, name)]:
                raise ValueError(f"{wrong[0]!r} is no name of a file of a checkpoint")
        used = {piece.file for whole in self.stored.values() for piece in whole.pieces}
        if used != set(self.files) or not all(re.fullmatch(r"\w+\.safetensors", n) for n in used):
            raise ValueError(f"its tensors are in {sorted(used)}, its files {sorted(self.files)}")
        if {name: whole.shape for name, whole in self.stored.items()} != self.manifest.shapes():
            raise ValueError("its tensors are not those that its manifest names")


@dataclass(frozen=True)
class Opened:
    """folder: of the tensors. body: what the index says, checked."""

    checkpoint: Checkpoint
    folder: Path
    body: Body


def commit(folder: Path, plans: Iterable[SizePlan], body: Body) -> None:
    """Write the plans, then the index, in one move; then older data goes."""
    for plan in plans:
        plan.save(folder / body.data / f"{plan.fingerprint()}.plan")
    told = json.loads(json.dumps(asdict(body)))
    index = {"format": _FORMAT, "version": _VERSION, "sha256": _sha256(told), "body": told}
    replace_file(folder / _INDEX, json.dumps(index))
    for old in (*folder.glob("data-*"), *folder.glob(f".{_INDEX}.*.tmp")):
        if old.name != body.data:
            shutil.rmtree(old, ignore_errors=True) if old.is_dir() else old.unlink()


def open_checkpoint(path: Path) -> Opened:
    """All but the tensors.

    Raises:
        FileNotFoundError: no checkpoint there. DamagedCheckpointError: not all of one.
    """
    index = path / _INDEX
    if not index.is_file():
        left = ", only what an interrupted save left" if list(path.glob("data-*")) else ""
        raise FileNotFoundError(f"expected a checkpoint at {path}, found none{left}")
    try:
        body = _body(index.read_bytes())
        plans = {}
        for name, facts in body.manifest.collections.items():
            plans[name] = SizePlan.load(path / body.data / f"{facts.plan}.plan")
            if plans[name].fingerprint() != facts.plan:
                raise ValueError(f"the plan of {name!r} is another one")
    except (OSError, StrictError, PlanFileError, ValueError) as error:
        raise DamagedCheckpointError(
            f"{path} should be a checkpoint of save_checkpoint, but {error}: take an older one"
        ) from error
    return Opened(Checkpoint(plans, body.manifest, body.facts), path / body.data, body)


def _body(text: bytes) -> Body:
    index = parse(text, dict[str, Any], "its index")
    if (index.get("format"), index.get("version")) == (_FORMAT, 1):
        raise ValueError(
            "it was written by an earlier version, with an index that is a pickle, which could run "
            "code and is never read. Read it with that version, and bring its full_tables() over"
        )
    if (index.get("format"), index.get("version")) != (_FORMAT, _VERSION):
        raise ValueError(
            f"it is of format {index.get('format')!r}, version {index.get('version')!r}, expected "
            f"{_FORMAT} of version {_VERSION}"
        )
    if index.get("sha256") != _sha256(index.get("body")):
        raise ValueError(f"the checksum of {_INDEX} does not match")
    return typed(index.get("body"), Body, "index")


def _sha256(body: Any) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def discard(folder: Path, data: str) -> None:
    """Remove what a save wrote before it failed, unless it failed after it was complete."""
    index = folder / _INDEX
    if not (index.is_file() and data in index.read_text()):
        shutil.rmtree(folder / data, ignore_errors=True)
