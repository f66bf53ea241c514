"""Checkpoint files: there and back in one process, damaged, foreign, interrupted, malicious."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_cases import (
    Model,
    difference,
    everything,
    plain_model,
    train,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from mutations import mutated
from sharded_cases import make_module, make_plan
from torch import nn

from bet_torchrec.embeddings import (
    CheckpointMismatchError,
    DamagedCheckpointError,
    load_checkpoint,
    read_checkpoint,
    save_checkpoint,
)
from bet_torchrec.errors import InvalidInputError
from bet_torchrec.files import FolderInUseError, holding


@pytest.fixture
def saved(tmp_path):
    """A checkpoint of one process, the model and its optimizer."""
    model, optimizer = plain_model("adam", "bucketed")
    train(model, optimizer, range(2))
    save_checkpoint(model, tmp_path, optimizer, facts={"step": 2})
    return tmp_path, model, optimizer


def test_one_process_there_and_back(saved) -> None:
    path, model, optimizer = saved
    again, again_optimizer = plain_model("adam", "bucketed")
    train(again, again_optimizer, range(5, 9))  # a used optimizer is overwritten too
    assert load_checkpoint(again, path, again_optimizer) == {"step": 2}
    for one in ((model, optimizer), (again, again_optimizer)):
        train(*one, range(2, 4))
    assert difference(everything(again), everything(model)) == 0
    found = read_checkpoint(path)
    assert found.plans == {"tables": make_plan()}
    assert found.facts == {"step": 2}
    assert found.manifest.collections["tables"].layout == "bucketed"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"layout": "prefix"}, "'a': layout 'bucketed' in the checkpoint, 'prefix' in the model"),
        ({"row_order": "ranked"}, "row_order 'interleaved' in the checkpoint, 'ranked'"),
        ({"plan": make_plan(3)}, "table 'a': rows by width {16: 8, 8: 12, 4: 4, 0: 6}"),
    ],
)
def test_another_plan_is_refused_with_what_differs(saved, change, says) -> None:
    path, _, _ = saved
    options = {"plan": make_plan(), "layout": "bucketed", "row_order": "interleaved", **change}
    other = Model(make_module(options.pop("plan"), **options))
    before = everything(other)
    with pytest.raises(CheckpointMismatchError) as error:
        load_checkpoint(other, path, optimizer_state=False)
    assert says in str(error.value)
    assert "migrate" in str(error.value)
    assert difference(everything(other), before) == 0


def test_another_model_or_optimizer_is_refused(saved) -> None:
    path, _, _ = saved
    model, _ = plain_model("adam", "bucketed")
    with pytest.raises(CheckpointMismatchError, match="state of optimizer adam, .* by none"):
        load_checkpoint(model, path)
    other = torch.optim.Adam(model.parameters(), amsgrad=True)
    train(model, [other], range(1))
    with pytest.raises(CheckpointMismatchError, match="max_exp_avg_sq"):
        load_checkpoint(model, path, other)
    model.more = nn.Linear(2, 2)
    with pytest.raises(CheckpointMismatchError, match="only in the model .*more.bias"):
        load_checkpoint(model, path, optimizer_state=False)
    del model.more
    model.top = nn.Linear(40, 41)
    with pytest.raises(CheckpointMismatchError, match=r"top.weight.*\(40, 40\).*\(41, 40\)"):
        load_checkpoint(model, path, optimizer_state=False)


class Evil:
    """Runs code when it is unpickled."""

    def __reduce__(self):
        return (os.mkdir, ("was_here",))


def with_body(path: Path, body: Any) -> None:
    """Another index, as somebody who can write to the folder would make it, checksum and all."""
    text = json.dumps(body, sort_keys=True)
    index = {
        "format": "bet_torchrec.checkpoint",
        "version": 2,
        "sha256": hashlib.sha256(text.encode()).hexdigest(),
        "body": body,
    }
    (path / "checkpoint.json").write_text(json.dumps(index))


def body_of(path: Path) -> Any:
    return json.loads((path / "checkpoint.json").read_text())["body"]


def test_nothing_of_a_checkpoint_is_unpickled(saved, monkeypatch) -> None:
    path, model, optimizer = saved
    monkeypatch.chdir(path)
    data = next(path.glob("data-*"))
    assert not (data / ".metadata").exists()
    (data / ".metadata").write_bytes(pickle.dumps(Evil()))

    def unpickled(*_: object, **__: object) -> None:
        pytest.fail("something was unpickled")

    for module, name in (
        *((pickle, name) for name in ("load", "loads", "Unpickler", "_Unpickler")),
        (torch, "load"),
    ):
        monkeypatch.setattr(module, name, unpickled)
    load_checkpoint(model, path, optimizer)
    read_checkpoint(path)
    file = data / "__0_0.safetensors"
    stream = io.BytesIO()
    torch.save(Evil(), stream)
    for content in (stream.getvalue(), pickle.dumps(Evil())):
        file.write_bytes(content)
        with pytest.raises(DamagedCheckpointError, match="no safetensors file"):
            load_checkpoint(model, path, optimizer)
    assert not (path / "was_here").exists()


def test_a_checkpoint_with_a_pickled_index_is_refused(tmp_path) -> None:
    index = {"format": "bet_torchrec.checkpoint", "version": 1, "sha256": "", "body": {}}
    (tmp_path / "checkpoint.json").write_text(json.dumps(index))
    with pytest.raises(DamagedCheckpointError, match="an index that is a pickle.*never read"):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize("name", ["../elsewhere.safetensors", "/etc/x.safetensors", "..", ""])
def test_no_name_leads_out_of_the_folder(saved, name) -> None:
    path, model, optimizer = saved
    body = body_of(path)
    body["files"] = {name: "0"}
    for stored in body["stored"].values():
        stored["pieces"][0]["file"] = name
    with_body(path, body)
    with pytest.raises(DamagedCheckpointError, match="index.body|its tensors are in"):
        load_checkpoint(model, path, optimizer)
    with_body(path, {**body, "data": name})
    with pytest.raises(DamagedCheckpointError, match="no name of a file"):
        load_checkpoint(model, path, optimizer)


def states_of(optimizers) -> list[torch.Tensor]:
    return [
        value.clone()
        for optimizer in optimizers
        for state in optimizer.state.values()
        for value in state.values()
    ]


def unchanged(model, optimizers, before) -> bool:
    values, states = before
    now = states_of(optimizers)
    same = len(now) == len(states) and all(map(torch.equal, now, states))
    return same and difference(everything(model), values) == 0


@pytest.fixture(scope="module")
def crafted(tmp_path_factory):
    """A checkpoint's folder, its body, what was saved, and a model with its optimizers."""
    path = tmp_path_factory.mktemp("crafted")
    model, optimizers = plain_model("adam", "bucketed")
    train(model, optimizers, range(2))
    save_checkpoint(model, path, optimizers, facts={"step": 2})
    return path, body_of(path), (everything(model), states_of(optimizers)), model, optimizers


