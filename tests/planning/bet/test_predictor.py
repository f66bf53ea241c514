"""The prefix-sum predictor against Eq. 7-10 written out row by row."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import searches
import torch

from bet_torchrec.planning.counts import RowCounts
from bet_torchrec.planning.sizers.bet import (
    FitnessPredictor,
    FullBatch,
    GaussianProcess,
    SingleSamples,
)

ROWS, WIDTHS = (60, 90), 12
RNG = np.random.default_rng(0)
BY_ID = [RNG.zipf(1.5, n) % 50 for n in ROWS]
COUNTS = [RowCounts.from_rows(c) for c in BY_ID]


sampler = partial(searches.sampler, COUNTS, WIDTHS, 150 * 4)
scene = partial(searches.scene, COUNTS, WIDTHS)


@pytest.fixture
def candidates():
    return sampler()(8, np.random.default_rng(1))


def make(*, bits=None, **settings):
    bits = {} if bits is None else {"bits": bits}
    return FitnessPredictor(
        scene(**bits),
        generator=torch.Generator().manual_seed(0),
        **settings,
    )


def naive(predictor, boundaries, set_shares):
    """Eq. 7-10 for one candidate, a loop over sets and rows, in double precision."""
    predictor = predictor.double()
    codes, sizes = [], []
    for t, by_id in enumerate(BY_ID):
        frequency = torch.tensor(np.sort(by_id)[::-1] / by_id.max()).double()[:, None]
        codes.append(predictor.row_encoders[t](frequency))
        rank = torch.arange(ROWS[t])
        sizes.append((rank[:, None] < boundaries[t]).sum(1))
    codes, sizes = torch.cat(codes), torch.cat(sizes)
    h = 0.0
    for d in range(1, WIDTHS + 1):
        members = codes[sizes == d]
        mean = members.mean(0) if len(members) else torch.zeros(16, dtype=torch.float64)
        about = [torch.tensor([d / WIDTHS]).double()]
        if set_shares:
            n = len(members)
            about.append(torch.tensor([n / sum(ROWS), n * d / float(sizes.sum())]).double())
        h = h + predictor.size_encoder(torch.cat([mean, *about])) / WIDTHS
    return predictor.decoder(h), h


@pytest.mark.parametrize("set_shares", [False, True])
def test_equals_the_equations(candidates, set_shares):
    for i in range(len(candidates)):
        fast, slow = make(set_shares=set_shares), make(set_shares=set_shares)
        score = fast(candidates[[i]])
        expected, h = naive(slow, candidates.boundaries[i], set_shares)
        assert score.item() == pytest.approx(expected.item(), abs=1e-6)
        assert torch.allclose(fast.embed(candidates[[i]])[0].double(), h, atol=1e-6)
        score.sum().backward()
        expected.sum().backward()
        for p, q in zip(fast.parameters(), slow.parameters(), strict=True):
            assert torch.allclose(p.grad.double(), q.grad, atol=1e-6), p.shape


def test_a_batch_is_its_members(candidates):
    predictor = make()
    together = predictor(candidates)
    alone = torch.cat([predictor(candidates[[i]]) for i in range(len(candidates))])
    assert torch.allclose(together, alone, atol=1e-6)


def test_precision_is_seen():
    one = sampler(precisions=2)
    shares = torch.ones(2, dtype=torch.float64)
    a, b = one.shaped(shares, 0), one.shaped(shares, 1)
    assert torch.equal(a.boundaries, b.boundaries)
    predictor = make(bits=(32.0, 8.0))
    assert abs(predictor(a).item() - predictor(b).item()) > 1e-6


@pytest.mark.parametrize("trainer", [FullBatch(), SingleSamples()])
def test_training_is_repeatable_and_learns(candidates, trainer):
    fitness = torch.linspace(0.5, 1.0, len(candidates)).tolist()

    a, b = (trainer(scene(), candidates, fitness, 5) for _ in range(2))
    with torch.no_grad():
        assert torch.equal(a(candidates), b(candidates))
        if isinstance(trainer, FullBatch):
            # in units of fitness
            assert a(candidates).mean().item() == pytest.approx(0.75, abs=0.1)
            assert a.embed(candidates).shape[0] == len(candidates)
            order = torch.tensor(fitness).argsort()
            ranked = a(candidates)[order].argsort().argsort().double()
            assert np.corrcoef(ranked, np.arange(len(order)))[0, 1] > 0.8
        else:
            untrained = make(set_shares=False, final_activation=True)
            mse = [((p(candidates) - torch.tensor(fitness)) ** 2).mean() for p in (untrained, a)]
            assert mse[1] < mse[0]


@pytest.mark.parametrize("bits", [(32.0,), (32.0, 8.0)])
def test_a_gaussian_process_learns_what_tables_get(bits):
    drawn = sampler(precisions=len(bits))(200, np.random.default_rng(1))
    fitness = 0.9 - (drawn.shares[:, 0] - 0.4).square() + 0.02 * drawn.precision[:, 1]
    seen = torch.arange(40)
    fitted = GaussianProcess()(scene(bits), drawn[seen], fitness[seen].tolist(), 0)
    error = fitted(drawn[torch.arange(40, 200)]) - fitness[40:]
    assert error.square().mean().sqrt() < 0.35 * fitness.std()
    again = GaussianProcess()(scene(bits), drawn[seen], fitness[seen].tolist(), 1)
    assert torch.equal(again(drawn), fitted(drawn))


@pytest.mark.parametrize("n", [1, 2])
def test_a_gaussian_process_stands_few_and_equal_probes(candidates, n):
    one = candidates[[0] * n]
    fitted = GaussianProcess()(scene(), one, [0.5] * n, 0)
    assert fitted(candidates).isfinite().all()
    assert fitted(one).tolist() == pytest.approx([0.5] * n)


def test_a_gaussian_process_is_sure_of_what_it_saw_alone(candidates):
    """Against scikit-learn's posterior, under the kernel that was chosen."""
    regression = pytest.importorskip("sklearn.gaussian_process")
    seen, fitness = candidates[torch.arange(6)], np.linspace(0.5, 0.7, 6) ** 2
    fitted = GaussianProcess()(scene(), seen, fitness.tolist(), 0)
    smooth, length, noise = fitted._setting
    x, new = fitted.embed(seen), fitted.embed(candidates)

    class Chosen(regression.kernels.RBF):
        def __call__(self, a, b=None, eval_gradient=False):
            b = a if b is None else b
            return fitted._kernel(torch.tensor(a), torch.tensor(b), smooth, length).numpy()

        def diag(self, a):
            return np.array([self(row[None])[0, 0] for row in a])

    theirs = regression.GaussianProcessRegressor(Chosen(), alpha=noise, optimizer=None)
    theirs.fit(x.numpy(), (fitness - fitness.mean()) / fitness.std())
    mean, std = theirs.predict(new.numpy(), return_std=True)
    assert np.allclose(fitted.spread(new), std * fitness.std(), atol=1e-9)
    assert np.allclose(fitted.fitness(new), mean * fitness.std() + fitness.mean(), atol=1e-9)
    assert fitted.spread(x).mean() < fitted.spread(new).mean()


def test_a_wrecked_plan_does_not_make_all_others_alike(candidates):
    seen, fitness = candidates[torch.arange(8)], np.linspace(0.95, 0.96, 8)
    known = GaussianProcess()(scene(), seen, fitness.tolist(), 0)(seen)
    fitness[0] = 0.5
    wrecked = GaussianProcess()(scene(), seen, fitness.tolist(), 0)(seen)
    assert (wrecked[1:] - known[1:]).abs().max() < 0.003
