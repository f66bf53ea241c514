"""The three backbones: formulas by hand or naively, widths, rotations, dropout."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from backbone_oracles import random_tables
from scipy import sparse

from bet_torchrec.errors import InvalidInputError
from bet_torchrec.evaluation.separable import SeparableScores
from bet_torchrec.models import (
    NCF,
    NGCF,
    BipartiteGraph,
    LightGCN,
    make_backbone,
    principal_axes,
)
from bet_torchrec.models.dropout import dropout_mask
from bet_torchrec.training import TensorTables

USERS, POSITIVES, NEGATIVES = (
    torch.tensor([0, 2, 5]),
    torch.tensor([1, 1, 4]),
    torch.tensor([8, 2, 0]),
)


def all_scores(backbone, tables) -> torch.Tensor:
    scores = backbone.scores(TensorTables(tables))
    if isinstance(scores, SeparableScores):
        return scores.score_block(torch.arange(scores.num_users))
    return scores[0] @ scores[1].T


def built(name: str, graph: BipartiteGraph, dim: int = 6):
    backbone = make_backbone(name, graph, dim=dim).eval()
    backbone.reset_parameters(torch.Generator().manual_seed(1))
    return backbone


def test_lightgcn_by_hand():
    """One user with items a, b: degrees 2, 1, 1, so every edge weighs 1 / sqrt 2."""
    graph = BipartiteGraph(sparse.csr_matrix([[1.0, 1.0]]))
    u, a, b = 3.0, 1.0, 5.0
    tables = TensorTables({"user": torch.tensor([[u]]), "item": torch.tensor([[a], [b]])})
    r = 1 / math.sqrt(2)
    u1, a1 = r * (a + b), r * u
    u2, a2 = r * (2 * a1), r * u1
    user, item = LightGCN(graph, layers=2).final(tables)
    assert user.item() == pytest.approx((u + u1 + u2) / 3)
    assert item[0].item() == pytest.approx((a + a1 + a2) / 3)
    assert item[1].item() == pytest.approx((b + a1 + a2) / 3)


def test_ngcf_against_the_formula(graph, adjacency):
    backbone = built("ngcf", graph)
    tables = random_tables(backbone.table_rows, 6)
    e = torch.cat([tables["user"], tables["item"]])
    parts, a = [e], adjacency.float()
    for w1, w2 in zip(backbone.sum_weights, backbone.product_weights, strict=True):
        near = a @ e
        e = F.leaky_relu((near + e) @ w1 + (near * e) @ w2, 0.2)
        parts.append(e / e.norm(dim=1, keepdim=True).clamp_min(1e-12))
    final = torch.cat(parts, dim=1)
    torch.testing.assert_close(torch.cat(backbone.final(TensorTables(tables))), final)


def test_ncf_against_the_plain_form(graph):
    backbone = built("ncf", graph)
    torch.nn.init.normal_(backbone.bias)
    torch.nn.init.normal_(backbone.gmf_weight)
    tables = random_tables(backbone.table_rows, 6)
    dense = torch.cat([backbone.user_weight, backbone.item_weight], dim=1)
    for user in range(7):
        for item in range(9):
            both = torch.cat([tables["user"][user], tables["item"][item]])
            hidden = torch.relu(dense @ both + backbone.bias) @ backbone.hidden_weight
            gmf = backbone.gmf_weight @ (tables["user_gmf"][user] * tables["item_gmf"][item])
            assert all_scores(backbone, tables)[user, item].item() == pytest.approx(
                (hidden + gmf).item(), abs=1e-4
            )


@pytest.mark.parametrize("name", ["lightgcn", "ngcf", "ncf"])
def test_margins_and_norms_are_those_of_the_scores(name, graph):
    backbone = built(name, graph)
    tables = random_tables(backbone.table_rows, 6)
    scores = all_scores(backbone, tables)
    terms = backbone(TensorTables(tables), USERS, POSITIVES, NEGATIVES)
    expected = scores[USERS, POSITIVES] - scores[USERS, NEGATIVES]
    torch.testing.assert_close(terms.margin, expected, rtol=1e-4, atol=1e-5)
    norm = sum(
        table[ids].square().sum() / 2
        for key, table in tables.items()
        for ids in ([USERS] if key.startswith("user") else [POSITIVES, NEGATIVES])
    )
    torch.testing.assert_close(terms.l2, norm)


@pytest.mark.parametrize("name", ["lightgcn", "ngcf", "ncf"])
def test_narrow_tables_read_as_padded_ones(name, graph):
    backbone = built(name, graph)
    narrow = random_tables(backbone.table_rows, 2)
    padded = {key: F.pad(table, (0, 4)) for key, table in narrow.items()}
    torch.testing.assert_close(all_scores(backbone, narrow), all_scores(backbone, padded))
    if name != "lightgcn":  # and after a rotation
        full = random_tables(backbone.table_rows, 6)
        prefix = {key: table[:, :2] for key, table in backbone.rotate(full).items()}
        padded = {key: F.pad(table, (0, 4)) for key, table in prefix.items()}
        torch.testing.assert_close(all_scores(backbone, prefix), all_scores(backbone, padded))


@pytest.mark.parametrize("name", ["lightgcn", "ngcf", "ncf"])
def test_rotation_keeps_scores_and_orders_columns(name, graph):
    backbone = built(name, graph)
    if name == "ncf":
        torch.nn.init.normal_(backbone.gmf_weight)
    tables = random_tables(backbone.table_rows, 6)
    before = all_scores(backbone, tables)
    rotated = backbone.rotate(tables)
    torch.testing.assert_close(all_scores(backbone, rotated), before, rtol=1e-4, atol=1e-4)
    again = backbone.rotate(rotated)
    torch.testing.assert_close(all_scores(backbone, again), before, rtol=1e-4, atol=1e-4)
    pairs = (
        [("user", "item")] if name != "ncf" else [("user",), ("item",), ("user_gmf", "item_gmf")]
    )
    for pair in pairs:
        energy = torch.cat([rotated[key] for key in pair]).square().sum(dim=0)
        assert (energy.diff() <= 1e-3).all()


def test_rotated_weights_are_saved(graph):
    backbone, other = built("ngcf", graph), built("ngcf", graph)
    tables = backbone.rotate(random_tables(backbone.table_rows, 6))
    other.load_state_dict(backbone.state_dict())
    torch.testing.assert_close(all_scores(other, tables), all_scores(backbone, tables))


def test_principal_axes_are_orthonormal_and_repeatable():
    table = torch.from_numpy(np.random.default_rng(0).normal(size=(20, 5)).astype(np.float32))
    axes = principal_axes(table)
    torch.testing.assert_close(axes.T @ axes, torch.eye(5), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(axes, principal_axes(-table))


def test_dropout_only_in_training_and_repeatable(graph):
    backbone = NGCF(graph, dim=6, message_dropout=0.4, node_dropout=0.3)
    tables = TensorTables(random_tables(backbone.table_rows, 6))

    def margin(seed: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        return backbone(tables, USERS, POSITIVES, NEGATIVES, generator=generator).margin

    backbone.train()
    assert torch.equal(margin(0), margin(0))
    assert not torch.equal(margin(0), margin(1))
    backbone.eval()
    assert torch.equal(margin(0), margin(1))


def test_mask_keeps_the_mean_and_the_share():
    mask = dropout_mask((1001, 203), 0.1, torch.device("cpu"), torch.Generator().manual_seed(0))
    assert mask.shape == (1001, 203)
    assert (mask == 0).float().mean().item() == pytest.approx(0.1, abs=3e-3)
    assert mask.mean().item() == pytest.approx(1, abs=3e-3)
    assert mask.unique().numel() == 2


def test_first_gradients_reach_every_weight(graph):
    for name in ("ngcf", "ncf"):
        backbone = built(name, graph)
        tables = TensorTables(random_tables(backbone.table_rows, 6))
        backbone.train()
        backbone(tables, USERS, POSITIVES, NEGATIVES).margin.sum().backward()
        for key, parameter in backbone.named_parameters():
            assert parameter.grad is not None, key
            assert parameter.grad.abs().sum() > 0, key


def test_errors(graph):
    with pytest.raises(InvalidInputError, match="lightgcn"):
        make_backbone("mlp", graph, dim=4)
    with pytest.raises(InvalidInputError, match="layers"):
        LightGCN(graph, layers=-1)
    with pytest.raises(InvalidInputError, match="dropouts"):
        NGCF(graph, dim=4, node_dropout=1.0)
    with pytest.raises(InvalidInputError, match="layers"):
        NGCF(graph, dim=4, layers=())
    with pytest.raises(InvalidInputError, match="rows"):
        NCF(7, 9, dim=4).rotate({"user": torch.ones(7, 4)})
    with pytest.raises(InvalidInputError, match="width"):
        TensorTables({"a": torch.ones(2, 3), "b": torch.ones(2, 4)})