@settings(max_examples=120, deadline=None)
@given(st.data())
def test_a_crafted_index_changes_nothing_or_loads_what_was_saved(crafted, data) -> None:
    path, body, saved, model, optimizers = crafted
    mutant = mutated(data.draw, body)
    with_body(path, mutant)
    with torch.no_grad():
        for value in (*model.state_dict().values(), *(s for o in optimizers for s in _live(o))):
            value.add_(1)
    before = everything(model), states_of(optimizers)
    try:
        facts = load_checkpoint(model, path, optimizers)
    except (DamagedCheckpointError, CheckpointMismatchError):
        assert unchanged(model, optimizers, before)
    else:
        assert unchanged(model, optimizers, saved)
        assert str(facts) == str(mutant["facts"])
    with_body(path, body)


def _live(optimizer):
    return [value for state in optimizer.state.values() for value in state.values()]


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 10**9), st.integers(1, 255))
def test_a_damaged_index_is_refused(crafted, at, change) -> None:
    path, body, *_ = crafted
    with_body(path, body)
    text = bytearray((path / "checkpoint.json").read_bytes())
    text[at % len(text)] ^= change
    (path / "checkpoint.json").write_bytes(bytes(text))
    with contextlib.suppress(DamagedCheckpointError):
        assert read_checkpoint(path).facts == {"step": 2}
    with_body(path, body)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda b: b["stored"]["model.top.weight"].update(pieces=[]), "do not make up the shape"),
        (lambda b: b["stored"].pop("model.top.weight"), "not those that its manifest names"),
        (lambda b: b["stored"].pop("optimizer.top.weight.exp_avg"), "not those that its manifest"),
        (lambda b: b["manifest"]["tensors"]["top.weight"].update(shape=[40, 41]), "not those"),
        (lambda b: b["stored"]["model.seen"].update(shape=[2**62, 2**62]), "pieces of"),
        (lambda b: b["files"].clear(), "its tensors are in"),
        (lambda b: b["manifest"]["tensors"]["seen"]["roles"].update(x="row"), "no state a row"),
        (lambda b: b.update(facts=[]), "index.facts should be an object"),
    ],
)
def test_an_index_that_contradicts_itself_is_refused(saved, change, says) -> None:
    path, model, optimizer = saved
    body = body_of(path)
    change(body)
    with_body(path, body)
    with pytest.raises(DamagedCheckpointError, match=says):
        load_checkpoint(model, path, optimizer)


