"""compress on a user's trained DLRM: three lines from a checkpoint to what is served."""

from __future__ import annotations

import pytest
import torch
from click_batches import DIM, ROWS, batches, model, tables
from sklearn.metrics import roc_auc_score
from torchrec import EmbeddingBagCollection, EmbeddingConfig

from bet_torchrec import compress
from bet_torchrec.column_codes import coded_bytes
from bet_torchrec.errors import InvalidInputError
from bet_torchrec.tasks.torchrec import TorchRecTask
from bet_torchrec.training import TrainSettings, rounding_epochs

TRAIN, VALIDATION = batches(2560), batches(640, seed=1)


def task_of() -> TorchRecTask:
    return TorchRecTask(tables(), model=model, train=TRAIN, validation=VALIDATION)


@pytest.fixture(scope="module")
def trained() -> torch.nn.Module:
    """By a plain loop: nothing of ours."""
    torch.manual_seed(0)
    made = model(EmbeddingBagCollection(tables=tables()))
    optimizer = torch.optim.Adam(made.parameters(), lr=1e-2)
    for _ in range(3):
        for batch in TRAIN:
            logits = made(batch.dense_features, batch.sparse_features).flatten()
            loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, batch.labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return made.eval()


def auc(served: torch.nn.Module) -> float:
    with torch.no_grad():
        logits = [served(b.dense_features, b.sparse_features).flatten() for b in VALIDATION]
    return float(roc_auc_score(torch.cat([b.labels for b in VALIDATION]), torch.cat(logits)))


def test_a_sixteenth_of_the_bytes_in_three_lines(trained):
    full_bytes = 4 * DIM * sum(ROWS.values())
    before = auc(trained)
    settings = rounding_epochs(TrainSettings(lr=1e-2), len(TRAIN))
    found = compress(
        trained, budget=[full_bytes // 8, full_bytes // 16], task=task_of(), training=settings
    )
    assert found.report.full_bytes == full_bytes
    assert found.report.full_quality == pytest.approx(before, abs=1e-6)
    for form in found.forms:
        served = form.deploy()
        assert auc(served) == pytest.approx(form.point.after, abs=1e-5)
        (held,) = (m for m in served.modules() if hasattr(m, "allocated_bytes"))
        assert held.allocated_bytes() == coded_bytes(form.tables) <= form.point.limit
    assert found.report.points[0].after > before - 0.03
    assert auc(trained) == before  # what came in is as it was


def test_rows_that_are_not_pooled_are_not_served(trained):
    configs = [
        EmbeddingConfig(
            name=table.name,
            num_embeddings=table.num_embeddings,
            embedding_dim=DIM,
            feature_names=table.feature_names,
        )
        for table in tables()
    ]
    task = TorchRecTask(configs, model=torch.nn.Sequential, train=TRAIN, validation=VALIDATION)
    with pytest.raises(InvalidInputError, match="served pooled"):
        task.coded({})


def test_a_model_that_is_not_the_tasks_is_refused(trained):
    with pytest.raises(InvalidInputError, match="with task=TorchRecTask"):
        compress(trained, budget=1000)
    with pytest.raises(InvalidInputError, match="got none"):
        compress(torch.nn.Linear(1, 1), budget=1000, task=task_of())
