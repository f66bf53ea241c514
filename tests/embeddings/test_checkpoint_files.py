"""Checkpoint files: there and back in one process, damaged, foreign, interrupted, malicious."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil

import pytest
import torch
from checkpoint_cases import (
    Model,
    difference,
    everything,
    plain_model,
    train,
)
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


def test_no_file_runs_code(saved, monkeypatch) -> None:
    path, model, optimizer = saved
    monkeypatch.chdir(path)
    metadata = next(path.glob("data-*")) / ".metadata"
    good = pickle.loads(metadata.read_bytes())

    def plant(data: bytes) -> None:
        """As somebody who can write to the folder would, checksums and all."""
        import hashlib

        metadata.write_bytes(data)
        index = json.loads((path / "checkpoint.json").read_text())
        index["body"]["metadata_sha256"] = hashlib.sha256(data).hexdigest()
        text = json.dumps(index["body"], sort_keys=True)
        index["sha256"] = hashlib.sha256(text.encode()).hexdigest()
        (path / "checkpoint.json").write_text(json.dumps(index))

    plant(pickle.dumps(good))
    load_checkpoint(model, path, optimizer)
    for bad in (pickle.dumps(Evil()), pickle.dumps({"a": Evil()}), b"cos\nmkdir\n(Vwas_here\ntR."):
        plant(bad)
        with pytest.raises(DamagedCheckpointError, match="mkdir"):
            load_checkpoint(model, path, optimizer)
    plant(pickle.dumps([1]))
    with pytest.raises(DamagedCheckpointError, match="holds a list"):
        load_checkpoint(model, path, optimizer)

    # an object in a tensor's place, which DCP itself would unpickle
    from torch.distributed.checkpoint.metadata import BytesStorageMetadata, MetadataIndex

    stream = io.BytesIO()
    torch.save(Evil(), stream)
    (metadata.parent / "evil").write_bytes(stream.getvalue())
    info = next(iter(good.storage_data.values()))
    swapped = pickle.loads(pickle.dumps(good))
    swapped.state_dict_metadata["model.seen"] = BytesStorageMetadata()
    swapped.storage_data[MetadataIndex("model.seen")] = type(info)("evil", 0, stream.tell())
    plant(pickle.dumps(swapped))
    with pytest.raises(DamagedCheckpointError, match="should be a tensor, got an object"):
        load_checkpoint(model, path, optimizer)
    for one in good.storage_data.values():
        one.relative_path = "../elsewhere"
    plant(pickle.dumps(good))
    with pytest.raises(DamagedCheckpointError, match="a file elsewhere"):
        load_checkpoint(model, path, optimizer)
    assert not (path / "was_here").exists()


def test_damage_is_told_before_anything_changes(saved) -> None:
    path, model, optimizer = saved
    before = everything(model)
    data = next(path.glob("data-*"))
    for name in ("checkpoint.json", f"{data.name}/.metadata", f"{data.name}/__0_0.distcp"):
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
    index.write_text(text.replace('"version": 1', '"version": 2'))
    with pytest.raises(DamagedCheckpointError, match="version 2"):
        read_checkpoint(path)
    index.write_text(text)
    plan = next(data.glob("*.plan"))
    plan.write_bytes(plan.read_bytes()[:-3])
    with pytest.raises(DamagedCheckpointError, match="plan"):
        load_checkpoint(model, path, optimizer)
    assert difference(everything(model), before) == 0


def test_a_flipped_bit_is_noticed(saved) -> None:
    path, model, optimizer = saved
    file = next(path.glob("data-*/__0_0.distcp"))
    data = bytearray(file.read_bytes())
    weights = model.top.weight.detach().numpy().tobytes()[:64]
    data[bytes(data).index(weights)] ^= 4
    file.write_bytes(bytes(data))
    train(model, optimizer, range(2, 3))
    before = everything(model)
    with pytest.raises(DamagedCheckpointError, match="__0_0.distcp does not match"):
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
    assert len(list(path.iterdir())) == 2  # the index and its data; nothing of those before
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
    from torchrec.optim.clipping import GradientClipping, GradientClippingOptimizer
    from torchrec.optim.keyed import KeyedOptimizerWrapper

    model, _ = plain_model("sgd", "bucketed")
    keyed = KeyedOptimizerWrapper(dict(model.named_parameters()), lambda p: torch.optim.Adam(p))
    save_checkpoint(model, tmp_path, keyed)
    clipping = GradientClippingOptimizer(keyed, clipping=GradientClipping.NORM)
    with pytest.raises(InvalidInputError, match="GradientClippingOptimizer"):
        save_checkpoint(model, tmp_path, clipping)
    with pytest.raises(TypeError):
        save_checkpoint(model, tmp_path, keyed, facts={"step": object()})
    load_checkpoint(model, tmp_path, keyed)
