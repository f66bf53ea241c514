"""The README's main example runs as it stands, on a small DLRM's clicks."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torchrec import EmbeddingBagConfig, KeyedJaggedTensor
from torchrec.datasets.utils import Batch

README = Path(__file__).resolve().parent.parent.parent / "README.md"
ROWS = (5000, 800, 60)


def example() -> str:
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    (found,) = [block for block in blocks if "TorchRecTask(\n" in block]
    return found


def clicks(examples: int, seed: int) -> list[Batch]:
    rng = np.random.default_rng(seed)
    batches = []
    for _ in range(examples // 128):
        ids = [(rng.random(128) ** 3 * rows).astype(np.int64) for rows in ROWS]
        dense = rng.normal(size=(128, 13)).astype(np.float32)
        score = dense[:, 0] + sum(np.sin(1.0 + column) for column in ids)
        labels = (rng.random(128) < 1 / (1 + np.exp(-2 * score))).astype(np.float32)
        features = KeyedJaggedTensor(
            ["a", "b", "c"],
            torch.from_numpy(np.concatenate(ids)),
            lengths=torch.ones(3 * 128, dtype=torch.int32),
        )
        batches.append(Batch(torch.from_numpy(dense), features, torch.from_numpy(labels)))
    return batches


def test_ten_lines_plan_train_and_serve_a_users_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    code = example().replace("iterations=30", "iterations=3, finalists=1")
    held_out = clicks(512, seed=1)
    names = {
        "tables": [
            EmbeddingBagConfig(rows, 16, name=f"t_{name}", feature_names=[name])
            for name, rows in zip("abc", ROWS, strict=True)
        ],
        "train_loader": clicks(1024, seed=0),
        "validation_loader": held_out,
    }
    exec(compile(code, "README.md", "exec"), names)
    plan, served = names["plan"], names["served"]
    assert plan.cost() <= 100_000 < 4 * 16 * sum(ROWS)
    with torch.no_grad():
        logits = served(held_out[0].dense_features, held_out[0].sparse_features)
    assert logits.shape == (128, 1)
    assert torch.isfinite(logits).all()