def test_endless_nesting_is_told(saved) -> None:
    path, _, _ = saved
    for text in ("[" * 100_000, '{"body":' * 5000 + "1" + "}" * 5000):
        (path / "checkpoint.json").write_text(text)
        with pytest.raises(DamagedCheckpointError, match="nested"):
            read_checkpoint(path)


def test_numbers_of_another_kind_are_refused(saved) -> None:
    path, _, _ = saved
    model, optimizer = plain_model("adam", "bucketed")
    model.seen = model.seen.double()
    with pytest.raises(CheckpointMismatchError, match="'seen'.* has int64, .*float64"):
        load_checkpoint(model, path, optimizer)
    model, optimizer = plain_model("adam", "bucketed")
    half = Model(model.tables)
    half.top.half()
    load_checkpoint(half, path, optimizer_state=False)
    assert half.top.weight.dtype == torch.float16


def test_one_save_at_a_time(saved) -> None:
    path, model, optimizer = saved
    before = sorted(path.iterdir())
    with holding(path), pytest.raises(FolderInUseError, match=f"process {os.getpid()}"):
        save_checkpoint(model, path, optimizer)
    assert sorted(path.iterdir()) == before
    save_checkpoint(model, path, optimizer)


def test_a_remote_path_is_refused(saved) -> None:
    """pathlib would make of it a folder "s3:" here."""
    _, model, optimizer = saved
    for path in ("s3://bucket/run", "memory://run"):
        for call in (save_checkpoint, load_checkpoint):
            with pytest.raises(InvalidInputError, match="local or mounted.*copy the folder"):
                call(model, path, optimizer)
        with pytest.raises(InvalidInputError, match="local or mounted"):
            read_checkpoint(path)


