"""What a GPU would run forward, without one: tensors on "cuda" with shapes and no values.

Mixed devices raise by themselves. Beyond that, once a first batch has put constants in place, no
tensor may be made on the host within a step, and nothing may wait for the
device but the one place where routing reads its counts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from bases_cases import KINDS, with_bases
from masked_cases import ROWS, SIZES, config, plan_of, table_configs
from torch import nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    FakeTensorMode,
    unset_fake_temporarily,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torchrec import KeyedJaggedTensor
from torchrec.sparse.jagged_tensor import KeyedTensor

from bet_torchrec.embeddings import (
    BudgetedEmbeddingBagCollection,
    QuantizedBudgetedEmbeddingBagCollection,
    routing_torch,
)
from bet_torchrec.embeddings.routing import block_key
from bet_torchrec.planning.budget import Budget

# Drawing weights needs a real generator of the device.
TABLES = [dataclasses.replace(table, init_fn=lambda weight: None) for table in table_configs()]
SLOTS = sum(len(table.feature_names) for table in TABLES)
BATCH, EACH = 6, 2  # bags a feature, ids a bag


class OnHost(TorchDispatchMode):
    """Notes every operator that makes a tensor on the host."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        tensors = [t for t in tree_leaves(out) if isinstance(t, torch.Tensor)]
        if any(t.device.type == "cpu" for t in tensors):
            self.found.append(str(func))
        return out


@pytest.fixture
def fake(monkeypatch) -> Iterator[FakeTensorMode]:
    """Made-up counts where routing would wait: every pair has two ids, none is out of range."""

    def counts(values: torch.Tensor) -> list[int]:
        assert values.device.type == "cuda"
        return [2] * (len(values) - 2) + [0, SLOTS * BATCH * EACH]

    monkeypatch.setattr(routing_torch, "on_host", counts)
    # Without CUDA linked in, autograd aborts on such tensors: forwards only.
    with FakeTensorMode(allow_non_fake_inputs=True) as mode, torch.no_grad():
        yield mode


def batch(*, weighted: bool, turned: bool = False) -> KeyedJaggedTensor:
    keys = list(ROWS)[::-1] if turned else list(ROWS)
    count = len(keys) * BATCH
    return KeyedJaggedTensor(
        keys=keys,
        values=torch.zeros(count * EACH, dtype=torch.int64, device="cuda"),
        lengths=torch.full((count,), EACH, dtype=torch.int32, device="cuda"),
        weights=torch.zeros(count * EACH, device="cuda") if weighted else None,
        stride=BATCH,
        length_per_key=[BATCH * EACH] * len(keys),
    )


def test_the_check_finds_what_it_should(fake):
    with OnHost() as seen:
        torch.zeros(2, device="cuda") + 1
    assert not seen.found
    with OnHost() as seen:
        torch.tensor([1, 2], device="cuda")
    assert seen.found
    with pytest.raises(DataDependentOutputException):
        torch.zeros(2, device="cuda").tolist()
    with pytest.raises((RuntimeError, TypeError), match="device"):
        torch.zeros(2, device="cuda") + torch.zeros(2)


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("row_order", ["ranked", "interleaved"])
@pytest.mark.parametrize("layout", ["bucketed", "prefix"])
def test_routing_and_merging_stay_on_the_device(layout, row_order, weighted, turned, fake):
    """The router and the merger around any lookup: sharded, not, or quantised."""
    module = BudgetedEmbeddingBagCollection(
        TABLES,
        plan_of(TABLES, SIZES),
        layout=layout,
        row_order=row_order,
        is_weighted=weighted,
        device="cuda",
    )

    def step() -> None:
        features = module.router.select(batch(weighted=weighted, turned=turned))
        routed = module.router(features)
        assert routed.values().device.type == routed.lengths().device.type == "cuda"
        assert routed.lengths().dtype == torch.int32
        assert (routed.weights_or_none() is not None) == weighted
        widths = [b.width for s in module.router.slots for b in module.blocks[s.table]]
        values = torch.zeros(BATCH, sum(widths), device="cuda")
        pooled = KeyedTensor(module.router.keys, widths, values)
        out = module.merger(pooled, module.router.scale(features)).values()
        assert out.shape == (BATCH, module.merger.width)

    step()
    with OnHost() as seen:
        step()
    assert not seen.found


