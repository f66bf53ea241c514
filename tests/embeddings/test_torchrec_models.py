"""TorchRec's own models, unchanged, over 26 tables under one budget."""

from __future__ import annotations

import copy
import difflib
import pickle
from pathlib import Path

import pytest
import torch
from model_cases import (
    TABLES,
    batch,
    full_tables,
    make_model,
    make_plan,
    masked_collection,
)
from torch import nn

from bet_torchrec.embeddings import BudgetedEmbeddingBagCollection, quantize
from bet_torchrec.evaluation.quantisation import fake_quantise_sized

KINDS = ("dlrm", "dlrm_dcn", "dlrm_projection", "deepfm")
STEPS = 8


def train(model: nn.Module) -> list[float]:
    """Adagrad on everything; the loss of every step."""
    optimizer = torch.optim.Adagrad(model.parameters(), lr=0.05)
    losses = []
    for step in range(STEPS):
        loss, _ = model(batch(step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("layout", ["bucketed", "prefix"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_model_trains_as_over_masked_full_tables(kind: str, layout: str) -> None:
    plan = make_plan("adagrad")  # whose state is as large in both layouts
    own = BudgetedEmbeddingBagCollection(TABLES, plan, layout=layout)
    own.load_full_tables(full_tables())
    masked = masked_collection(plan)
    losses, expected = train(make_model(kind, own)), train(make_model(kind, masked))
    assert losses == pytest.approx(expected, abs=1e-6)
    for name, table in own.full_tables().items():
        torch.testing.assert_close(table, masked.embedding_bags[name].weight.detach())


def test_26_tables_take_no_more_than_their_budget() -> None:
    plan = make_plan()
    own = BudgetedEmbeddingBagCollection(TABLES, plan)
    weights = [own.weight(block) for blocks in own.blocks.values() for block in blocks]
    allocated = sum(w.nbytes + 4 * len(w) for w in weights) + own.router.id_map_bytes
    assert allocated == plan.cost() <= plan.limit
    assert plan.used > 0.995
    assert len({table.num_embeddings for table in own.embedding_bag_configs()}) > 20


def test_a_model_is_copied_and_pickled_like_any_other() -> None:
    model = make_model("dlrm", BudgetedEmbeddingBagCollection(TABLES, make_plan()))
    expected = model(batch(0))[0]
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(batch(0))[0], expected)
        own = other.model.sparse_arch.embedding_bag_collection
        assert own.plan == make_plan()
        assert all(a is not b for a, b in zip(own.parameters(), model.parameters(), strict=False))


@pytest.mark.parametrize("precision", ["fp16", "int8", "int4"])
@pytest.mark.parametrize("kind", ["dlrm", "deepfm"])
def test_a_trained_model_is_quantised_as_its_rows_are(kind: str, precision: str) -> None:
    plan = make_plan()
    own = BudgetedEmbeddingBagCollection(TABLES, plan).load_full_tables(full_tables())
    model = make_model(kind, own)
    train(model)
    quantised = quantize(model, precision=precision)
    expected = copy.deepcopy(model).eval()
    read = {
        name: fake_quantise_sized(table, torch.from_numpy(plan.sizes(name)), precision)
        for name, table in own.full_tables().items()
    }
    expected.model.sparse_arch.embedding_bag_collection.load_full_tables(read)
    with torch.no_grad():
        for step in range(3):
            _, (loss, scores, _) = quantised(batch(step))
            torch.testing.assert_close(scores, expected(batch(step))[1][1], rtol=0, atol=1e-5)
            assert abs(loss - model(batch(step))[0]) < 0.01


def test_moving_a_dlrm_to_a_budget_changes_at_most_five_lines() -> None:
    """test_pipelines runs both."""
    before, after = (
        (Path(__file__).parent / f"dlrm_{name}.py").read_text().splitlines()[1:]
        for name in ("plain", "budgeted")  # without the docstring's line
    )
    changed = [
        line for line in difflib.ndiff(before, after) if line[0] in "+-" and line[2:].strip()
    ]
    assert any("BudgetedEmbeddingBagCollection(" in line for line in changed)
    assert sum(line[0] == "+" for line in changed) <= 5
    assert sum(line[0] == "-" for line in changed) <= 5
