"""Plans with bases through the workbench: what is trained is what the plan counts."""

from __future__ import annotations

import dataclasses
from dataclasses import replace

import numpy as np
import pytest
import torch
from training_oracles import small_split

from bet_torchrec.planning import Budget, BudgetPlanner, EqualSizes, SizePlan
from bet_torchrec.tasks import BPR, RankingTask
from bet_torchrec.training import TrainingWorkbench, TrainSettings, TurnedEmbedding
from bet_torchrec.training.turned_embedding import planned_embedding

SETTINGS = TrainSettings(max_epochs=4, validate_every=50, patience=2)


@pytest.fixture(scope="module")
def bench() -> TrainingWorkbench:
    task = RankingTask(small_split(), "lightgcn", embedding_dim=16, bpr=BPR(batch_size=50))
    made = TrainingWorkbench(
        task,
        training=SETTINGS,
        fine_tuning=dataclasses.replace(SETTINGS, max_epochs=2),
        warm_start="prefix",
    )
    made.full()
    return made


def plan_of(bench, basis, size=4, budget=None) -> SizePlan:
    budget = budget or Budget.parameters(10**6)
    sizes = {t.name: np.full(t.num_embeddings, size) for t in bench.tables}
    for own in sizes.values():
        own[::3] = max(size // 2, 1)
    tables = [replace(t, basis=basis) for t in bench.tables]
    precisions = {t.name: budget.dtypes[0] for t in tables}
    return SizePlan.from_sizes(
        tables, sizes, bench.counts(), budget=budget, sizer="test", precisions=precisions
    )


def test_a_start_is_the_full_rows_in_principal_axes(bench):
    plan = plan_of(bench, "fixed")
    found = bench.fine_tuned(plan, epochs=0)
    for name, full in bench.full().full_tables().items():
        weights = torch.from_numpy(bench.counts()[name].by_id()).double()
        right = torch.linalg.svd(full.double() * weights.sqrt()[:, None], full_matrices=False).Vh
        mask = torch.arange(4) < torch.from_numpy(plan.sizes(name))[:, None]
        wanted = ((full.double() @ right[:4].T) * mask) @ right[:4]
        torch.testing.assert_close(found.full_tables()[name].double(), wanted, atol=1e-4, rtol=1e-3)


def test_own_axes_keep_more_than_a_prefix(bench):
    full = bench.full().full_tables()
    lost = []
    for basis in ("fixed", None):
        tables = bench.fine_tuned(plan_of(bench, basis), epochs=0).full_tables()
        lost.append(sum(float((tables[n] - t).square().sum()) for n, t in full.items()))
    assert lost[0] < 0.9 * lost[1]


@pytest.mark.parametrize("basis", ["fixed", "trained"])
@pytest.mark.parametrize("start", ["scratch", "full"])
def test_training_moves_axes_that_train_and_no_others(bench, basis, start):
    plan = plan_of(bench, basis)
    trained = bench.train_model(plan, start=start)
    assert isinstance(trained.embedding, TurnedEmbedding)
    assert trained.embedding.num_weights() == plan.cost() == plan.parameters()
    before = (
        {n: torch.eye(4, 16) for n in plan.precisions}
        if start == "scratch"
        else {n: b.axes for n, b in bench.fine_tuned(plan, epochs=0).embedding.bases().items()}
    )
    for name, own in trained.embedding.bases().items():
        assert torch.equal(own.axes, before[name]) is (basis == "fixed")


def test_kept_models_tell_bases_apart(bench, tmp_path):
    kept = TrainingWorkbench(
        bench.task, training=SETTINGS, fine_tuning=SETTINGS, run_dir=tmp_path, warm_start="prefix"
    )
    kept.adopt(bench.full().model, bench.full().full_tables())
    made = {b: kept.train_model(plan_of(bench, b), start="full") for b in (None, "fixed")}
    again = kept.train_model(plan_of(bench, "fixed"), start="full")
    assert again.quality == made["fixed"].quality
    for name, table in made["fixed"].full_tables().items():
        assert torch.equal(again.full_tables()[name], table)
        assert not torch.equal(made[None].full_tables()[name], table)


def test_served_in_the_plan_s_precisions(bench):
    budget = Budget.bytes(10**6, purpose="inference", dtype="int8", alignment=1)
    trained = bench.fine_tuned(plan_of(bench, "fixed", budget=budget), epochs=0)
    rows, served = trained.full_tables(), trained.served.full_tables()
    for name, table in served.items():
        off = (rows[name] - table[:, :16]).abs().max()
        assert 0 < off < 0.05


def test_rounding_epochs_share_rows_and_axes(bench):
    budget = Budget.bytes(10**6, purpose="inference", dtype="int4", alignment=1)
    trained = bench.fine_tuned(plan_of(bench, "trained", budget=budget), epochs=0)
    before = {name: value.clone() for name, value in trained.embedding.state_dict().items()}
    found = bench.rounded(trained, dataclasses.replace(SETTINGS, max_epochs=2))
    assert found.embedding is trained.embedding
    after = found.embedding.state_dict()
    assert after.keys() == before.keys()
    alike = {torch.equal(after[name], before[name]) for name in before}
    assert alike == {found is trained}  # all rows and axes have moved, or nothing was better
    other = trained.embedding.around(trained.embedding.inner)
    assert other.axes("user") is trained.embedding.axes("user")


def test_a_search_within_a_budget_of_bases(bench):
    budget = Budget.parameters(sum(t.num_embeddings for t in bench.tables) * 3 + 200)
    planner = BudgetPlanner(
        budget=budget, sizer=EqualSizes(), basis={t.name: "trained" for t in bench.tables}
    )
    plan = planner.plan(bench.tables, bench.counts(), workbench=bench)
    assert all(t.basis == "trained" for t in plan.tables)
    assert bench.build(plan).num_weights() == plan.cost() <= plan.limit


def test_empty_tables_of_a_plan_without_bases_are_plain(bench):
    assert not isinstance(planned_embedding(plan_of(bench, None), bench.tables), TurnedEmbedding)