class Counted(TorchDispatchMode):
    """Notes every operator but views."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if not func.is_view:
            self.found.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("layout", "expected"),
    [("bucketed", ["new_zeros", "index_add_"]), ("prefix", ["index_select"])],
)
def test_a_merge_is_one_launch_whatever_the_number_of_tables_and_widths(layout, expected, fake):
    """26 tables x 4 widths, whose keys come in another order as after sharding."""
    tables = [config(f"t{i}", 40, 16, f"f{i}") for i in range(26)]
    sizes = {table.name: np.repeat([16, 8, 4, 2], 10) for table in tables}
    with unset_fake_temporarily():
        module = BudgetedEmbeddingBagCollection(
            tables, plan_of(tables, sizes), layout=layout, device="meta"
        )
    widths = {
        block_key(slot, block): block.width
        for slot in module.router.slots
        for block in module.blocks[slot.table]
    }
    keys = list(widths)[::-1]
    values = torch.zeros(BATCH, sum(widths.values()), device="cuda")
    pooled = KeyedTensor(keys, [widths[key] for key in keys], values)
    module.merger(pooled)
    with Counted() as seen:
        out = module.merger(pooled)
    assert out.values().shape == (BATCH, 26 * 16)
    assert seen.found == expected


@pytest.mark.parametrize("layout", ["bucketed", "prefix"])
def test_a_whole_unsharded_step_mixes_no_devices(layout, fake):
    module = BudgetedEmbeddingBagCollection(
        TABLES, plan_of(TABLES, SIZES), layout=layout, device="cuda"
    )
    out = module(batch(weighted=False)).values()
    assert (out.device.type, out.shape) == ("cuda", (BATCH, module.merger.width))


@pytest.mark.parametrize("kinds", KINDS)
def test_turning_coordinates_stays_on_the_device(kinds, fake):
    plan = with_bases(kinds, plan_of(TABLES, SIZES))
    module = BudgetedEmbeddingBagCollection(TABLES, plan, device="cuda")
    out = module(batch(weighted=False)).values()
    assert (out.device.type, out.shape) == ("cuda", (BATCH, 48))
    with OnHost() as seen:
        module.bases(torch.zeros(BATCH, module.merger.width, device="cuda"))
    assert not seen.found


class Looked(nn.Module):
    """In place of TorchRec's quantised tables, which cannot be made without a GPU."""

    def __init__(self, widths: dict[str, int]) -> None:
        super().__init__()
        self.widths = widths

    def forward(self, routed: KeyedJaggedTensor) -> KeyedTensor:
        assert routed.keys() == list(self.widths)
        keys = routed.keys()[::-1]  # as after sharding: in an order of its own
        widths = [self.widths[key] for key in keys]
        return KeyedTensor(keys, widths, torch.zeros(BATCH, sum(widths), device="cuda"))


@pytest.mark.parametrize("layout", ["bucketed", "prefix"])
def test_what_is_around_a_quantised_lookup_stays_on_the_device(layout, fake):
    budget = Budget.bytes(10**6, purpose="inference", dtype="int8", alignment=16)
    with unset_fake_temporarily():
        served = QuantizedBudgetedEmbeddingBagCollection(
            TABLES, plan_of(TABLES, SIZES, budget), layout=layout
        )
    tables = served.embedding_bag_collection.embedding_bag_configs()
    stored = {key: t.embedding_dim for t in tables for key in t.feature_names}
    served.embedding_bag_collection = Looked({key: stored[key] for key in served.router.keys})

    def step() -> None:
        out = served(batch(weighted=False)).values()
        assert (out.device.type, out.shape) == ("cuda", (BATCH, served.merger.width))

    step()
    with OnHost() as seen:
        step()
    assert not seen.found
