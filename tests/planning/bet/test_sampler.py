"""Closed-form candidates against SciPy's distributions and literal draws."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from scipy import stats

from bet_torchrec.planning.counts import RowCounts
from bet_torchrec.planning.fit import FitSpace
from bet_torchrec.planning.settle import bucket_rows
from bet_torchrec.planning.sizers.bet import (
    EXPLORING_FAMILIES,
    CountPower,
    Dirichlet,
    Informed,
    LogNormal,
    PowerLaw,
    Sampler,
    TruncatedExponential,
    TruncatedNormal,
)
from bet_torchrec.planning.sizers.bet.families import MOST_KNOTS, Knots
from bet_torchrec.planning.sizers.bet.shares import move_mass

SCIPY = {
    PowerLaw: lambda b: stats.powerlaw(a=b),
    TruncatedNormal: lambda b: stats.truncnorm(0, b),
    TruncatedExponential: lambda b: stats.truncexpon(b=b),
    LogNormal: lambda b: stats.lognorm(s=b),
}
COUNTS = RowCounts.from_rows(np.arange(1000, 0, -1) // 7)


def double(x):
    return torch.tensor(x, dtype=torch.float64)


@pytest.mark.parametrize("family", SCIPY)
@pytest.mark.parametrize("share", [0.02, 0.3, 1.0])
def test_families_are_scipys(family, share):
    beta = share * family().beta_max
    reference = SCIPY[family](beta)
    u = np.linspace(0.001, 0.999, 101)
    x = reference.ppf(u)
    beta = double(np.full(101, beta))
    knots = Knots.of([COUNTS])
    quantile = family().log_quantile(double(np.log(u))[:, None], beta[:, None], knots)[:, 0]
    assert quantile.exp().numpy() == pytest.approx(x, rel=1e-8)
    survival = family().survival(double(np.log(x))[:, None], beta[:, None], knots)
    assert survival[:, 0].numpy() == pytest.approx(1 - u, abs=1e-9)


def test_count_power_gives_each_count_its_share():
    counts = RowCounts.from_distinct([99, 9, 0], [10, 40, 50])
    x = double([[np.log(100) * 0.5, np.log(10) * 0.5, 0.0, 9.0]])
    survival = CountPower().survival(x, double([[0.5]]), Knots.of([counts]))
    assert survival[0].numpy() == pytest.approx([0.1, 0.5, 1.0, 0.0])


def test_same_seed_same_candidates(sampler):
    a, b = (sampler(20, np.random.default_rng(3)).boundaries for _ in range(2))
    assert torch.equal(a, b)
    assert not torch.equal(a, sampler(20, np.random.default_rng(4)).boundaries)


def test_some_candidates_have_one_shape_for_all_tables(sampler):
    alike = dataclasses.replace(sampler, alike=0.5)(400, np.random.default_rng(3))
    one = (alike.family == alike.family[:, :1]).all(-1) & (alike.beta == alike.beta[:, :1]).all(-1)
    assert 0.4 < one.double().mean() < 0.6
    apart = sampler(400, np.random.default_rng(3))
    assert not (apart.beta == apart.beta[:, :1]).all(-1).any()


@pytest.fixture
def sampler():
    return Sampler(make_space(), (COUNTS, COUNTS), EXPLORING_FAMILIES)


def make_space(rows=1000, limit=2 * 1000 * 6):
    return FitSpace(
        widths=torch.arange(1, 33),
        rows=torch.tensor([rows, rows]),
        depth=torch.tensor([32, 32]),
        costs=torch.arange(1, 33)[None],
        limit=limit,
    )


def test_closed_form_agrees_with_iid_draws_in_distribution():
    """Mean boundaries over many literal draws are the closed form's, within sampling noise."""
    space = make_space()
    for family in (PowerLaw(), TruncatedNormal(), TruncatedExponential(), LogNormal()):
        chosen = {
            "shares": torch.full((100, 2), 0.5).double(),
            "family": torch.zeros(100, 2, dtype=torch.int64),
            "beta": torch.full((100, 2), 0.4 * family.beta_max).double(),
            "precision": torch.zeros(100, 2, dtype=torch.int64),
        }
        closed = Sampler(space, (COUNTS, COUNTS), (family,)).fit(**chosen).boundaries[0].double()
        literal = Sampler(space, (COUNTS, COUNTS), (family,), "iid").fit(
            **chosen, rng=np.random.default_rng(0)
        )
        boundaries = literal.boundaries.double()
        assert (literal.boundaries.sum((1, 2)) == space.limit).all()
        # a boundary of n rows out of 1000 has a binomial's deviation, its mean a tenth of that
        error = (boundaries.mean(0) - closed).abs()
        p = closed / 1000
        deviation = (1000 * p * (1 - p)).sqrt() / 10
        assert (error <= 4 * deviation + 1.5).all(), family


