"""Checkpoints of models with budgeted collections, through torch.distributed.checkpoint.

A checkpoint is a folder: ``checkpoint.json`` says what it holds and names the folder beside it
with DCP's files. It is written last and replaced at once, so that a save that is interrupted
leaves the checkpoint before it as it was.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException

from ...team import group_or_default, team
from ..optimizer_state import Optimizers, OptimizerStates
from . import storage
from .index import Checkpoint, Opened, commit, discard, folder_of, open_checkpoint
from .manifest import Manifest, check, collections, manifest, merged, tensors
from .storage import Chunks, DamagedCheckpointError


def save_checkpoint(
    model: nn.Module,
    path: str | Path,
    optimizer: Optimizers = None,
    *,
    facts: Mapping[str, Any] | None = None,
    process_group: dist.ProcessGroup | None = None,
) -> None:
    """Write a model's weights and its optimizers' state, complete or not at all.

    A collective call of all ranks on a folder that they share; in one process, nothing special.
    A checkpoint that is there already is replaced once the new one is complete.

    Args:
        model: DistributedModelParallel, or any module; collections may be anywhere in it.
        optimizer: one or several of torch's (KeyedOptimizerWrapper is fine); optimizers that are
            fused or applied in the backward pass are found in the model. Hyper-parameters, like
            the learning rate, are not saved: put what a schedule needs in ``facts``.
        facts: JSON-able, for instance {"step": 100}; returned by ``load_checkpoint``.
        process_group: that the model is spread over; all processes unless given.

    Raises:
        InvalidInputError: state that is no tensor. CollectiveError: another rank failed.
        OSError, torch.distributed.checkpoint.CheckpointException: writing failed.
    """
    pg = group_or_default(process_group)
    ranks, folder = team(pg), folder_of(path)
    data = ranks.broadcast(f"data-{uuid.uuid4().hex}")
    root = _unwrapped(model)

    def prepare() -> tuple[str, OptimizerStates, Manifest]:
        # Text first: facts that JSON does not take should not cost a written checkpoint.
        states = OptimizerStates(root, optimizer)
        return json.dumps(dict(facts or {})), states, manifest(root, states)

    text, states, own = ranks.together("describing the model", prepare)
    whole = merged(ranks.gather(own))
    try:
        storage.write(_chunks(root, states, whole, singles={}), folder / data, pg)
        sums = ranks.gather(storage.checksums(folder / data, f"__{ranks.rank}_*"))
        files = {name: value for one in sums for name, value in one.items()}
        body = {"data": data, "files": files, **whole.to_json(), "facts": json.loads(text)}
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
        opened = open_checkpoint(folder_of(path))
        states = OptimizerStates(root, optimizer)
        return opened, states, manifest(root, states)

    opened, states, own = ranks.together("opening the checkpoint", prepare)
    saved = opened.checkpoint
    plans = {name: module.plan for name, module in collections(root).items()}
    whole = merged(ranks.gather(own))  # so that every rank finds the same mismatch
    check(saved.manifest, saved.plans, whole, plans, optimizer_state=optimizer_state)
    share = dict(sorted(opened.files.items())[ranks.rank :: ranks.size])
    ranks.together("reading", lambda: storage.check_files(opened.folder, share))
    states.forget_caches()
    singles: dict[str, Tensor] = {}
    if optimizer_state:
        _prepare_states(root, states, saved.manifest)
    wanted = saved.manifest if optimizer_state else Manifest({}, {})
    chunks = _chunks(root, states, wanted, singles, loading=True)
    try:
        storage.read(chunks, opened.folder, opened.metadata, pg)
    except (CheckpointException, RuntimeError, ValueError) as error:
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
    return open_checkpoint(folder_of(path)).checkpoint


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
        at = {(p.row, p.column) if len(shape) == 2 else (0,) * len(shape): p for p in parts}
        found[f"model.{name}"] = Chunks(shape, {place: p.values for place, p in at.items()})
        if (facts := wanted.tensors.get(name)) is None:
            continue
        for state, role in facts.roles.items():
            key = _state_key(name, state)
            size = {"entry": shape, "row": (shape[0], len(facts.columns)), "single": (1,)}[role]
            views: dict[tuple[int, ...], Tensor] = {}
            for place, part in at.items():
                held = states.of(part.values)
                if role == "single" and held is not None and loading:
                    views[(0,)] = singles.setdefault(key, torch.zeros(1))
                elif held is None or state not in held.state:
                    continue
                elif role == "single":
                    views[(0,)] = held.state[state].detach().view(1)
                elif role == "entry":
                    views[place] = held.view(state, part.values)
                else:
                    cut = facts.columns.index((part.column, part.values.shape[1]))
                    views[part.row, cut] = held.view(state, part.values)[:, None]
            found[key] = Chunks(size, views)
    return found


def _state_key(name: str, state: str) -> str:
    return f"optimizer.{name}.{state}"


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
                if (key := _state_key(name, state)) in singles:
                    held.set_single(state, singles[key])
