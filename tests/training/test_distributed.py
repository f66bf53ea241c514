"""Sharded training against one process, step by step, on real gloo ranks."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torchrec
from gloo_ranks import Failed, on_ranks
from sharded_models import SPLIT, backbone_of, on_group, one_process

from bet_torchrec.models import BipartiteGraph, PartitionedGraph
from bet_torchrec.tasks import BPR, RankingTask
from bet_torchrec.training import CheckpointError, SizedEmbedding, TrainSettings, fit

pytestmark = pytest.mark.distributed

STEPS, BEST = 6, 3
SETTINGS = TrainSettings(max_epochs=1, validate_every=1, patience=9, lr_decay=0.9, lr_decay_steps=2)
# 125 examples: 63 and 62 on two ranks; 42, 42 and 41 on three
TRIPLES = BPR(batch_size=125, l2=1e-2)
CASES = [  # backbone, sharding, the tables' fused optimizer or None, the other weights' optimizer
    ("lightgcn", "row_wise", None, "adam"),
    ("lightgcn", "row_wise", "rowwise", "rowwise"),
    ("ngcf", "table_wise", "sgd", "sgd"),
    ("ncf", "row_wise", None, "adam"),
    ("lightgcn", "data_parallel", None, "adam"),
    ("lightgcn", "table_wise", "sgd", "sgd"),
    ("ngcf", "row_wise", None, "adam"),
    ("ncf", "table_wise", "sgd", "sgd"),
]
NUMBER = {2: 4, 3: len(CASES)}
RANKS = [2, pytest.param(3, marks=pytest.mark.slow)]
OPTIMIZERS = {
    # A large eps: Adam's own step turns a gradient's last bit into lr / eps times as much.
    "adam": lambda weights: torch.optim.Adam(weights, fused=True, eps=1e-3),
    "sgd": torch.optim.SGD,
    "rowwise": lambda weights: torchrec.optim.RowWiseAdagrad(weights, eps=1e-8),
}


def trained(backbone, tables, optimizer: str, pg=None):
    """Rows and weights after every step, and of those that are kept: step BEST's."""
    trace, qualities = [], []

    def note(step: int) -> None:
        with torch.no_grad():
            rows = {name: tables.table(name).clone() for name in backbone.table_rows}
        trace.append((rows, [p.detach().clone() for p in backbone.parameters()]))

    task = task_of(pg)

    def validate() -> float:
        qualities.append(task.validate(backbone, tables))
        return -abs(len(trace) - BEST)

    result = fit(
        task,
        backbone,
        tables,
        dataclasses.replace(SETTINGS, lr=1.0 if optimizer == "sgd" else 0.05),
        seed=3,
        validate=validate,
        on_step=note,
        make_optimizer=OPTIMIZERS[optimizer],
    )
    note(STEPS)
    return trace, qualities, (result.best_step, result.steps, result.history)


def alone(name: str, optimizer: str, tables=None):
    backbone, planned = one_process(name)
    return trained(backbone, planned if tables is None else tables, optimizer)


def task_of(pg=None, bpr: BPR = TRIPLES) -> RankingTask:
    return RankingTask(SPLIT, embedding_dim=8, bpr=bpr, process_group=pg)


def plain_tables(backbone) -> SizedEmbedding:
    sizes = {name: np.arange(rows) % 9 for name, rows in backbone.table_rows.items()}
    return SizedEmbedding(sizes).draw(0.3, torch.Generator().manual_seed(0))


def on_rank(pg, folder):
    found = []
    for name, how, fused, optimizer in CASES[: NUMBER[dist.get_world_size(pg)]]:
        found.append(trained(*on_group(name, pg, how, fused), optimizer, pg))
    backbone = backbone_of("ngcf", PartitionedGraph(SPLIT.train.csr(), pg))
    found.append(trained(backbone, plain_tables(backbone), "adam", pg))
    return {
        "cases": found,
        "resumed": resumed(pg, folder),
        "errors": {how: error_of(pg, how) for how in ("settings", "file", "validation")},
    }


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    """Starts that many ranks once, for many scenes."""
    started = {}

    def get(ranks: int):
        if ranks not in started:
            started[ranks] = on_ranks(on_rank, ranks, tmp_path_factory.mktemp("ranks"))
        return started[ranks]

    return get


def check(found, expected) -> None:
    (trace, qualities, told), (theirs, their_qualities, they_told) = found, expected
    for step, (mine, other) in enumerate(zip(trace, theirs, strict=True), 1):
        torch.testing.assert_close(
            mine, other, rtol=0, atol=1e-6, msg=lambda m, step=step: f"step {step}: {m}"
        )
    assert qualities == pytest.approx(their_qualities, abs=1e-12)
    assert told == they_told
    # The best weights are the ones that are kept, and training had gone on from there.
    assert told[:2] == (BEST, STEPS)
    torch.testing.assert_close(trace[-1], trace[BEST - 1], rtol=0, atol=0)
    assert (trace[-1][0]["user"] - trace[-2][0]["user"]).abs().max() > 1e-4


