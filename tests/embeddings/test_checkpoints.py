"""Checkpoints across world sizes and shardings, and of killed jobs, in real gloo processes."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from checkpoint_cases import (
    difference,
    everything,
    plain_model,
    run_ranks,
    sharded_model,
    train,
)

from bet_torchrec.embeddings import (
    load_checkpoint,
    save_checkpoint,
)

SAVED, END = 3, 6
TYPES = ("table_wise", "row_wise", "column_wise", "data_parallel", "mixed")
SAVED_AS = [  # how, optimizer, layout
    ("table_wise", "sgd", "bucketed"),
    ("column_wise", "sgd", "prefix"),
    ("table_wise", "adagrad", "bucketed"),
    ("data_parallel", "adagrad", "prefix"),
    ("row_wise", "rowwise_adagrad", "prefix"),
    ("table_wise", "adam", "prefix"),
    ("column_wise", "adam", "bucketed"),
]


def train_and_save(rank, world, keep, folder):
    """Every case's values as saved, and after as many steps again."""
    found = {}
    for case in SAVED_AS:
        model, optimizer = sharded_model(*case, world)
        train(model, optimizer, range(SAVED), rank, world)
        path = Path(folder) / "-".join(case)
        save_checkpoint(model, path, optimizer, facts={"step": SAVED})
        saved = everything(model)
        train(model, optimizer, range(SAVED, END), rank, world)
        found[case] = saved, everything(model)
    return found


def restored_as(every: bool) -> list[tuple[str, str, str, str]]:
    """Each case with new shardings that its optimizer allows: all of them, or two by turns."""
    found = []
    for number, case in enumerate(SAVED_AS):
        types = TYPES[:2] if case[1] == "rowwise_adagrad" else TYPES
        chosen = types if every else {types[(number + k) % len(types)] for k in (0, 2)}
        found += [(*case, new) for new in types if new in chosen]
    return found


def restore_all(rank, world, keep, folder, every):
    """Values as loaded, and at the end."""
    found = {}
    for how, optimizer_name, layout, new in restored_as(every):
        path = Path(folder) / f"{how}-{optimizer_name}-{layout}"
        model, optimizer = sharded_model(new, optimizer_name, layout, world)
        with torch.no_grad():
            model.module.top.weight.fill_(9)
        facts = load_checkpoint(model, path, optimizer)
        loaded = everything(model)
        train(model, optimizer, range(facts["step"], END), rank, world)
        found[how, optimizer_name, layout, new] = loaded, everything(model)
    return found


@pytest.mark.distributed
@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_restores_across_world_sizes_and_shardings(tmp_path, every) -> None:
    saved = run_ranks(2, train_and_save, tmp_path)[0]
    for restored in run_ranks(3, restore_all, tmp_path, every):
        assert list(restored) == restored_as(every)
        assert {new for *_, new in restored} == set(TYPES)
        for (*case, new), (loaded, end) in restored.items():
            before, after = saved[tuple(case)]
            assert difference(loaded, before) == 0, (case, new)
            assert difference(end, after) <= (1e-6 if case[1] == "sgd" else 1e-5), (case, new)
    for how, name, layout in SAVED_AS:
        if name == "rowwise_adagrad":  # torch has none
            continue
        model, optimizers = plain_model(name, layout)
        load_checkpoint(model, tmp_path / f"{how}-{name}-{layout}", optimizers)
        before, after = saved[how, name, layout]
        assert difference(everything(model), before) == 0
        train(model, optimizers, range(SAVED, END))
        assert difference(everything(model), after) <= (1e-6 if name == "sgd" else 1e-5)


def die_in_mid_training(rank, world, keep, folder):
    """Saves after every second step; rank 1 is killed in the middle of step 5's backward pass."""
    model, optimizer = sharded_model("row_wise", "adagrad", "bucketed", world)
    keep(None)
    for step in range(8):
        if step == 5 and rank == 1:
            model.module.top.weight.register_hook(lambda _: os.kill(os.getpid(), signal.SIGKILL))
        train(model, optimizer, range(step, step + 1), rank, world)
        if step % 2 == 1:
            save_checkpoint(model, folder, optimizer, facts={"step": step + 1})


