"""Merging against sums of padded columns in plain torch."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from masked_cases import LAYOUTS, SIZES, plan_of, table_configs
from torchrec.sparse.jagged_tensor import KeyedTensor

from bet_torchrec.embeddings import blocks, merge
from bet_torchrec.embeddings.merge import Merger
from bet_torchrec.embeddings.routing import Slot, block_key
from bet_torchrec.planning.plan import Bucket, TablePlan

TABLES = table_configs()
PLAN = plan_of(TABLES, SIZES)
WIDTHS = {t.name: t.embedding_dim for t in TABLES}
SLOTS = [Slot(f, t.name, f"{f}@{t.name}") for t in TABLES for f in t.feature_names]


MEAN = [replace(slot, mean=slot.table in ("user", "item")) for slot in SLOTS]  # two widths


def per_slot(scale, slots):
    """(B, slots): ones where bags are summed."""
    columns = iter(scale.T)
    return torch.stack([next(columns) if s.mean else torch.ones(len(scale)) for s in slots], 1)


def pooled(laid, slots=SLOTS, batch=3, seed=0, shuffled=True):
    """Pooled rows of each (slot, block), in any order, with gradients."""
    pairs = [(slot, block) for slot in slots for block in laid[slot.table]]
    if shuffled:
        random.Random(seed).shuffle(pairs)
    widths = [block.width for _, block in pairs]
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(batch, sum(widths), generator=generator, dtype=torch.float64)
    keys = [block_key(*pair) for pair in pairs]
    return KeyedTensor(keys, widths, values.requires_grad_()), pairs


def merged_by_padding(tensor, pairs, slots=SLOTS):
    outputs = {s.key: torch.zeros(len(tensor.values()), WIDTHS[s.table]).double() for s in slots}
    parts = tensor.values().split(tensor.length_per_key(), dim=1)
    for (slot, block), part in zip(pairs, parts, strict=True):
        after = WIDTHS[slot.table] - block.columns.stop
        outputs[slot.key] = outputs[slot.key] + F.pad(part, (block.first_column, after))
    return outputs


@pytest.mark.parametrize("by_index", [False, True])
@pytest.mark.parametrize("batch", [0, 3])
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize(("layout", "row_order"), LAYOUTS)
def test_columns_go_where_their_block_has_them(
    layout, row_order, scaled, batch, by_index, monkeypatch
):
    """by_index: as on a GPU."""
    monkeypatch.setattr(merge, "by_index", lambda values: by_index)
    laid = {t.name: blocks(PLAN[t.name], layout, row_order) for t in TABLES}
    tensor, pairs = pooled(laid, batch=batch)
    slots = MEAN if scaled else SLOTS
    own = torch.rand(batch, sum(slot.mean for slot in slots)).double() if scaled else None
    merger = Merger(slots, WIDTHS, laid)
    out = merger(tensor, own)
    scale = None if own is None else per_slot(own, slots)
    expected = merged_by_padding(tensor, pairs)
    assert out.keys() == [slot.key for slot in SLOTS]
    assert out.length_per_key() == [WIDTHS[slot.table] for slot in SLOTS]
    for i, (key, values) in enumerate(expected.items()):
        wanted = values if scale is None else values * scale[:, i : i + 1]
        torch.testing.assert_close(out[key], wanted)
    # The same values again by autograd of plain torch: gradients are those of the definition.
    out.values().pow(2).sum().backward()
    found, source = tensor.values().grad, tensor.values()
    source.grad = None
    outputs = merged_by_padding(tensor, pairs).values()
    flat = [v if scale is None else v * scale[:, i : i + 1] for i, v in enumerate(outputs)]
    torch.cat(flat, 1).pow(2).sum().backward()
    torch.testing.assert_close(found, source.grad)


@pytest.mark.parametrize("by_index", [False, True])
def test_gradients_by_differences(by_index, monkeypatch):
    monkeypatch.setattr(merge, "by_index", lambda values: by_index)
    laid = {t.name: blocks(PLAN[t.name], "bucketed") for t in TABLES}
    tensor, _ = pooled(laid, batch=2)
    merger = Merger(MEAN, WIDTHS, laid)
    scale = torch.rand(2, sum(slot.mean for slot in MEAN)).double()

    def merged(values):
        made = KeyedTensor(tensor.keys(), tensor.length_per_key(), values)
        return merger(made, scale).values()

    assert torch.autograd.gradcheck(merged, (tensor.values(),))


def test_columns_side_by_side_already_are_not_copied():
    """The prefix layout of rows that reach the full width: its output is the merged one."""
    plan = TablePlan("user", 9, 12, (Bucket(12, 2), Bucket(4, 6), Bucket(0, 1)))
    slots = [Slot("friend", "user", "friend"), Slot("me", "user", "me")]
    laid = {"user": blocks(plan, "prefix")}
    tensor, _ = pooled(laid, slots, shuffled=False)
    assert Merger(slots, {"user": 12}, laid)(tensor).values().data_ptr() == (
        tensor.values().data_ptr()
    )
    narrow = Merger(slots, {"user": 13}, laid)(tensor)  # the last column is zero: a copy
    assert narrow.length_per_key() == [13, 13]
    assert not narrow["me"][:, 12].any()
    torch.testing.assert_close(narrow["me"][:, :12], tensor.values()[:, 12:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_mean_pooling_touches_only_its_columns_and_keeps_nothing_wide(dtype):
    """Also where the columns need no moving; whatever their type."""
    plan = TablePlan("user", 9, 12, (Bucket(12, 2), Bucket(4, 6), Bucket(0, 1)))
    slots = [Slot(str(i), "user", str(i), mean=i in (1, 2), number=i) for i in range(4)]
    laid = {"user": blocks(plan, "prefix")}
    tensor, _ = pooled(laid, slots, shuffled=False)
    values = tensor.values().detach().to(dtype).requires_grad_()
    scale, kept = torch.rand(3, 2), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        given = KeyedTensor(tensor.keys(), tensor.length_per_key(), values)
        out = Merger(slots, {"user": 12}, laid)(given, scale)
    assert out.values().dtype == dtype
    for number in (0, 3):
        assert torch.equal(out[str(number)], values[:, 12 * number :][:, :12])
    for number in (1, 2):
        wanted = values[:, 12 * number :][:, :12].float() * scale[:, number - 1 : number]
        torch.testing.assert_close(out[str(number)], wanted.to(dtype))
    assert all(tensor.numel() < values.numel() for tensor in kept)
    out.values().sum().backward()
    wanted = torch.ones(3, 48)
    wanted[:, 12:36] = scale.repeat_interleave(12, dim=1)
    torch.testing.assert_close(values.grad, wanted.to(dtype))