@pytest.mark.parametrize(
    ("ranks", "place"),
    [
        pytest.param(ranks, place, marks=[pytest.mark.slow] * (ranks > 2))
        for ranks, number in NUMBER.items()
        for place in range(number)
    ],
)
def test_every_step_is_that_of_one_process(sharded, ranks, place):
    name, *_, optimizer = CASES[place]
    expected = alone(name, optimizer)
    for rank in sharded(ranks):
        check(rank["cases"][place], expected)


@pytest.mark.parametrize("ranks", RANKS)
def test_tables_that_every_rank_holds_train_alike_too(sharded, ranks):
    tables = plain_tables(backbone_of("ngcf", BipartiteGraph(SPLIT.train.csr())))
    expected = alone("ngcf", "adam", tables)
    for rank in sharded(ranks):
        check(rank["cases"][-1], expected)


class RankFiles:
    """A Checkpointer: every rank's part in a file of its own."""

    def __init__(self, folder: Path, rank: int) -> None:
        self.path = folder / f"{rank}.pt"

    def save(self, model, optimizer, best, facts):
        weights = {name: p.detach().clone() for name, p in model.named_parameters()}
        torch.save((weights, optimizer.dense.state_dict(), best, facts), self.path)

    def load(self, model, optimizer, run):
        if not self.path.exists():
            return None
        weights, state, best, facts = torch.load(self.path, weights_only=False)
        if facts["run"] != run:
            raise CheckpointError("another run")
        with torch.no_grad():
            for name, p in model.named_parameters():
                p.copy_(weights[name])
        optimizer.dense.load_state_dict(state)
        return best, facts


class Interrupted(Exception):
    pass


def resumed(pg, folder):
    """The rows after an undisturbed run, and after one that was interrupted and continued."""

    def run(stop: int | None, checkpoint):
        def on_step(step: int) -> None:
            if step == stop:
                raise Interrupted

        backbone, tables = on_group("lightgcn", pg, "row_wise")
        fit(
            task_of(pg), backbone, tables, SETTINGS, seed=3, validate=lambda: 0.0,
            checkpoint=checkpoint, on_step=on_step,
        )  # fmt: skip
        return tables.table("user").detach().clone()

    files = RankFiles(folder, dist.get_rank(pg))
    try:
        run(4, files)
    except Interrupted:
        assert files.path.exists()
    return run(None, files), run(None, None)


@pytest.mark.parametrize("ranks", RANKS)
def test_a_checkpointer_continues_on_all_ranks(sharded, ranks):
    for rank in sharded(ranks):
        after, undisturbed = rank["resumed"]
        assert torch.equal(after, undisturbed)


def wrong(pg, how: str):
    rank = dist.get_rank(pg)
    backbone = backbone_of("lightgcn", PartitionedGraph(SPLIT.train.csr(), pg))
    task, more = task_of(pg), {}
    if how == "settings" and rank:
        task = task_of(pg, BPR(batch_size=125, l2=0.5))
    if how == "file":
        more["checkpoint"] = Path("checkpoint")

    def validate() -> float:
        if how == "validation" and rank:
            raise ZeroDivisionError("out of luck")
        return 0.0

    def on_step(step: int) -> None:
        if how == "step" and rank and step == 2:
            raise ZeroDivisionError("out of memory")

    fit(
        task, backbone, plain_tables(backbone), SETTINGS, seed=0, validate=validate,
        on_step=on_step, **more,
    )  # fmt: skip


def error_of(pg, how: str) -> tuple[str, str]:
    try:
        wrong(pg, how)
    except Exception as error:
        return type(error).__name__, str(error)
    return "", ""


@pytest.mark.parametrize(
    ("how", "first", "second", "says"),
    [
        ("settings", "CollectiveError", "CollectiveError", "agree on seed, settings"),
        ("file", "InvalidInputError", "InvalidInputError", "pass a Checkpointer"),
        ("validation", "CollectiveError", "ZeroDivisionError", "out of luck"),
    ],
)
def test_an_error_on_one_rank_is_one_on_all(sharded, how, first, second, says):
    found = [rank["errors"][how] for rank in sharded(2)]
    assert [kind for kind, _ in found] == [first, second]
    assert all(says in text for _, text in found)


def test_a_rank_that_ends_in_the_middle_of_a_step_ends_the_others():
    began = time.monotonic()
    first, second = on_ranks(wrong, 2, "step", failures=True)
    assert isinstance(first, Failed)
    # What gloo says of it, as it may; NCCL waits for its timeout.
    assert "closed" in first.text or "reset" in first.text
    assert second.kind == "ZeroDivisionError"
    assert time.monotonic() - began < 50  # the timeout (60 s) wasn't waited for