def restart(rank, world, keep, folder):
    """From the checkpoint to the end, and without one."""
    ends = []
    for path in (folder, None):
        model, optimizer = sharded_model("row_wise", "adagrad", "bucketed", world)
        start = load_checkpoint(model, path, optimizer)["step"] if path else 0
        train(model, optimizer, range(start, 8), rank, world)
        ends.append((start, everything(model)))
    return ends


@pytest.mark.distributed
def test_a_killed_job_ends_where_an_undisturbed_one_does(tmp_path) -> None:
    run_ranks(2, die_in_mid_training, tmp_path, killed=[1])
    for (start, resumed), (_, undisturbed) in run_ranks(2, restart, tmp_path):
        assert start == 4
        assert difference(resumed, undisturbed) == 0


def refusals(rank, world, keep, folder):
    """The error of each misuse, on this rank, and whether the model stayed as it was."""
    found = {}

    def attempt(name, model, path, optimizer=None, **more):
        before = everything(model)
        try:
            load_checkpoint(model, path, optimizer, **more)
        except Exception as error:
            found[name] = type(error).__name__, str(error), difference(everything(model), before)

    folder = Path(folder)
    model, optimizer = sharded_model("table_wise", "rowwise_adagrad", "bucketed", world)
    train(model, optimizer, range(1), rank, world)
    save_checkpoint(model, folder / "rowwise", optimizer)
    other, other_optimizer = sharded_model("column_wise", "rowwise_adagrad", "bucketed", world)
    attempt("columns", other, folder / "rowwise", other_optimizer)
    load_checkpoint(other, folder / "rowwise", optimizer_state=False)
    found["weights alone"] = difference(everything(other), everything(model))
    other, other_optimizer = sharded_model("table_wise", "adagrad", "bucketed", world)
    attempt("optimizer", other, folder / "rowwise", other_optimizer)
    attempt("nothing there", other, folder / "nowhere", other_optimizer)
    # a file that another rank wrote, damaged: whoever checks it, all refuse
    dist.barrier()
    for file in sorted((folder / "rowwise").glob("data-*/__*_0.safetensors")):
        good = file.read_bytes()
        dist.barrier()
        if rank == 0:
            file.write_bytes(good[:-1] + bytes([good[-1] ^ 8]))
        dist.barrier()
        attempt(f"damaged {file.name}", model, folder / "rowwise", optimizer)
        dist.barrier()
        if rank == 0:
            file.write_bytes(good)
        dist.barrier()
    # one rank sees other files than the rest
    attempt("one rank", model, folder / ("rowwise" if rank else "nowhere"), optimizer)
    try:
        facts = {"step": object()} if rank else {"step": 1}
        save_checkpoint(model, folder / "rowwise", optimizer, facts=facts)
    except Exception as error:
        found["save"] = type(error).__name__, str(error), 0.0
    attempt("after a failed save", model, folder / "rowwise", optimizer)
    return found


@pytest.mark.distributed
def test_refused_on_every_rank_with_what_differs(tmp_path) -> None:
    first, second = run_ranks(2, refusals, tmp_path)
    for found in (first, second):
        error, text, changed = found["columns"]
        assert error == "CheckpointMismatchError"
        assert changed == 0
        assert "a/w16" in text
        assert "(first, width) [(0, 16)]" in text
        error, text, _ = found["optimizer"]
        assert error == "CheckpointMismatchError"
        assert "row_wise_adagrad" in text
        assert found["weights alone"] == 0
        assert "after a failed save" not in found
        for file in ("__0_0", "__1_0"):
            error, text, changed = found[f"damaged {file}.safetensors"]
            assert error in ("DamagedCheckpointError", "CollectiveError")
            assert f"{file}.safetensors should hold tensors of a checkpoint" in text
            assert changed == 0
    assert first["nothing there"][0] == "FileNotFoundError"
    assert first["one rank"][0] == "FileNotFoundError"
    assert second["one rank"][0] == "CollectiveError"
    assert "expected a checkpoint" in second["one rank"][1]
    assert first["save"][0] == "CollectiveError"
    assert second["save"][0] == "TypeError"
