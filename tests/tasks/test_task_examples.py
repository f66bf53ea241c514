"""What tasks tell of single examples: their errors and the rows they read, by hand."""

from __future__ import annotations

import torch
from training_oracles import small_split

from bet_torchrec.data.clicks import ClickLog, ClickSplit, Field
from bet_torchrec.tasks import BPR, ClickTask, RankingTask
from bet_torchrec.tasks.task import TellsExamples
from bet_torchrec.training import SizedEmbedding, TensorTables


def read_pairs(read):
    return sorted(zip(*(part.tolist() for part in read), strict=True))


def test_of_clicks():
    log = ClickLog.from_arrays(
        (Field("user", 2), Field("genres", 3, multi_hot=True)),
        labels=[1, 0],
        ids=[[1], [0]],
        bags={"genres": ([0, 2], [0, 2, 2])},
    )
    split = ClickSplit(train=log, validation=log, test=log)
    task = ClickTask(split, "fm", embedding_dim=2, batch_size=2)
    assert isinstance(task, TellsExamples)
    # logits 1 + 3 + 2 * 4 = 12 and .5, as in test_click_task
    tables = TensorTables(
        {
            "user": torch.tensor([[0.5, 9.0], [1.0, 2.0]]),
            "genres": torch.tensor([[2.0, 3.0], [7.0, 7.0], [4.0, 5.0]]),
        }
    )
    batch = task.batch(0, 0)
    first = batch.clicks.labels.argmax().item()  # where the shuffle put example 0
    errors = task.errors(task.new_model(0), tables, batch)
    wanted = torch.tensor([(1 - torch.sigmoid(torch.tensor(12.0))) ** 2, 0.62245933**2])
    assert torch.allclose(errors[[first, 1 - first]], wanted, atol=1e-6)
    read = task.rows_of(batch)
    assert read_pairs(read["user"]) == sorted([(1, first), (0, 1 - first)])
    assert read_pairs(read["genres"]) == [(0, first), (2, first)]


def test_of_rankings():
    split = small_split()
    task = RankingTask(split, "ncf", embedding_dim=4, bpr=BPR(batch_size=20))
    assert isinstance(task, TellsExamples)
    sizes = {t.name: torch.full((t.num_embeddings,), 4) for t in task.tables}
    embedding = SizedEmbedding(sizes).draw(0.5, torch.Generator().manual_seed(0))
    model, batch = task.new_model(0).train(), task.batch(0, 0)
    errors = task.errors(model, embedding, batch)
    assert model.training
    margin = model.eval()(embedding, *batch[:3]).margin
    assert torch.allclose(errors, (1 - margin.sigmoid()) ** 2)
    for name, (ids, examples) in task.rows_of(batch).items():
        side = batch.users if name.startswith("user") else batch.positives
        assert torch.equal(ids, side)
        assert examples.tolist() == list(range(len(side)))
