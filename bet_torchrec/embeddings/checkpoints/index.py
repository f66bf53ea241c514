"""The index of a checkpoint: one JSON file that says what the folder beside it holds.

It is written last and replaced at once, so that a save that is interrupted leaves the checkpoint
before it as it was; folders that no index names are what such a save left.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import InvalidInputError
from ...planning.plan import SizePlan
from . import storage
from .manifest import Manifest
from .storage import DamagedCheckpointError

_INDEX, _FORMAT, _VERSION = "checkpoint.json", "bet_torchrec.checkpoint", 1


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds, but for the tensors.

    plans: {path of a collection in the model: its plan}. manifest: layouts, tensors, states.
    facts: what was given to ``save_checkpoint``.
    """

    plans: Mapping[str, SizePlan]
    manifest: Manifest
    facts: Mapping[str, Any]


@dataclass(frozen=True)
class Opened:
    """folder: of the tensors. metadata: DCP's of them. files: their checksums."""

    checkpoint: Checkpoint
    folder: Path
    metadata: Any
    files: Mapping[str, int]


def folder_of(path: str | Path) -> Path:
    """Raises InvalidInputError for a remote path, which would name a folder here in silence."""
    if "://" in str(path):
        raise InvalidInputError(
            f"a checkpoint should be in a folder that all ranks share, got the remote path {path}: "
            "mount it, or save model.state_dict() by torch.distributed.checkpoint with an "
            "FsspecWriter, without optimizers of torch's"
        )
    return Path(path)


def commit(folder: Path, plans: Iterable[SizePlan], body: dict[str, Any]) -> None:
    """Write the plans, then the index, in one move; then older data goes.

    body: "data", the folder of the tensors; "files", their checksums; a manifest; "facts".
    """
    data = body["data"]
    for plan in plans:
        plan.save(folder / data / f"{plan.fingerprint()}.plan")
    metadata = (folder / data / storage.METADATA).read_bytes()
    body["metadata_sha256"] = hashlib.sha256(metadata).hexdigest()
    text = json.dumps(body, sort_keys=True)
    index = {
        "format": _FORMAT,
        "version": _VERSION,
        "sha256": hashlib.sha256(text.encode()).hexdigest(),
        "body": body,
    }
    _sync(folder / data)
    temporary = folder / f".{_INDEX}.{data}"
    with open(temporary, "w") as file:
        json.dump(index, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, folder / _INDEX)
    _sync(folder)
    for old in (*folder.glob("data-*"), *folder.glob(f".{_INDEX}.data-*")):
        if old.name != data:
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
        body = _body(json.loads(index.read_text()))
        folder = path / Path(body["data"]).name
        saved = Manifest.from_json(body)
        plans = {
            name: SizePlan.load(folder / f"{Path(facts.plan).name}.plan")
            for name, facts in saved.collections.items()
        }
        metadata = storage.read_metadata(folder, body["metadata_sha256"])
        found = Checkpoint(plans, saved, dict(body["facts"]))
        return Opened(found, folder, metadata, {Path(n).name: c for n, c in body["files"].items()})
    except (OSError, KeyError, TypeError, AttributeError, ValueError) as error:
        if isinstance(error, DamagedCheckpointError):
            raise
        raise DamagedCheckpointError(
            f"{path} should be a checkpoint of save_checkpoint, but {error}: take an older one"
        ) from error


def _body(index: Any) -> dict[str, Any]:
    if index["format"] != _FORMAT or int(index["version"]) > _VERSION:
        raise ValueError(
            f"it is of format {index['format']!r}, version {index['version']}, expected {_FORMAT} "
            f"of version {_VERSION} or older"
        )
    text = json.dumps(index["body"], sort_keys=True)
    if hashlib.sha256(text.encode()).hexdigest() != index["sha256"]:
        raise ValueError(f"the checksum of {_INDEX} does not match")
    return dict(index["body"])


def discard(folder: Path, data: str) -> None:
    """Remove what a save wrote before it failed, unless it failed after it was complete."""
    index = folder / _INDEX
    if not (index.is_file() and data in index.read_text()):
        shutil.rmtree(folder / data, ignore_errors=True)


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
