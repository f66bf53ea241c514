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


def predicted(pg) -> np.ndarray:
    """Of a part with fewer examples than there are ranks."""
    task = ClickTask(planted(60), "dlrm", process_group=pg)
    sizes = {t.name: np.full(t.num_embeddings, 3) for t in task.tables}
    tables = SizedEmbedding(sizes).draw(0.1, torch.Generator().manual_seed(0))
    return task.predictions(task.new_model(0), tables, part="check")


def both(pg) -> tuple[tuple[float, np.ndarray, torch.Tensor, float], np.ndarray]:
    return trained(pg), predicted(pg)


@pytest.mark.distributed
def test_ranks_train_and_predict_as_one_process():
    (quality, predictions, table, loss), few = both(None)
    assert len(few) == 2
    ranks = on_ranks(both, 3)
    assert np.mean([rank[0][3] for rank in ranks]) == pytest.approx(loss, rel=1e-5)
    for (its_quality, its_predictions, its_table, _), its_few in ranks:
        assert its_quality == pytest.approx(quality, abs=1e-3)
        np.testing.assert_allclose(its_predictions, predictions, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(its_table, table, rtol=1e-3, atol=1e-4)
        assert np.array_equal(its_predictions, ranks[0][0][1])
        np.testing.assert_allclose(its_few, few, rtol=1e-5)