def test_iid_sizes_follow_the_distribution():
    """Unscaled sizes of one literal draw against SciPy, by Kolmogorov-Smirnov."""
    space = make_space(limit=2 * 1000 * 12)
    space = FitSpace(**{**vars(space), "widths": torch.arange(1, 2001)})
    space = FitSpace(
        **{
            **vars(space),
            "costs": space.widths[None],
            "limit": 2 * 1000 * 500,
            "depth": torch.tensor([2000, 2000]),
        }
    )
    got = Sampler(space, (COUNTS, COUNTS), (TruncatedExponential(),), "iid").fit(
        shares=torch.full((1, 2), 0.5).double(),
        family=torch.zeros(1, 2, dtype=torch.int64),
        beta=torch.full((1, 2), 2.0).double(),
        precision=torch.zeros(1, 2, dtype=torch.int64),
        rng=np.random.default_rng(5),
    )
    sizes = got.boundaries[0, 0].numpy()  # rows with size >= 1, 2, ...
    of_rows = np.repeat(np.arange(1, 2001), -np.diff(sizes, append=0))
    reference = stats.truncexpon(b=2.0)
    scaled = of_rows / of_rows.mean() * reference.mean()
    assert stats.kstest(scaled, reference.cdf).pvalue > 0.01


def test_cost_does_not_depend_on_rows():
    counts = RowCounts.from_distinct(np.arange(5000, 0, -1), np.full(5000, 200_000))
    space = make_space(rows=10**9, limit=2 * 10**9 * 6)
    candidates = Sampler(space, (counts, counts), EXPLORING_FAMILIES)(50, np.random.default_rng(0))
    assert (candidates.boundaries.sum((1, 2)) == space.limit).all()


def test_mutants_stay_near_their_parents(sampler):
    rng = np.random.default_rng(0)
    parent = sampler(1, rng)
    near = sampler.around(parent, 200, rng)
    drawn = sampler(200, rng)
    assert (near.shares - parent.shares).abs().mean() < (drawn.shares - parent.shares).abs().mean()
    assert (near.family == parent.family).double().mean() > 0.7
    assert (near.boundaries.sum((1, 2)) == sampler.space.limit).all()


def test_close_counts_above_two_to_the_24_are_numbers():
    """In single precision log(3e7) and log(3e7 + 1) are one number."""
    counts = RowCounts.from_distinct(30_000_000 + np.arange(50), np.full(50, 20))
    space = make_space()
    for beta in (0.01, 1.0):
        got = Sampler(space, (counts, counts), (CountPower(),)).fit(
            shares=torch.full((1, 2), 0.5).double(),
            family=torch.zeros(1, 2, dtype=torch.int64),
            beta=torch.full((1, 2), beta).double(),
            precision=torch.zeros(1, 2, dtype=torch.int64),
        )
        assert int(got.boundaries.sum()) == space.limit
        # nearly equal counts get equal sizes, up to the remainder
        assert set(bucket_rows(got.boundaries)[0, 0].nonzero().flatten().tolist()) <= {4, 5, 6}


def test_many_distinct_counts_are_thinned_out_closely():
    values = (3e6 / np.arange(1, 30_001) ** 1.1).astype(np.int64) + np.arange(30_000, 0, -1)
    counts = RowCounts.from_distinct(values, np.arange(1, 30_001))
    knots = Knots.of([counts])
    assert knots.share.shape[1] <= MOST_KNOTS + 2
    x = double(np.linspace(np.log1p(values[-1]), np.log1p(values[0]), 500))[None]
    got = CountPower().survival(x, double([[1.0]]), knots)[0].numpy()
    exact = np.interp(x[0].numpy(), np.log1p(values[::-1]), (counts.ends / counts.rows)[::-1])
    assert np.abs(got - exact).max() < 0.005


