"""A run's folder: everything that is needed to repeat it, and what came out.

config.json        the command, all its settings, versions, data fingerprint, commit
plan.safetensors   the sizes
history.jsonl      the search, a line a probe
train.jsonl        training, a line a validation
checkpoint.safetensors  training so far; weights.safetensors  what was kept at its end
metrics.json       results; per_user.npz  Recall and NDCG of each test user
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import BetError
from ..files import replace_file
from ..provenance import provenance
from ..strict import StrictError, parse, typed

CONFIG = "config.json"
PLAN = "plan.safetensors"
HISTORY = "history.jsonl"
TRAIN_LOG = "train.jsonl"
CHECKPOINT = "checkpoint.safetensors"
WEIGHTS = "weights.safetensors"
METRICS = "metrics.json"
PER_USER = "per_user.npz"

# What may differ between a run and its resumption: it changes where or how loudly, not what.
_PRESENTATION = frozenset({"command", "run_dir", "resume", "quiet", "data_dir", "models"})
# A search may go on for longer than was first asked for; config.json then says the new number.
_EXTENDABLE = frozenset({"iterations"})


class RunFolderError(BetError, ValueError):
    """A folder that holds another run, or none."""


def settings_of(args: argparse.Namespace) -> dict[str, Any]:
    """A command's settings as JSON knows them."""
    values = {k: v for k, v in vars(args).items() if k != "run"}
    return json.loads(json.dumps(values, default=str))


def start(folder: Path, args: argparse.Namespace, *, data: Mapping[str, Any] | None = None) -> Path:
    """Make the folder with its config.json, or check that it holds this same run to resume.

    Raises:
        RunFolderError: it holds a run already and --resume was not given, or another run.
    """
    settings = settings_of(args)
    path = folder / CONFIG
    if path.exists():
        if not getattr(args, "resume", False):
            raise RunFolderError(
                f"{folder} already holds a run: --resume continues it, or name another --run-dir"
            )
        old = read_json(path)
        _check_same(folder, old, settings, args.command, data)
        write_json(
            path, {**old, "settings": {**(old.get("settings") or {}), **_extended(settings)}}
        )
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    record = provenance(seed=getattr(args, "seed", None), settings=settings, data=data)
    write_json(path, {"command": args.command, **record})
    return folder


def _extended(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key in _EXTENDABLE}


def _check_same(
    folder: Path,
    old: Mapping[str, Any],
    settings: Mapping[str, Any],
    command: str,
    data: Mapping[str, Any] | None,
) -> None:
    if old.get("command") != command:
        raise RunFolderError(
            f"{folder} holds a run of `{old.get('command')}`, not of `{command}`: "
            "name another --run-dir"
        )
    before = old.get("settings") or {}
    different = [
        f"--{key.replace('_', '-')} {before.get(key)} then, {settings.get(key)} now"
        for key in sorted({*before, *settings} - _PRESENTATION - _EXTENDABLE)
        if before.get(key) != settings.get(key)
    ]
    then, now = (old.get("data") or {}).get("fingerprint"), (data or {}).get("fingerprint")
    if then != now:
        different.append(f"data fingerprint {then} then, {now} now")
    if different:
        raise RunFolderError(
            f"{folder} holds another run ({'; '.join(different)}): resume with its settings, or "
            "name another --run-dir"
        )


def config(folder: Path, command: str | tuple[str, ...] | None = None) -> dict[str, Any]:
    """A run's config.json. Raises RunFolderError where there is none, or of another command."""
    path = folder / CONFIG
    if not path.is_file():
        raise RunFolderError(f"expected a run folder with {CONFIG}, found none at {folder}")
    found = read_json(path)
    wanted = (command,) if isinstance(command, str) else command
    if wanted and found.get("command") not in wanted:
        raise RunFolderError(
            f"expected a run of `{'` or `'.join(wanted)}` at {folder}, "
            f"got one of `{found.get('command')}`"
        )
    return found


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file. Raises RunFolderError where it is none."""
    try:
        found = parse(path.read_bytes(), dict[str, Any], str(path))
        for part in ("settings", "data"):
            typed(found.get(part) or {}, dict[str, Any], f"{path}: {part}")
        return found
    except StrictError as error:
        raise RunFolderError(f"{error}: remove it, or use another folder") from None


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a file whole or not at all."""
    replace_file(path, json.dumps(value, indent=2) + "\n")
