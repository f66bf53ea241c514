"""Keys of kept models: expensive runs are found under them, so they must never change."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from bet_torchrec.data import Interactions, Split
from bet_torchrec.planning import Bucket, Budget, SizePlan, TablePlan
from bet_torchrec.tasks import BPR, RankingTask
from bet_torchrec.team import Alone
from bet_torchrec.training import TrainingWorkbench, TrainSettings
from bet_torchrec.training.kept import KeptModels


def part(shift: int) -> Interactions:
    """12 interactions of 6 users and 8 items."""
    places = np.arange(12, dtype=np.int32)
    items = ((places // 2 + shift) % 8).astype(np.int32)
    return Interactions(users=places % 6, items=items, num_users=6, num_items=8)


def test_the_keys_stay_what_they_were(tmp_path: Path):
    split = Split(train=part(0), validation=part(3), test=part(5), how="drawn", seed=0)
    task = RankingTask(split, embedding_dim=4, bpr=BPR(batch_size=8))
    bench = TrainingWorkbench(task, training=TrainSettings(max_epochs=1), run_dir=tmp_path)
    bench.full()
    user = TablePlan("user", 6, 4, (Bucket(4, 2, "int8"), Bucket(1, 4, "int8")))
    order = np.arange(8, dtype=np.int32)[::-1].copy()
    item = TablePlan("item", 8, 4, (Bucket(2, 8, "int8"),), order=order)
    budget = Budget.bytes(10**4, purpose="inference", dtype="int8")
    bench.train(SizePlan((user, item), budget, "test"), seed=3)
    # As the first runs of tasks named them. If this fails, put the facts back as they were.
    stems = ["e14ba1663773114d-4cb5ef2afd3ca9b8", "full-6fc83ead66d4b4fb"]
    assert sorted(p.name for p in (tmp_path / "models").iterdir() if p.is_file()) == [
        stem + suffix for stem in stems for suffix in (".jsonl", ".safetensors")
    ]


def test_without_a_folder_nothing_is_kept():
    kept = KeptModels(None, Alone())
    assert kept.path({"what": "full"}) is None
    given = []
    kept.get({}, None, lambda **more: given.append(more))
    assert given == [{"checkpoint": None, "log": None}]


class Model:
    """What a training ends in."""

    def save(self, path, *, facts):
        path.write_text("weights")


def test_a_folder_shared_by_several_trains_each_model_once(tmp_path: Path):
    """A thread each: the lock is the kernel's, for whoever opens the folder."""
    trained = []

    def train(*, checkpoint, log):
        trained.append(log.stem)
        time.sleep(0.05)
        return Model()

    def get(what: str):
        found = KeptModels(tmp_path, Alone()).get({"what": what}, lambda p: p.read_text(), train)
        return found if isinstance(found, str) else "trained"

    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(get, ["full", "plan"] * 3))
    assert sorted(found) == ["trained"] * 2 + ["weights"] * 4
    assert sorted(name.split("-")[0] for name in trained) == ["full", "plan"]