@pytest.mark.parametrize("alignment", [1, 128])
def test_rough_candidates_are_within_the_budget_and_settle_to_all_of_it(alignment):
    counts = [RowCounts.from_rows(np.arange(n, 0, -1)) for n in (3, 18, 200, 5000)]
    space = FitSpace(
        widths=torch.tensor([0, 1, 2, 4, 8, 16]),
        rows=torch.tensor([c.rows for c in counts]),
        depth=torch.full((4,), 6),
        costs=torch.tensor([[0, 4, 8, 16, 32, 64], [0, 5, 6, 8, 12, 20]]),
        limit=20_000,
        table_alignment=alignment,
    )
    rng = np.random.default_rng(0)
    rough = Sampler(space, counts, EXPLORING_FAMILIES, shares=Informed(), exact=False)(60, rng)
    steps = space.steps(rough.precision)
    assert (steps.cost(rough.boundaries) <= space.limit).all()
    assert (steps.cost(rough.boundaries) > 0.9 * space.limit).all()
    sampler = Sampler(space, counts, EXPLORING_FAMILIES)
    settled = sampler.settled(rough)
    assert (steps.cost(settled.boundaries) <= space.limit).all()
    assert (steps.cost(settled.boundaries) >= steps.cost(rough.boundaries)).all()
    assert torch.equal(sampler.settled(settled).boundaries, settled.boundaries)


def test_shares_are_what_tables_really_have():
    """Nobody gets what it cannot use: two rows cannot take a third of a budget."""
    counts = [RowCounts.from_rows(np.full(n, 1000 // n)) for n in (2, 18, 1000, 1000)]
    space = FitSpace(
        widths=torch.tensor([0, 1, 2, 4, 8, 16]),
        rows=torch.tensor([c.rows for c in counts]),
        depth=torch.full((4,), 6),
        costs=torch.tensor([[0, 1, 2, 4, 8, 16]]),
        limit=3000,
    )
    rng = np.random.default_rng(0)
    for shares in (Dirichlet(), Informed()):
        drawn = Sampler(space, counts, EXPLORING_FAMILIES, shares=shares)(200, rng)
        cost = (bucket_rows(drawn.boundaries) * space.costs[0]).sum(-1).double()
        assert torch.allclose(drawn.shares, cost / cost.sum(-1, keepdim=True), atol=1e-6)
        assert (drawn.shares[:, 0] <= 2 * 16 / 3000 + 1e-6).all()


def test_informed_shares_lie_between_rows_and_lookups():
    rows, lookups = np.array([3.0, 1e3, 1e7]), np.array([1e6, 1e6, 1e6])
    close = Informed(spread=0.01, leave_out=0.0)(2000, rows, lookups, np.random.default_rng(0))
    assert close.sum(-1) == pytest.approx(1)
    assert close.min(0) == pytest.approx([3 / 1e7, 1e3 / 1e7, 1 / 3], rel=0.1)
    assert close.max(0)[[0, 2]] == pytest.approx([1 / 3, 1], rel=0.02)
    known = Informed(spread=0.01, leave_out=0.0, sensitivity=(1.0, 1e9, 1.0))
    assert (known(2000, rows, lookups, np.random.default_rng(0))[:, 1] > 0.9).mean() > 0.4
    out = Informed(leave_out=1.0)(2000, rows, rows, np.random.default_rng(0))
    assert (out[:, 2] < 1e-6).mean() == pytest.approx(1 / 3, abs=0.05)


def test_mass_moves_between_few_tables_and_none_is_lost():
    rng = np.random.default_rng(0)
    shares = rng.dirichlet(np.ones(26), size=500)
    room = rng.random((500, 26)) < 0.5
    moved = move_mass(shares, room, rng)
    assert moved.sum(-1) == pytest.approx(1)
    changed = np.abs(moved - shares) > 1e-8
    assert changed.sum(-1).max() <= 6
    assert not ((moved > shares + 1e-8) & ~room).any()
    assert (moved < 1e-8).any(-1).mean() > 0.1  # now and then a table gives all
    assert np.array_equal(move_mass(np.ones((3, 1)), np.ones((3, 1), bool), rng), np.ones((3, 1)))
