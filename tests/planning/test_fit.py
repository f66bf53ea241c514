"""The fit's laws: never over the limit, nothing affordable left, sizes fall with rank."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bet_torchrec.planning.budget import Budget, MemoryModel
from bet_torchrec.planning.counts import RowCounts
from bet_torchrec.planning.fit import FitSpace, minimum_cost
from bet_torchrec.planning.root import solve_increasing
from bet_torchrec.planning.settle import Steps, settle
from bet_torchrec.planning.sizers.bet import EXPLORING_FAMILIES, Flat, PowerLaw, Sampler

WIDTHS = {
    "few": (4, 8, 16, 32, 64, 128),
    "any": tuple(range(1, 65)),
    "droppable": (0, 4, 12, 28),
}
MODELS = {
    "parameters": MemoryModel.for_budget(Budget.parameters(1)),
    "training": MemoryModel.for_budget(
        Budget.bytes(1, purpose="training", dtype="fp32", optimizer="rowwise_adagrad")
    ),
    "inference": MemoryModel.for_budget(Budget.bytes(1, purpose="inference", dtype="int4")),
}


def make_space(rows, widths, model, limit, precisions=("fp32",)):
    return FitSpace(
        widths=torch.tensor(widths),
        rows=torch.tensor(rows),
        depth=torch.full((len(rows),), len(widths)),
        costs=torch.tensor(np.stack([model.row_costs(widths, p) for p in precisions])),
        limit=limit,
        table_alignment=model.table_alignment,
    )


def counts_of(rows, rng):
    return [RowCounts.from_rows(np.sort(rng.zipf(1.3, n) % 1000)[::-1].copy()) for n in rows]


def literal_cost(boundaries, widths, model, precision="fp32"):
    """By looking at each bucket on its own."""
    total = 0
    for table in boundaries.tolist():
        for k, width in enumerate(widths):
            n = table[k] - (table[k + 1] if k + 1 < len(widths) else 0)
            total += model.bucket_cost(width, n, precision) if n else 0
    return total


def affordable_steps(boundaries, widths, model, limit, precision="fp32"):
    """Every single-row step that would still fit, found by trying each."""
    found = []
    for t in range(boundaries.shape[0]):
        for k in range(1, len(widths)):
            if boundaries[t, k] < boundaries[t, k - 1]:
                more = boundaries.clone()
                more[t, k] += 1
                if literal_cost(more, widths, model, precision) <= limit:
                    found.append((t, k))
    return found


@settings(max_examples=40, deadline=None)
@given(
    rows=st.lists(st.integers(1, 400), min_size=1, max_size=5),
    widths=st.sampled_from(sorted(WIDTHS)),
    model=st.sampled_from(sorted(MODELS)),
    tightness=st.floats(0.0, 1.2),
    seed=st.integers(0, 10_000),
)
def test_strict_and_maximal(rows, widths, model, tightness, seed):
    widths, model = WIDTHS[widths], MODELS[model]
    precision = "int4" if model.purpose == "inference" else "fp32"
    least = sum(model.bucket_cost(widths[0], n, precision) for n in rows)
    most = sum(model.bucket_cost(widths[-1], n, precision) for n in rows)
    limit = int(least + tightness * (most - least))
    space = make_space(rows, widths, model, limit, (precision,))
    rng = np.random.default_rng(seed)
    candidates = Sampler(space, counts_of(rows, rng), EXPLORING_FAMILIES)(4, rng)
    for b in candidates.boundaries:
        assert (b[:, 0] == torch.tensor(rows)).all()
        assert (b[:, 1:] <= b[:, :-1]).all()
        assert (b >= 0).all()
        assert literal_cost(b, widths, model, precision) <= limit
        assert affordable_steps(b, widths, model, limit, precision) == []


def test_mixed_precisions_cost_what_they_cost():
    model, widths, precisions = MODELS["inference"], (4, 8, 16), ("fp16", "int2")
    space = make_space([50, 30], widths, model, 2500, precisions)
    rng = np.random.default_rng(0)
    candidates = Sampler(space, counts_of([50, 30], rng), (Flat(), PowerLaw()))(50, rng)
    for b, chosen in zip(candidates.boundaries, candidates.precision, strict=True):
        cost = sum(
            literal_cost(b[t : t + 1], widths, model, precisions[int(chosen[t])]) for t in range(2)
        )
        assert cost <= 2500
        assert cost == int(space.steps(chosen[None]).cost(b[None]))


def test_equal_sizes_by_hand():
    # 10 rows, 45 parameters: everybody 4, and the five most frequent one more
    space = make_space([10], tuple(range(1, 9)), MODELS["parameters"], 45)
    b = (
        Sampler(space, counts_of([10], np.random.default_rng(0)), (Flat(),))
        .shaped(torch.ones(1), 0)
        .boundaries
    )
    assert b[0, 0].tolist() == [10, 10, 10, 10, 5, 0, 0, 0]


def test_power_law_by_hand():
    # F(x) = x on [0, 1]: sizes are 2, 6, 10, 14 at lambda 16, floored to the allowed widths
    space = make_space([4], (1, 2, 6, 10, 14, 20), MODELS["parameters"], 32)
    rng = np.random.default_rng(0)
    sampler = Sampler(space, counts_of([4], rng), (PowerLaw(),))
    one = torch.ones(1, 1, dtype=torch.float64)
    zero = torch.zeros(1, 1, dtype=torch.int64)
    got = sampler.fit(shares=one, family=zero, beta=one, precision=zero).boundaries
    assert got[0, 0].tolist() == [4, 4, 3, 2, 1, 0]


def test_a_full_table_passes_its_surplus_on():
    space = make_space([2, 100], (1, 2, 4, 8), MODELS["parameters"], 416)
    rng = np.random.default_rng(0)
    sampler = Sampler(space, counts_of([2, 100], rng), (Flat(),))
    got = sampler.fit(
        shares=torch.tensor([[0.9, 0.1]], dtype=torch.float64),
        family=torch.zeros(1, 2, dtype=torch.int64),
        beta=torch.ones(1, 2, dtype=torch.float64),
        precision=torch.zeros(1, 2, dtype=torch.int64),
    ).boundaries[0]
    assert got.tolist() == [[2, 2, 2, 2], [100, 100, 100, 0]]


def test_a_table_is_never_wider_than_its_own_dimension():
    space = FitSpace(
        widths=torch.tensor([4, 8, 16]),
        rows=torch.tensor([100, 100]),
        depth=torch.tensor([3, 1]),
        costs=torch.tensor([[4, 8, 16]]),
        limit=1500,
    )
    rng = np.random.default_rng(0)
    b = Sampler(space, counts_of([100, 100], rng), EXPLORING_FAMILIES)(200, rng).boundaries
    assert (b[:, 1, 1:] == 0).all()
    assert ((b * torch.tensor([4, 4, 8])).sum((1, 2)) > 1500 - 8).all()


def test_minimum_cost_counts_alignment():
    space = make_space([10, 3], (4, 8), MODELS["inference"], 1, ("int4",))
    # 4 dimensions are 2 bytes, 4 of scale and bias, aligned to 16; tables to 128
    assert int(minimum_cost(space, torch.zeros(1, 2, dtype=torch.int64))) == 256 + 128


def test_settle_takes_back_what_is_over():
    steps = Steps(
        row_cost=torch.tensor([[[4, 8, 16]]]), allowed=torch.ones(1, 1, 3, dtype=torch.bool)
    )
    got = settle(torch.tensor([[[10, 10, 10]]]), steps, 60)
    assert steps.cost(got).item() <= 60
    assert got.tolist() == [[[10, 5, 0]]]


def test_solver_finds_known_roots():
    target = torch.tensor([1.5, 100.0, 0.5, 1e-3], dtype=torch.float64)
    low, high = torch.full((4,), -50.0).double(), torch.full((4,), 50.0).double()
    x = solve_increasing(
        lambda x, i: torch.exp(x),
        low,
        high,
        target,
        start=torch.zeros(4).double(),
        ends=(low.exp(), high.exp()),
        tolerance=1e-10 * target,
    )
    assert torch.allclose(x, target.log(), atol=1e-8)


def test_solver_survives_a_step():
    x = solve_increasing(
        lambda x, i: torch.where(x < 0.3, 1.0, 9.0).double(),
        torch.zeros(1).double(),
        torch.ones(1).double(),
        torch.tensor([5.0]).double(),
        start=torch.tensor([0.5]).double(),
        ends=(torch.tensor([1.0]).double(), torch.tensor([9.0]).double()),
        tolerance=torch.tensor([1e-6]).double(),
    )
    assert x.item() == pytest.approx(0.3, abs=1e-9)


def test_rows_that_fit_a_blocks_rest_are_not_dropped():
    """6 of 18 rows kept, 8 wide: all 18 fit into the same 128 bytes, though a step would not."""
    space = FitSpace(
        widths=torch.tensor([0, 1, 4, 8]),
        rows=torch.tensor([18, 1000]),
        depth=torch.tensor([4, 4]),
        costs=torch.tensor([[0, 5, 6, 7]]),
        limit=128 + 1024,
        table_alignment=128,
    )
    start = torch.tensor([[[18, 6, 6, 6], [1000, 200, 200, 0]]])
    steps = space.steps(torch.zeros(1, 2, dtype=torch.int64))
    assert int(steps.cost(start)) == 128 + 1280
    got = settle(start, steps, space.limit)
    assert got[0, 0].tolist() == [18, 18, 18, 18]
    assert int(steps.cost(got)) <= space.limit
