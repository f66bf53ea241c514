"""PEP: the soft threshold and its gradient by hand, pruning to targets, the lottery ticket."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fitting_workbench import FittingWorkbench

from bet_torchrec.errors import InvalidInputError
from bet_torchrec.planning import Budget, RowCounts, SizePlan, TableSpec
from bet_torchrec.planning.sizers import PEP, SizingProblem
from bet_torchrec.planning.sizers.pep import SoftThreshold
from bet_torchrec.planning.sizers.pep.pruning import EnoughPruned, Pruning, schedule
from bet_torchrec.planning.sizers.survivors import MaskedTables

TABLES = (TableSpec("user", 4, 4), TableSpec("item", 3, 2))
GRANULARITIES = ("global", "dimension", "feature", "feature_dimension")


def targets():
    """Four entries of 3 among zeros: what is worth keeping."""
    found = {t.name: torch.zeros(t.num_embeddings, t.embedding_dim) for t in TABLES}
    found["user"][0, :2] = found["user"][3, 1] = found["item"][1, 1] = 3.0
    return found


def problem(budget, *, bench=None, widths=(0, 1, 2, 4), seed=5):
    return SizingProblem(
        tables=TABLES,
        counts=[RowCounts.from_rows(range(t.num_embeddings, 0, -1)) for t in TABLES],
        budget=budget,
        widths=widths,
        seed=seed,
        workbench=bench or FittingWorkbench(targets(), steps=200),
    )


def test_the_threshold_and_its_gradient_by_hand():
    tables = {"t": torch.tensor([[2.0, -0.3], [-1.5, 0.6]])}
    embedding = SoftThreshold(tables, granularity="global", start=0.0)  # a threshold of 1/2
    read = embedding.table("t")
    assert torch.allclose(read, torch.tensor([[1.5, 0.0], [-1.0, 0.1]]))
    weight = torch.tensor([[1.0, 10.0], [100.0, 1000.0]])
    (read * weight).sum().backward()
    # 1 above the threshold, 0 below; to s: -sign(V) sigmoid'(0) = -sign(V) / 4
    assert embedding.values["t"].grad.tolist() == [[1, 0], [100, 1000]]
    assert embedding.shared.grad.item() == pytest.approx((-1 + 100 - 1000) / 4)


@pytest.mark.parametrize(
    ("granularity", "numbers", "gradient"),
    [
        ("global", {"all": 1}, [-7.5]),
        ("dimension", {"all": 2}, [-1.5, -6]),
        ("feature", {"t": 2}, [-1.5, -6]),
        ("feature_dimension", {"t": 4}, [-1, -0.5, -0.5, -5.5]),
    ],
)
def test_who_shares_a_threshold(granularity, numbers, gradient):
    embedding = SoftThreshold({"t": torch.full((2, 2), 3.0)}, granularity=granularity, start=0.0)
    shared = {} if embedding.shared is None else {"all": embedding.shared}
    thresholds = {**shared, **dict(embedding.thresholds.items())}
    assert {name: s.numel() for name, s in thresholds.items()} == numbers
    weight = torch.tensor([[4.0, 2.0], [2.0, 22.0]])
    (embedding.table("t") * weight).sum().backward()
    (found,) = thresholds.values()
    assert found.grad.flatten().tolist() == gradient


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_a_lookup_reads_the_table(granularity):
    embedding = SoftThreshold(targets(), granularity=granularity, start=-0.5)
    for name, weight in embedding.named_parameters():
        if not name.startswith("values"):
            torch.nn.init.normal_(weight, generator=torch.Generator().manual_seed(1))
    for name, rows in (("user", 4), ("item", 3)):
        ids = torch.tensor([rows - 1, 0, 0])
        assert torch.equal(embedding.lookup(name, ids), embedding.table(name)[ids])
        assert embedding.table(name).shape == (rows, 4)
        mask = embedding.masks()[name]
        assert torch.equal(mask, embedding.table(name)[:, : mask.shape[1]] != 0)


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_tables_may_be_called_anything(granularity):
    tables = {name: torch.ones(2, 2) for name in ("items", "training", "requires_grad", "a.b")}
    soft = SoftThreshold(tables, granularity=granularity, start=0.0)
    masks = {name: mask.numpy() for name, mask in soft.masks().items()}
    masked = MaskedTables.of(masks, tables).build(0)
    for name in tables:
        assert soft.table(name).tolist() == [[0.5, 0.5]] * 2
        assert masked.lookup(name, torch.tensor([1])).tolist() == [[1, 1]]
    assert list(masked.full_tables()) == list(soft.full_tables()) == list(tables)


def test_the_paper_s_deepest_start_has_no_gradient():
    embedding = SoftThreshold({"t": torch.ones(2, 2)}, granularity="global", start=-150.0)
    embedding.table("t").sum().backward()
    assert embedding.shared.grad.item() == 0  # only weight decay moves it


def test_the_factor_leaves_as_many_as_may_survive():
    embedding = SoftThreshold(
        {"t": torch.tensor([[0.6, -0.2, 0.0, 2.0]])}, granularity="dimension", start=0.0
    )
    with torch.no_grad():
        embedding.shared[0] = float(np.log(0.1 / 0.9))  # thresholds .1, and .5 for the others
    # against their thresholds: 6, .4, 0 and 4
    embedding.tighten(4)
    assert embedding.log_factor.item() == 0  # the learnt ones prune .2 and 0 themselves
    assert embedding.masks()["t"].tolist() == [[True, False, False, True]]
    embedding.tighten(1)
    assert embedding.log_factor.exp().item() == pytest.approx(4)
    assert embedding.masks()["t"].tolist() == [[True, False, False, False]]
    assert embedding.table("t").tolist() == [[pytest.approx(0.2), 0, 0, 0]]
    embedding.tighten(0)
    assert not embedding.table("t").any()


def test_the_schedule_is_cubic_and_ends_at_the_target():
    assert [schedule(step, 4, 1000, 200) for step in (0, 1, 2, 3, 4, 5)] == [
        1000, 537, 300, 212, 200, 200]  # fmt: skip


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("start", [-15.0, -150.0])
@pytest.mark.parametrize("target", [0, 1, 9, 21])
def test_any_target_is_met_in_as_many_steps_as_it_says(granularity, start, target):
    sizer = PEP(granularity=granularity, start=start, steps=30, every=7, form="mask", init_std=0.5)
    asked = problem(Budget.parameters(21), bench=FittingWorkbench(targets(), steps=40))
    found = sizer.prune(asked, [target])[target]
    assert found.met
    assert found.step <= 30
    assert sum(int(mask.sum()) for mask in found.masks.values()) <= target


def test_what_the_schedule_keeps_is_what_is_worth_it():
    sizer = PEP(steps=150, form="mask", init_std=0.5, every=1)
    asked = problem(Budget.parameters(4), bench=FittingWorkbench(targets(), steps=200))
    found = sizer(asked)
    kept = {name: mask.nonzero() for name, mask in found.form.masks.items()}
    assert [axis.tolist() for axis in kept["user"]] == [[0, 0, 3], [0, 1, 1]]
    assert [axis.tolist() for axis in kept["item"]] == [[1], [1]]


def test_masks_are_kept_at_each_target():
    embedding = SoftThreshold(
        {"t": torch.tensor([[0.9, 0.7, 0.3]])}, granularity="global", start=-9
    )
    pruning = Pruning(embedding, [1, 2, 3], every=2)
    threshold = embedding.shared

    def at(value, step):
        with torch.no_grad():
            threshold.fill_(float(np.log(value / (1 - value))))
        pruning.on_step(step)

    at(0.1, 2)
    assert list(pruning.found) == [3]
    at(0.95, 3)  # nobody looks
    at(0.5, 4)
    assert pruning.found[2].masks["t"].tolist() == [[True, True, False]]
    assert pruning.finish()[1].met is False  # as if training ended: the largest margin
    assert pruning.found[1].masks["t"].tolist() == [[True, False, False]]
    pruning = Pruning(embedding, [1], every=1)
    with pytest.raises(EnoughPruned):
        at(0.8, 1)
    assert pruning.found[1].step == 1


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_survivors_start_where_they_were_drawn(granularity):
    sizer = PEP.paper(
        granularity=granularity, form="mask", start=-6.0, weight_decay=0.1, init_std=0.5, every=1
    )
    asked = problem(Budget.parameters(9))
    found = sizer(asked)
    drawn = sizer.initial(asked)
    embedding = found.build(99)
    for name, table in drawn.items():
        read = embedding.table(name)[:, : table.shape[1]]
        assert torch.equal(read, torch.where(read != 0, table, 0.0))
    assert 0 < found.parameters() <= 9
    assert found.bytes() == 8 * found.parameters() + 4 * (5 + 4)
    assert "after" in found.notes["pruned"]
    assert sizer(problem(Budget.parameters(9))) == found  # deterministic
    embedding.table("user").sum().backward()
    assert all(p.grad is None or p.grad.numel() == p.numel() for p in embedding.parameters())


def test_several_budgets_from_one_run():
    bench = FittingWorkbench(targets(), steps=300)
    sizer = PEP.paper(form="mask", start=-6.0, weight_decay=0.1, init_std=0.5, every=1)
    asked = problem(Budget.parameters(20), bench=bench)
    found = sizer.prune(asked, [16, 8, 4])
    assert list(found) == [16, 8, 4]
    kept = [sum(m.sum() for m in found[n].masks.values()) for n in (16, 8, 4)]
    assert all(k <= n for k, n in zip(kept, (16, 8, 4), strict=True))
    assert found[16].step <= found[8].step <= found[4].step
    assert len(bench.fits) == 0  # one training, which ended from within
    assert sizer.answer(asked, found[16]).parameters() == kept[0]


def test_the_largest_scores_are_kept_where_the_target_is_not_met(caplog):
    sizer = PEP.paper(form="mask")
    asked = problem(Budget.parameters(5), bench=FittingWorkbench(targets(), steps=3))
    found = sizer(asked)
    assert found.parameters() == 5
    assert found.notes["pruned"] == "by score, target not met"
    assert "train longer" in caplog.text


def test_survivors_become_sizes():
    plan = PEP(start=-6.0, steps=150, init_std=0.5)(problem(Budget.parameters(9)))
    assert isinstance(plan, SizePlan)
    assert plan.cost() == 9


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"granularity": "row"}, "granularity should be one of global, dimension"),
        ({"form": "x"}, "form should be"),
        ({"threshold_rate": 0}, "threshold_rate should be positive"),
        ({"init_std": float("nan")}, "init_std should be positive"),
        ({"start": float("inf")}, "start should be finite"),
        ({"weight_decay": -1}, "weight_decay at least 0"),
        ({"every": 0}, "every should be an int"),
        ({"steps": 0}, "steps should be an int"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(InvalidInputError, match=message):
        PEP(**settings)
