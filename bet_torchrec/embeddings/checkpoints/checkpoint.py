"""Checkpoints of models with budgeted collections, through torch.distributed.checkpoint.

A checkpoint is a folder: ``checkpoint.json`` says what it holds and names the folder beside it
with DCP's files. It is written last and replaced at once, so that a save that is interrupted
leaves the checkpoint before it as it was.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException

from ...errors import InvalidInputError
from ...files import holding
from ...strict import parse
from ...team import group_or_default, team
from ..optimizer_state import Held, Optimizers, OptimizerStates, Role
from ..parts import Part
from . import storage
from .index import Body, Checkpoint, Opened, commit, discard, open_checkpoint
from .manifest import (
    Manifest,
    TensorFacts,
    check,
    collections,
    manifest,
    merged,
    state_key,
    tensors,
    weights_key,
)
from .storage import Chunks
from .stored import DamagedCheckpointError


def save_checkpoint(
    model: nn.Module,
    path: str | Path,
    optimizer: Optimizers = None,
    *,
    facts: Mapping[str, Any] | None = None,
    process_group: dist.ProcessGroup | None = None,
) -> None:
    """Write a model's weights and its optimizers' state, complete or not at all.

    A collective call of all ranks on a local folder that they share; in one process, nothing
    special.
    A checkpoint that is there already is replaced once the new one is complete.

    Args:
        model: DistributedModelParallel, or any module; collections may be anywhere in it.
        optimizer: one or several of torch's (KeyedOptimizerWrapper is fine); optimizers that are
            fused or applied in the backward pass are found in the model. Hyper-parameters, like
            the learning rate, are not saved: put what a schedule needs in ``facts``.
        facts: JSON-able, for instance {"step": 100}; returned by ``load_checkpoint``.
        process_group: that the model is spread over; all processes unless given.

    Raises:
        InvalidInputError: state that is no tensor, or a remote path. StrictError: facts that are
            nested too deeply. FolderInUseError: another process saves there now.
        CollectiveError: another rank failed.
        OSError, torch.distributed.checkpoint.CheckpointException: writing failed.
    """
    pg = group_or_default(process_group)
    ranks, folder = team(pg), _local(path)
    data = ranks.broadcast(f"data-{uuid.uuid4().hex}")
    root = _unwrapped(model)
    with ExitStack() as held:

        def prepare() -> tuple[dict[str, Any], OptimizerStates, Manifest]:
            if (
                ranks.rank == 0
            ):  # for all of them: two saves at once would remove each other's files
                held.enter_context(holding(folder))
            # Facts first: some that JSON does not take should not cost a written checkpoint.
            told = parse(json.dumps(dict(facts or {})), dict[str, Any], "facts")
            states = OptimizerStates(root, optimizer)
            return told, states, manifest(root, states)

        told, states, own = ranks.together("describing the model", prepare)
        whole = merged(ranks.gather(own))
        try:
            chunks = _chunks(root, states, whole, singles={})
            stored, files = storage.write(chunks, folder / data, pg)
            body = Body(data=data, files=files, stored=stored, manifest=whole, facts=told)
            plans = [module.plan for module in collections(root).values()]
            ranks.first("writing", lambda: commit(folder, plans, body))
        except BaseException:
            if ranks.rank == 0:
                discard(folder, data)
            raise


def load_checkpoint(
    model: nn.Module,
    path: str | Path,
    optimizer: Optimizers = None,
    *,
    optimizer_state: bool = True,
    process_group: dist.ProcessGroup | None = None,
) -> dict[str, Any]:
    """Read a checkpoint into a model of the same plan, sharded in whatever way; returns its facts.

    World size, sharding types and kernels (fused or dense) may differ from when it was saved; a
    collective call of all ranks. Nothing is changed before all is checked, files included. No file
    can make it run code.

    Args:
        optimizer: as for ``save_checkpoint``; a new one need not have made a step.
        optimizer_state: False reads the weights alone.

    Raises:
        FileNotFoundError: no checkpoint there. DamagedCheckpointError: not all of one.
        CheckpointMismatchError: of another plan, layout, model or optimizer; says what differs.
            Row-wise optimizers keep a value a row and shard, which fits other row-wise cuts but no
            other column-wise ones.
        CollectiveError: another rank failed.
    """
    pg = group_or_default(process_group)
    ranks, root = team(pg), _unwrapped(model)

    def prepare() -> tuple[Opened, OptimizerStates, Manifest]:
        opened = open_checkpoint(_local(path))
        states = OptimizerStates(root, optimizer)
        return opened, states, manifest(root, states)

    opened, states, own = ranks.together("opening the checkpoint", prepare)
    saved = opened.checkpoint
    plans = {name: module.plan for name, module in collections(root).items()}
    whole = merged(ranks.gather(own))  # so that every rank finds the same mismatch
    check(saved.manifest, saved.plans, whole, plans, optimizer_state=optimizer_state)
    files = sorted(opened.body.files.items())[ranks.rank :: ranks.size]

    def check_files() -> None:
        for name, sha256 in files:
            storage.check_file(opened.folder, name, sha256, opened.body.stored)

    ranks.together("checking the files", check_files)
    # From here on nothing is wrong any more but the disk.
    states.forget_caches()
    singles: dict[str, Tensor] = {}
    if optimizer_state:
        _prepare_states(root, states, saved.manifest)
    wanted = saved.manifest if optimizer_state else Manifest({}, {})
    chunks = _chunks(root, states, wanted, singles, loading=True)
    try:
        storage.read(chunks, opened.folder, opened.body.stored, pg)
    except (CheckpointException, OSError, RuntimeError, ValueError) as error:
        raise DamagedCheckpointError(
            f"{path} could not be read, the model is loaded in part: take an older checkpoint "
            f"({error})"
        ) from error
    _set_singles(root, states, singles)
    return dict(saved.facts)


def read_checkpoint(path: str | Path) -> Checkpoint:
    """What a checkpoint holds: its plans, to build the model anew, and its facts.

    Raises:
        FileNotFoundError: no checkpoint there. DamagedCheckpointError: not all of one.
    """
    return open_checkpoint(_local(path)).checkpoint


def _local(path: str | Path) -> Path:
    if "://" in str(path):
        raise InvalidInputError(
            f"path should be a folder, local or mounted, that all ranks share, got {str(path)!r}: "
            "copy the folder to and from there once it is complete"
        )
    return Path(path)


def _unwrapped(model: nn.Module) -> nn.Module:
    from torchrec.distributed.model_parallel import get_unwrapped_module

    return get_unwrapped_module(model)


def _chunks(
    root: nn.Module,
    states: OptimizerStates,
    wanted: Manifest,
    singles: dict[str, Tensor],
    *,
    loading: bool = False,
) -> dict[str, Chunks]:
    """Every tensor, and its optimizer states as ``wanted`` has them, as DCP should see them.

    singles: gets the tensors that single values are read into, by key.
    """
    found = {}
    for name, value, parts in tensors(root):
        shape = tuple(value.size())
        at = {
            (p.row, p.column) if len(shape) == 2 else (0,) * len(shape): p
            for p in parts
            if p.values.numel()
        }
        found[weights_key(name)] = Chunks(shape, {place: p.values for place, p in at.items()})
        if (facts := wanted.tensors.get(name)) is None:
            continue
        for state, role in facts.roles.items():
            key = state_key(name, state)
            views: dict[tuple[int, ...], Tensor] = {}
            for place, part in at.items():
                held, where = states.of(part.values), _place(place, part, role, facts)
                if loading and role == "single" and held is not None:
                    views[where] = singles.setdefault(key, torch.zeros(1, dtype=torch.float64))
                elif held is not None and state in held.state:
                    views[where] = _state(held, state, part, role)
                elif not loading and role != "single" and not part.replicated:
                    # An optimizer that made no step on this rank: written, so that none has holes.
                    shape = part.values.shape if role == "entry" else (len(part.values), 1)
                    views[where] = torch.zeros(shape)
            found[key] = Chunks(facts.state_shape(role), views)
    return found


def _place(place: tuple[int, ...], part: Part, role: Role, facts: TensorFacts) -> tuple[int, ...]:
    """Where a part's state begins in the whole one. place: where the part does."""
    if role == "row":
        return part.row, facts.columns.index((part.column, part.values.shape[1]))
    return (0,) if role == "single" else place


def _state(held: Held, state: str, part: Part, role: Role) -> Tensor:
    """A part's state, in place."""
    if role == "single":
        return held.state[state].detach().view(1)
    view = held.view(state, part.values)
    return view[:, None] if role == "row" else view


def _prepare_states(root: nn.Module, states: OptimizerStates, saved: Manifest) -> None:
    for name, _, parts in tensors(root):
        for part in parts:
            if (held := states.of(part.values)) is not None:
                held.prepare(saved.tensors[name].roles)


def _set_singles(root: nn.Module, states: OptimizerStates, singles: Mapping[str, Tensor]) -> None:
    for name, _, parts in tensors(root):
        for part in parts:
            held = states.of(part.values)
            if held is None:
                continue
            for state in held.roles():
                if (key := state_key(name, state)) in singles:
                    held.set_single(state, singles[key])
