"""Each click model against its paper's formula, and against TorchRec's module where it has one."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
import torch.nn.functional as F
from click_model_cases import DIM, FIELDS, built, inputs

from bet_torchrec.models.clicks import DLRM, FM


def test_fm_by_hand():
    """Rows [w, v]: 1 + 2 + 3 linear; pairs of factors 4, 5, 6: 20 + 24 + 30; bias 7."""
    model = FM(3, 2)
    torch.nn.init.constant_(model.bias, 7.0)
    rows = torch.tensor([[[1.0, 4.0], [2.0, 5.0], [3.0, 6.0]]])
    assert model(rows).item() == 7 + 6 + 74
    assert model(rows[:, :, :1]).item() == 7 + 6
    assert FM(3, 2, linear=False)(rows).item() == 74 + (2 + 3 + 6)


def test_logistic_regression_is_an_fm_of_one_column():
    rows = torch.randn(5, 3, 1)
    torch.testing.assert_close(FM(3, 1)(rows), rows.sum(dim=(1, 2)))


def pairs(rows: torch.Tensor) -> torch.Tensor:
    return sum((rows[:, i] * rows[:, j]).sum(1) for i, j in combinations(range(rows.shape[1]), 2))


def test_fm_with_dense_features_against_all_pairs():
    model = built("fm-dense")
    rows, dense = inputs(model)
    whole = torch.cat([rows, dense[:, :, None] * model.dense.rows], dim=1)
    expected = model.bias + whole[:, :, 0].sum(1) + pairs(whole[:, :, 1:])
    torch.testing.assert_close(model(rows, dense), expected)


def test_fm_is_torchrecs_for_factors_of_one_column():
    deepfm = pytest.importorskip("torchrec.modules.deepfm")
    rows = torch.randn(6, 5, 4)
    theirs = deepfm.FactorizationMachine()
    by_column = sum(theirs([rows[:, :, k : k + 1]]).squeeze(1) for k in range(4))
    torch.testing.assert_close(FM(5, 4, linear=False)(rows), by_column, rtol=1e-4, atol=1e-5)


def mlp(tower, first: torch.Tensor) -> torch.Tensor:
    """What follows a tower's first layer, in eval mode."""
    hidden = torch.relu(first)
    for layer in tower.hidden:
        hidden = torch.relu(F.linear(hidden, layer.weight, layer.bias))
    return F.linear(hidden, tower.out.weight, tower.out.bias)[:, 0]


def over_fields(layer, rows: torch.Tensor) -> torch.Tensor:
    return torch.einsum("bfd,hfd->bh", rows, layer.weight) + layer.bias


def test_deepfm_against_the_formula():
    model = built("deepfm")
    rows, _ = inputs(model)
    expected = rows[:, :, 0].sum(1) + pairs(rows[:, :, 1:])
    expected = expected + mlp(model.tower, over_fields(model.tower.first, rows[:, :, 1:]))
    torch.testing.assert_close(model(rows), expected)


def test_deepfm_is_torchrecs_deep_part_and_pairs():
    deepfm = pytest.importorskip("torchrec.modules.deepfm")
    model = built("deepfm-factors-alone")
    rows, _ = inputs(model)
    first = torch.nn.Linear(FIELDS * DIM, 5)
    first.load_state_dict(
        {"weight": model.tower.first.weight.flatten(1), "bias": model.tower.first.bias}
    )
    layers = [first, torch.nn.ReLU(), model.tower.hidden[0], torch.nn.ReLU(), model.tower.out]
    theirs = deepfm.DeepFM(torch.nn.Sequential(*layers))([rows]).squeeze(1)
    torch.testing.assert_close(model(rows), theirs + pairs(rows))


def test_autoint_against_the_formula():
    """One example, field by field and head by head."""
    model = built("autoint-linear-mlp")
    rows, _ = inputs(model)
    (layer,) = model.attention
    query, key, value, residual = layer.weight.chunk(4)
    for row, logit in zip(rows, model(rows), strict=True):
        fields = row[:, 1:]
        out = []
        for i in range(FIELDS):
            heads = []
            for head in (slice(0, 4), slice(4, 8)):
                scores = [(query[head] @ fields[i]) @ (key[head] @ e) for e in fields]
                shares = torch.stack(scores).softmax(0)
                heads.append(
                    sum(s * (value[head] @ e) for s, e in zip(shares, fields, strict=True))
                )
            out.append(torch.relu(torch.cat(heads) + residual @ fields[i]))
        expected = over_fields(model.out, torch.stack(out)[None])[0, 0]
        expected = expected + mlp(model.tower, over_fields(model.tower.first, fields[None]))[0]
        torch.testing.assert_close(logit, expected + row[:, 0].sum())


def test_dlrm_is_torchrecs_interaction():
    dlrm = pytest.importorskip("torchrec.models.dlrm")
    model = built("dlrm-dense")
    rows, dense = inputs(model)
    for layer in model.bottom:
        dense = torch.relu(F.linear(dense, layer.weight, layer.bias))
    met = dlrm.InteractionArch(FIELDS)(dense, rows)
    first = model.tower.first
    expected = mlp(model.tower, F.linear(met, first.weight, first.bias))
    torch.testing.assert_close(model(*inputs(model)), expected)


def test_dlrm_without_dense_features_meets_each_pair_once():
    model = DLRM(3, 2, layers=(4,))
    rows = torch.tensor([[[1.0, 0.0], [2.0, 3.0], [4.0, 5.0]]])
    assert model.interactions(rows).tolist() == [[2.0, 4.0, 23.0]]


@pytest.mark.parametrize("case", ["dcn", "dcn-linear", "dcn-rank-dense", "dcn-dense"])
def test_dcn_is_torchrecs_cross_network(case):
    crossnet = pytest.importorskip("torchrec.modules.crossnet")
    model = built(case)
    rows, dense = inputs(model)
    factors = rows[:, :, int(model.linear) :]
    start = factors.flatten(1) if dense is None else torch.cat([factors.flatten(1), dense], dim=1)
    cross = model.cross
    layers, entries, rank = cross.left.shape
    if cross.rank is None:
        theirs = crossnet.CrossNet(entries, layers)
        state = {f"kernels.{i}": cross.left[i] for i in range(layers)}
        state |= {f"bias.{i}": cross.biases[i][:, None] for i in range(layers)}
    else:
        theirs = crossnet.LowRankCrossNet(entries, layers, rank)
        state = {f"W_kernels.{i}": cross.left[i] for i in range(layers)}
        state |= {f"V_kernels.{i}": cross.right[i] for i in range(layers)}
        state |= {f"bias.{i}": cross.biases[i] for i in range(layers)}
    theirs.load_state_dict(state)
    torch.testing.assert_close(cross.crossed(factors, dense), theirs(start), rtol=1e-4, atol=1e-4)
    first = over_fields(model.tower.first, factors)
    if dense is not None:
        first = first + dense @ model.tower.first.dense_weight.T
    expected = theirs(start) @ cross.out + mlp(model.tower, first)
    if model.linear:
        expected = expected + rows[:, :, 0].sum(1)
    torch.testing.assert_close(model(rows, dense), expected, rtol=1e-4, atol=1e-4)
