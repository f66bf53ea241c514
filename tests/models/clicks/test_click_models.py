"""Click models: what holds for all of them (narrow rows, rotations, dropout, gradients, errors)."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from click_model_cases import CASES, DENSE, DIM, FIELDS, built, inputs

from bet_torchrec.errors import InvalidInputError
from bet_torchrec.models.clicks import CLICK_MODELS, click_model_settings, make_click_model

ROWS = {"user": 9, "item": 7, "genre": 3, "age": 2}
every_case = pytest.mark.parametrize("case", CASES)


def tables(width: int = DIM) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    scale = torch.linspace(0.3, 2, width)  # the last columns matter most, until they are turned
    return {name: torch.randn(n, width, generator=generator) * scale for name, n in ROWS.items()}


def looked_up(of: dict[str, torch.Tensor]) -> torch.Tensor:
    generator = torch.Generator().manual_seed(4)
    ids = [torch.randint(len(table), (20,), generator=generator) for table in of.values()]
    return torch.stack([table[i] for table, i in zip(of.values(), ids, strict=True)], dim=1)


@every_case
@pytest.mark.parametrize("width", range(1, DIM))
def test_narrow_rows_read_as_padded_ones(case, width):
    model = built(case)
    rows, dense = inputs(model, width=width)
    padded = F.pad(rows, (0, DIM - width))
    torch.testing.assert_close(model(rows, dense), model(padded, dense), rtol=1e-5, atol=1e-5)


@every_case
def test_narrow_rows_train_as_padded_ones(case):
    grads = []
    for padding in (0, DIM - 2):
        model = built(case)
        rows, dense = inputs(model, width=2)
        rows.requires_grad_()
        model(F.pad(rows, (0, padding)), dense).sum().backward()
        of_weights = [torch.zeros_like(w) if w.grad is None else w.grad for w in model.parameters()]
        grads.append([rows.grad, *of_weights])
    for narrow, padded in zip(*grads, strict=True):
        torch.testing.assert_close(narrow, padded, rtol=1e-4, atol=1e-5)


@every_case
@pytest.mark.parametrize("counted", [False, True])
def test_rotation_keeps_logits(case, counted):
    model = built(case)
    dense = inputs(model, batch=20)[1]
    given = tables()
    before = model(looked_up(given), dense)
    counts = {name: np.arange(1, n + 1) for name, n in ROWS.items()} if counted else None
    turned = model.rotate(given, counts)
    scale = before.abs().max()
    after = model(looked_up(turned), dense)
    torch.testing.assert_close(after / scale, before / scale, rtol=0, atol=1e-5)
    again = model.rotate(turned, counts)
    after = model(looked_up(again), dense)
    torch.testing.assert_close(after / scale, before / scale, rtol=0, atol=1e-5)


@every_case
def test_rotation_orders_factors_and_leaves_linear_weights(case):
    model = built(case)
    given = tables()
    counts = {name: np.arange(n) ** 2 for name, n in ROWS.items()}
    turned = model.rotate(given, counts)
    assert list(turned) == list(given)
    if case.startswith("dcn") or case == "dlrm-dense":
        assert all(torch.equal(turned[name], given[name]) for name in given)
        return
    first = int(model.linear)
    energy = sum(
        (torch.from_numpy(counts[name])[:, None] * table.square()).sum(dim=0)
        for name, table in turned.items()
    )[first:]
    assert (energy.diff() < 0).all()
    for name, table in given.items():
        assert torch.equal(turned[name][:, :first], table[:, :first])
        assert not torch.equal(turned[name], table)


@every_case
def test_first_entries_are_linear_weights(case):
    """Adding a constant to them adds its multiple to every logit, and nothing else does."""
    model = built(case)
    rows, dense = inputs(model)
    more = rows.clone()
    more[:, 0, 0] += 0.5
    difference = model(more, dense) - model(rows, dense)
    if model.linear:
        torch.testing.assert_close(difference, torch.full((5,), 0.5))
    else:
        assert (difference - 0.5).abs().max() > 0.01


@every_case
def test_every_weight_learns(case):
    model = built(case).train()
    rows, dense = inputs(model, batch=64)
    rows.requires_grad_()
    model(rows, dense).sum().backward()
    assert rows.grad.abs().sum() > 0
    for name, weight in model.named_parameters():
        if weight.numel():
            assert weight.grad.abs().sum() > 0, name


@every_case
def test_drawing_is_repeatable(case):
    def weights(seed: int) -> torch.Tensor:
        model = built(case)
        model.reset_parameters(torch.Generator().manual_seed(seed))
        return torch.cat([weight.detach().reshape(-1) for weight in model.parameters()])

    assert torch.equal(weights(0), weights(0))
    assert torch.isfinite(weights(0)).all()
    if weights(0).numel() > 1:  # FM's one weight is its bias, which starts at zero
        assert not torch.equal(weights(0), weights(1))


@pytest.mark.parametrize(
    "case", ["deepfm", "autoint-linear-mlp", "dlrm", "dlrm-dense", "dcn", "dcn-rank-dense"]
)
def test_dropout_only_in_training_and_repeatable(case):
    model = built(case, dropout=0.4).train()
    arguments = inputs(model)

    def logits(seed: int) -> torch.Tensor:
        return model(*arguments, generator=torch.Generator().manual_seed(seed))

    assert torch.equal(logits(0), logits(0))
    assert not torch.equal(logits(0), logits(1))
    model.eval()
    assert torch.equal(logits(0), logits(1))


@every_case
def test_empty_batches_have_no_logits(case):
    model = built(case)
    rows, dense = inputs(model)
    logits = model(rows[:0], None if dense is None else dense[:0])
    assert logits.shape == (0,)


def test_all_settings_are_known_and_serialisable():
    for name in CLICK_MODELS:
        settings = click_model_settings(name)
        assert json.loads(json.dumps(settings)) == settings
        assert settings["linear"] is (name in ("fm", "deepfm"))
    assert click_model_settings("deepfm", layers=(8,))["layers"] == [8]


@every_case
def test_other_shapes_are_refused(case):
    model = built(case)
    rows, dense = inputs(model)
    for wrong in (rows[:, 1:], rows[..., :0], F.pad(rows, (0, 1)), rows[0]):
        with pytest.raises(InvalidInputError, match="expected rows"):
            model(wrong, dense)
    with pytest.raises(InvalidInputError, match="expected dense"):
        model(rows, None if model.dense_features else torch.ones(5, DENSE))
    if not case.startswith("dcn"):
        with pytest.raises(InvalidInputError, match=f"{FIELDS} tables {DIM} wide"):
            model.rotate({"user": torch.ones(3, DIM)})
        with pytest.raises(InvalidInputError, match="'item': expected 7 counts"):
            model.rotate(tables(), {"user": np.ones(9), "item": np.ones(6)})


@pytest.mark.parametrize(
    ("name", "settings", "match"),
    [
        ("mlp", {}, "one of"),
        ("fm", {"layers": (4,)}, "has settings"),
        ("fm", {"dim": 0}, "dim should"),
        ("deepfm", {"dim": 1}, "dim should be at least 2"),
        ("deepfm", {"layers": ()}, "layers should"),
        ("deepfm", {"dropout": 1.0}, "dropout"),
        ("fm", {"num_fields": 0}, "num_fields"),
        ("fm", {"dense_features": -1}, "dense_features"),
        ("dlrm", {"num_fields": 1}, "two fields"),
        ("autoint", {"attention": (7,)}, "multiple of the number of heads"),
        ("dcn", {"rank": 0}, "rank"),
    ],
)
def test_bad_settings_are_refused(name, settings, match):
    with pytest.raises(InvalidInputError, match=match):
        make_click_model(name, **{"num_fields": 3, "dim": 4, **settings})
