"""ClickTask on several gloo ranks is what it is in one process."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from click_splits import planted
from gloo_ranks import on_ranks

from bet_torchrec.tasks import ClickTask
from bet_torchrec.training import SizedEmbedding, TrainSettings, fit

SETTINGS = TrainSettings(lr=0.02, lr_decay=1.0, max_epochs=2, validate_every=None, init_std=0.1)


def trained(pg) -> tuple[float, np.ndarray, torch.Tensor, float]:
    """Quality, predictions, a table, and the first batch's loss."""
    # 403 training examples: parts of different sizes, and a last batch of three
    task = ClickTask(planted(504), "deepfm", batch_size=50, l2=1e-3, process_group=pg)
    model = task.new_model(0)
    sizes = {t.name: np.arange(t.num_embeddings) % 5 + 1 for t in task.tables}
    tables = SizedEmbedding(sizes).draw(0.1, torch.Generator().manual_seed(0))
    loss = task.loss(model, tables, task.batch(0, 0)).item()
    outcome = fit(task, model, tables, SETTINGS, seed=0)
    predictions = task.predictions(model, tables)
    assert task.evaluate(model, tables, part="validation").auc == outcome.quality
    return outcome.quality, predictions, tables.table("user").detach(), loss


@pytest.mark.distributed
def test_ranks_train_as_one_process():
    alone, ranks = trained(None), on_ranks(trained, 3)
    assert np.mean([rank[3] for rank in ranks]) == pytest.approx(alone[3], rel=1e-5)
    for rank in ranks:
        assert rank[0] == pytest.approx(alone[0], abs=1e-3)
        np.testing.assert_allclose(rank[1], alone[1], rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(rank[2], alone[2], rtol=1e-3, atol=1e-4)
        assert np.array_equal(rank[1], ranks[0][1])


def predicted(pg) -> np.ndarray:
    """Of a part with fewer examples than ranks would share in blocks."""
    split = planted(60)
    task = ClickTask(split, "dlrm", process_group=pg)
    sizes = {t.name: np.full(t.num_embeddings, 3) for t in task.tables}
    tables = SizedEmbedding(sizes).draw(0.1, torch.Generator().manual_seed(0))
    return task.predictions(task.new_model(0), tables, part="check")


@pytest.mark.distributed
def test_a_rank_without_examples_predicts_along():
    alone = predicted(None)
    assert len(alone) == 2
    for found in on_ranks(predicted, 3):
        np.testing.assert_allclose(found, alone, rtol=1e-5)