def test_damage_is_told_before_anything_changes(saved) -> None:
    path, model, optimizer = saved
    before = everything(model)
    data = next(path.glob("data-*"))
    for name in ("checkpoint.json", f"{data.name}/__0_0.safetensors"):
        whole = (path / name).read_bytes()
        for broken in (whole[: len(whole) // 2], b"", None):
            (path / name).unlink()
            if broken is not None:
                (path / name).write_bytes(broken)
            gone = broken is None and name == "checkpoint.json"
            with pytest.raises(FileNotFoundError if gone else DamagedCheckpointError):
                load_checkpoint(model, path, optimizer)
            (path / name).write_bytes(whole)
    index = path / "checkpoint.json"
    text = index.read_text()
    index.write_text(text.replace('"step": 2', '"step": 7'))
    with pytest.raises(DamagedCheckpointError, match="checksum"):
        load_checkpoint(model, path, optimizer)
    index.write_text(text.replace('"version": 2', '"version": 3'))
    with pytest.raises(DamagedCheckpointError, match="version 3"):
        read_checkpoint(path)
    index.write_text(text)
    plan = next(data.glob("*.plan"))
    plan.write_bytes(plan.read_bytes()[:-3])
    with pytest.raises(DamagedCheckpointError, match="plan"):
        load_checkpoint(model, path, optimizer)
    assert difference(everything(model), before) == 0


def test_a_flipped_bit_is_noticed(saved) -> None:
    path, model, optimizer = saved
    file = next(path.glob("data-*/__0_0.safetensors"))
    data = bytearray(file.read_bytes())
    weights = model.top.weight.detach().numpy().tobytes()[:64]
    data[bytes(data).index(weights)] ^= 4
    file.write_bytes(bytes(data))
    train(model, optimizer, range(2, 3))
    before = everything(model)
    with pytest.raises(DamagedCheckpointError, match="__0_0.safet.* checksum does not"):
        load_checkpoint(model, path, optimizer)
    assert difference(everything(model), before) == 0


def test_an_interrupted_save_loses_nothing(saved, monkeypatch) -> None:
    path, model, optimizer = saved
    before = everything(model)
    train(model, optimizer, range(2, 3))
    replace = os.replace
    for last in (".plan", "checkpoint.json"):

        def crash(old, new, last=last):
            if str(new).endswith(last):
                raise KeyboardInterrupt
            replace(old, new)

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", crash)
            with pytest.raises(KeyboardInterrupt):
                save_checkpoint(model, path, optimizer, facts={"step": 3})
        assert read_checkpoint(path).facts == {"step": 2}
    left = path / "data-of-a-killed-process"
    shutil.copytree(next(path.glob("data-*")), left)
    again, again_optimizer = plain_model("adam", "bucketed")
    assert load_checkpoint(again, path, again_optimizer) == {"step": 2}
    assert difference(everything(again), before) == 0
    save_checkpoint(model, path, optimizer, facts={"step": 3})
    assert load_checkpoint(again, path, again_optimizer) == {"step": 3}
    # the index, its data and the lock; nothing of those before
    assert len(list(path.iterdir())) == 3
    with monkeypatch.context() as patch:  # the new one is complete when the old one goes

        def crash_late(*args, **more):
            raise KeyboardInterrupt

        patch.setattr(shutil, "rmtree", crash_late)
        with pytest.raises(KeyboardInterrupt):
            save_checkpoint(model, path, optimizer, facts={"step": 4})
    assert load_checkpoint(again, path, again_optimizer) == {"step": 4}
    (path / "checkpoint.json").unlink()
    with pytest.raises(FileNotFoundError, match="interrupted"):
        read_checkpoint(path)


def test_what_cannot_be_saved_is_said(tmp_path) -> None:
    from torchrec.optim.keyed import KeyedOptimizerWrapper
    from torchrec.optim.warmup import WarmupOptimizer, WarmupPolicy, WarmupStage

    model, _ = plain_model("sgd", "bucketed")
    keyed = KeyedOptimizerWrapper(dict(model.named_parameters()), lambda p: torch.optim.Adam(p))
    save_checkpoint(model, tmp_path, keyed)
    stages = [WarmupStage(policy=WarmupPolicy.LINEAR, max_iters=9)]
    with pytest.raises(InvalidInputError, match="WarmupOptimizer"):
        save_checkpoint(model, tmp_path, WarmupOptimizer(keyed, stages))
    with pytest.raises(TypeError):
        save_checkpoint(model, tmp_path, keyed, facts={"step": object()})
    load_checkpoint(model, tmp_path, keyed)
