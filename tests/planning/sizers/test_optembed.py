"""OptEmbed: the step's surrogate, rows under thresholds, evolution and its fields, by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fitting_workbench import FittingWorkbench

from bet_torchrec.errors import InfeasibleBudgetError, InvalidInputError
from bet_torchrec.planning import Budget, RowCounts, TableSpec
from bet_torchrec.planning.sizers import OptEmbed, SizingProblem
from bet_torchrec.planning.sizers.optembed.evolution import Evolution
from bet_torchrec.planning.sizers.optembed.settings import Fields
from bet_torchrec.planning.sizers.optembed.supernet import AdamBesideSGD, Step, SuperNet

TABLES = (TableSpec("user", 6, 4), TableSpec("item", 4, 2))
COUNTS = ([1, 1, 6, 1, 1, 2], [4, 3, 2, 1])


def targets():
    """The frequent rows, user 2 and item 0, have four and two columns, the others one."""
    found = {t.name: torch.zeros(t.num_embeddings, t.embedding_dim) for t in TABLES}
    found["user"][:, 0] = found["item"][:, 0] = 1.0
    found["user"][2, 1:] = found["item"][0, 1:] = 3.0
    return found


def problem(budget, *, bench=None, seed=5):
    return SizingProblem(
        tables=TABLES,
        counts=[RowCounts.from_rows(counts) for counts in COUNTS],
        budget=budget,
        widths=(0, 1, 2, 4),
        seed=seed,
        workbench=bench or FittingWorkbench(targets(), steps=150),
    )


def test_the_step_and_its_surrogate():
    x = torch.tensor([-2.0, -1.0, -0.5, -0.4, -0.1, 0.0, 0.1, 0.3, 0.7, 1.5], requires_grad=True)
    stepped = Step.apply(x)
    assert stepped.tolist() == [0] * 6 + [1] * 4
    stepped.backward(torch.full((10,), 10.0))
    by_hand = [0, 4, 4, 4, 16, 20, 16, 8, 4, 0]
    assert torch.allclose(x.grad, torch.tensor(by_hand, dtype=torch.float))


def test_rows_under_the_threshold_are_dropped():
    net = SuperNet({"t": torch.tensor([[0.5, -0.7], [0.2, 0.1]])}, seed=0).eval()
    with torch.no_grad():
        net.thresholds["t"].fill_(0.9)
    assert torch.allclose(net.table("t"), torch.tensor([[0.5, -0.7], [0.0, 0.0]]))
    assert net.kept()["t"].tolist() == [True, False]
    assert torch.equal(net.full_tables()["t"], net.table("t"))
    net.table("t").sum().backward()
    # slopes at x = .3 and -.6: .8 and .4, each times the row's sum; to t the same, negated
    assert net.thresholds["t"].grad.item() == pytest.approx(-(0.8 * -0.2 + 0.4 * 0.3), rel=1e-4)
    assert net.sparser().item() == pytest.approx(np.exp(-0.9))


def test_training_reads_prefixes_of_drawn_lengths():
    read = SuperNet({"t": torch.ones(3000, 4)}, seed=3).table("t")
    lengths = read.sum(1).long()
    assert torch.equal(read, (torch.arange(4) < lengths[:, None]).float())
    assert np.abs(np.bincount(lengths.numpy(), minlength=5)[1:] - 750).max() < 100
    assert torch.equal(SuperNet({"t": torch.ones(3000, 4)}, seed=3).table("t"), read)
    net = SuperNet({"t": torch.ones(3000, 4)}, seed=4)
    first = net.lookup("t", torch.arange(3000))
    assert not torch.equal(first, read)
    assert not torch.equal(net.lookup("t", torch.arange(3000)), first)  # each time anew
    assert net.eval().table("t").all()


def test_thresholds_move_by_their_gradients_as_they_are():
    weight, threshold = (torch.nn.Parameter(torch.zeros(1)) for _ in range(2))
    groups = [{"params": [weight], "lr": 0.1}, {"params": [threshold], "plain": True, "lr": 0.1}]
    optimizer = AdamBesideSGD(groups)
    (7 * weight + 7 * threshold).sum().backward()
    optimizer.step()
    assert weight.item() == pytest.approx(-0.1)  # Adam's first step is its rate
    assert threshold.item() == pytest.approx(-0.7)


def test_evolution_finds_what_fits_best_and_asks_once():
    asked = []

    def quality(genes):
        asked.append(tuple(genes.tolist()))
        return float((genes * [1, 3, 2, 5]).sum())

    evolution = Evolution(generations=20, chance=0.5)
    found = evolution.run(
        lambda rng: rng.integers(0, 5, 4),
        lambda genes: genes.sum() <= 6,
        quality,
        np.zeros(4, dtype=np.int64),
        np.random.default_rng(0),
    )
    assert found[0].tolist() == [0, 2, 0, 4]
    assert found[1] == 26
    assert len(set(asked)) == len(asked) <= 20 + 20 * 20
    assert all(sum(genes) <= 6 for genes in asked)


def test_evolution_survives_what_diverges():
    found, best = Evolution(generations=2).run(
        lambda rng: rng.integers(0, 3, 2),
        lambda genes: True,
        lambda genes: float("nan") if genes[0] else float(genes[1]),
        np.zeros(2, dtype=np.int64),
        np.random.default_rng(0),
    )
    assert found.tolist() == [0, 2]
    assert best == 2


def test_fields_are_blocks_of_equal_popularity():
    kept = {"user": np.array([True] * 5 + [False]), "item": np.ones(4, dtype=bool)}
    fields = Fields(problem(Budget.parameters(9)), kept, 2)
    # users by rank: 2 | 5, 0, 1, 3, 4; items: 0, 1 | 2, 3 (their counts 4 + 3 and 2 + 1)
    genes = np.array([3, 1, 2, 1])  # widths 4 and 1, 2 and 1
    sizes = fields.sizes(genes)
    assert sizes["user"].tolist() == [1, 1, 4, 1, 1, 0]
    assert sizes["item"].tolist() == [2, 2, 1, 1]
    assert fields.entries(genes) == 4 + 4 + 4 + 2
    assert fields.entries(fields.alike(9)) == 9
    assert fields.entries(fields.alike(8)) == 0
    assert fields.alike(None).tolist() == [3, 3, 2, 2]


def test_frequent_rows_get_the_columns_that_they_need():
    plan = OptEmbed(blocks=2)(problem(Budget.parameters(16)))
    assert plan.sizes("user")[2] == 4
    assert plan.cost() == 16
    assert OptEmbed(blocks=2)(problem(Budget.parameters(16))) == plan


def test_the_published_end_is_what_it_is():
    plan = OptEmbed.paper()(problem(Budget.parameters(32)))
    assert {len(set(plan.sizes(t.name).tolist())) for t in TABLES} == {1}  # a width a table
    assert plan.metadata["rows dropped by thresholds"] == "0"
    with pytest.raises(InfeasibleBudgetError, match="optembed needs at least"):
        OptEmbed.paper()(problem(Budget.parameters(plan.cost() - 1)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"blocks": 0}, "blocks should be an int"),
        ({"evolution": 3}, r"evolution should be an Evolution\(\)"),
        ({"sparsity": -1}, "sparsity should be at least 0"),
        ({"threshold_rate": 0}, "threshold_rate should be positive"),
        ({"init_std": float("inf")}, "init_std should be positive"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(InvalidInputError, match=message):
        OptEmbed(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"generations": -1}, "generations should be"), ({"chance": 0}, "chance should be")],
)
def test_bad_evolutions_are_refused(settings, message):
    with pytest.raises(InvalidInputError, match=message):
        Evolution(**settings)
