"""Collections of tables with bases against masked coordinates times axes, in one process."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import sequence_cases
import torch
from bases_cases import (
    KINDS,
    PLANS,
    coordinates_of,
    drawn_bases,
    oracle,
    ours,
    turn,
    with_bases,
)
from masked_cases import (
    LAYOUTS,
    PLAN,
    ROWS,
    TABLES,
    VALUES,
    assert_alike,
    bags,
    config,
    plan_of,
    table_configs,
    values_of,
)
from torchrec import EmbeddingConfig, KeyedJaggedTensor, PoolingType

from bet_torchrec import Budget, RowCounts
from bet_torchrec.axes import Basis
from bet_torchrec.embeddings import (
    BudgetedEmbeddingBagCollection,
    BudgetedEmbeddingCollection,
    CheckpointMismatchError,
    FusedBudgetedEmbeddingBagCollection,
    load_checkpoint,
    save_checkpoint,
)
from bet_torchrec.embeddings import bases as products
from bet_torchrec.embeddings.native.build import available
from bet_torchrec.errors import InvalidInputError, PlanError

ALL = pytest.mark.parametrize("plan", PLANS, ids=["fixed", "mixed", "trained"])


@ALL
@pytest.mark.parametrize(("layout", "row_order"), LAYOUTS)
@pytest.mark.parametrize("weighted", [False, True])
def test_forward_is_that_of_coordinates_times_axes(plan, layout, row_order, weighted):
    # torch's own pools no weighted means
    options = {"is_weighted": weighted, "tables": table_configs(PoolingType.SUM)}
    options = options if weighted else {}
    module = ours(plan, layout=layout, row_order=row_order, **options)
    bases = module.table_bases()
    expected = oracle(plan, bases, coordinates_of(plan, bases), **options)
    for seed in range(2):
        batch = bags(seed, weighted=weighted)
        assert_alike(module(batch), expected(batch))
    for name, table in module.full_tables().items():
        own = expected.embedding_bags[name].weight
        torch.testing.assert_close(table, own.detach(), atol=1e-5, rtol=1e-5)


@ALL
@pytest.mark.parametrize("layout", ["bucketed", "prefix"])
@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adagrad])
def test_trains_as_coordinates_times_axes(plan, layout, optimizer):
    module = ours(plan, layout=layout)
    bases = module.table_bases()
    expected = oracle(plan, bases, coordinates_of(plan, bases))
    target = torch.randn(7, expected(bags()).values().shape[1])
    both = [(m, optimizer(m.parameters(), lr=0.005)) for m in (module, expected)]
    for step in range(4):
        for made, own in both:
            own.zero_grad()
            (made(bags(step)).values() - target).square().sum().backward()
            own.step()
    for name, table in module.full_tables().items():
        own = expected.embedding_bags[name].weight.detach()
        torch.testing.assert_close(table, own, atol=1e-4, rtol=1e-4)
    for name, basis in module.table_bases().items():
        moved = not torch.equal(basis.axes, bases[name].axes)
        assert moved is (plan[name].basis == "trained")


@ALL
def test_parameters_and_state_are_what_the_plan_counts(plan):
    training = Budget.bytes(10**6, purpose="training", dtype="fp32", optimizer="adam")
    plan = replace(plan, budget=training)
    module = ours(plan)
    optimizer = torch.optim.Adam(module.parameters())
    module(bags()).values().sum().backward()
    optimizer.step()
    held = sum(weight.nbytes for weight in module.parameters())
    held += sum(b.nbytes for name, b in module.named_buffers() if name.startswith("bases."))
    held += sum(t.nbytes for s in optimizer.state.values() for t in s.values() if t.ndim)
    assert held + module.id_map_bytes == plan.cost()


def test_begins_as_a_prefix_and_resets_to_it():
    torch.manual_seed(0)
    module = BudgetedEmbeddingBagCollection(TABLES, PLANS[0])
    assert torch.equal(module.table_bases()["user"].axes, torch.eye(12))
    for table in module.full_tables().values():
        assert table.isfinite().all()
    module.bases.put(drawn_bases(PLANS[0]))
    module.reset_parameters()
    assert torch.equal(module.table_bases()["tag"].axes, torch.eye(5))


def test_principal_axes_of_a_full_table_weighted_by_its_counts():
    counts = np.random.default_rng(0).integers(0, 9, 40)
    module = BudgetedEmbeddingBagCollection(TABLES, with_bases({"user": "fixed"}))
    module.load_full_tables(VALUES, counts={"user": counts})
    weighted = VALUES["user"].double() * torch.from_numpy(counts).double().sqrt()[:, None]
    right = torch.linalg.svd(weighted, full_matrices=False).Vh
    found = module.table_bases()["user"].axes.double()
    torch.testing.assert_close((found @ right.T).abs(), torch.eye(12).double(), atol=1e-4, rtol=0)
    sizes = torch.from_numpy(PLAN.sizes("user")).long()
    kept = (VALUES["user"].double() @ found.T) * (torch.arange(12) < sizes[:, None])
    torch.testing.assert_close(
        module.full_tables()["user"].double(), kept @ found, atol=1e-5, rtol=0
    )
    same = BudgetedEmbeddingBagCollection(TABLES, module.plan)
    same.load_full_tables(VALUES, counts={"user": RowCounts.from_rows(counts)})
    assert torch.equal(same.table_bases()["user"].axes, module.table_bases()["user"].axes)
    same.load_full_tables(VALUES, counts={"user": np.zeros(40)})  # as without counts
    plain = module.load_full_tables(VALUES).table_bases()["user"]
    assert torch.equal(same.table_bases()["user"].axes, plain.axes)


@ALL
def test_a_round_trip_through_full_tables_keeps_everything(plan):
    module, other = ours(plan), ours(plan, layout="prefix")
    other.load_full_tables(module.full_tables(), bases=module.table_bases())
    torch.testing.assert_close(
        other(bags()).values(), module(bags()).values(), atol=1e-4, rtol=1e-4
    )


@ALL
def test_state_dicts_and_checkpoints(plan, tmp_path):
    module, other = ours(plan), BudgetedEmbeddingBagCollection(TABLES, plan)
    other.load_state_dict(module.state_dict())
    assert torch.equal(other(bags()).values(), module(bags()).values())
    save_checkpoint(module, tmp_path / "c", torch.optim.Adam(module.parameters()))
    third = BudgetedEmbeddingBagCollection(TABLES, plan)
    load_checkpoint(third, tmp_path / "c", torch.optim.Adam(third.parameters()))
    assert torch.equal(third(bags()).values(), module(bags()).values())
    for table in plan.tables:
        if not table.axes:
            continue
        swapped = {"fixed": "trained", "trained": None}[table.basis]
        kinds = {t.name: t.basis for t in plan.tables} | {table.name: swapped}
        wrong = BudgetedEmbeddingBagCollection(TABLES, with_bases(kinds))
        with pytest.raises(CheckpointMismatchError, match=f"{table.name}.*basis"):
            load_checkpoint(wrong, tmp_path / "c", optimizer_state=False)


@ALL
def test_batches_without_examples_and_rows_without_entries(plan):
    module = ours(plan)
    empty = KeyedJaggedTensor(
        keys=list(ROWS), values=torch.empty(0, dtype=torch.int64), lengths=torch.empty(0).long()
    )
    assert module(empty).values().shape == (0, 12 + 12 + 8 + 8 + 3 + 5)
    module(empty).values().sum().backward()
    assert not module(bags()).to_dict()["gone"].any()
    nothing = with_bases(
        {t.name: "trained" for t in TABLES},
        replace(PLAN, tables=tuple(_dropped(t) for t in PLAN.tables)),
    )
    gone = BudgetedEmbeddingBagCollection(TABLES, nothing)
    out = gone.load_full_tables(VALUES)(bags())
    assert out.length_per_key() == module(bags()).length_per_key()
    assert not out.values().any()
    assert not gone.table_bases()


def _dropped(table):
    bucket = replace(table.buckets[0], width=0, rows=table.rows)
    return replace(table, buckets=(bucket,), order=None)


@pytest.mark.parametrize("rule", ["sgd", "rowwise_adagrad"])
def test_the_fused_step(rule):
    plan = PLANS[1]
    module, twin = ours(plan), ours(plan)
    fused = FusedBudgetedEmbeddingBagCollection(module, optimizer=rule, lr=0.05)
    axes = torch.optim.SGD(module.bases.parameters(), lr=0.05)
    other = FusedBudgetedEmbeddingBagCollection(twin, optimizer=rule, lr=0.05)
    for step in range(3):
        axes.zero_grad()
        fused(bags(step)).values().square().sum().backward()
        axes.step()
    assert not torch.equal(module.table_bases()["user"].axes, twin.table_bases()["user"].axes)
    assert torch.equal(module.table_bases()["tag"].axes, twin.table_bases()["tag"].axes)
    # one step by hand: SGD through the unfused collection
    if rule == "sgd":
        plain = ours(plan)
        steps = torch.optim.SGD(plain.parameters(), lr=0.05)
        plain(bags(0)).values().square().sum().backward()
        steps.step()
        other_axes = torch.optim.SGD(twin.bases.parameters(), lr=0.05)
        other(bags(0)).values().square().sum().backward()
        other_axes.step()
        for name, table in plain.full_tables().items():
            torch.testing.assert_close(table, twin.full_tables()[name], atol=1e-5, rtol=1e-5)
    assert set(other.fused_optimizer.params) == {
        f"module.embedding_bag_collection.embedding_bags.{b.name}.weight"
        for own in twin.blocks.values()
        for b in own
    }


def test_half_precision():
    plan = with_bases(
        {"user": "trained"},
        budget=Budget.bytes(10**6, purpose="training", dtype="fp16", optimizer="sgd"),
    )
    module = ours(plan)
    bases = module.table_bases()
    expected = oracle(plan, bases, coordinates_of(plan, bases))(bags()).values()
    found = module(bags()).values()
    torch.testing.assert_close(found.float(), expected, atol=0.05, rtol=0.01)
    found.float().sum().backward()
    axes = module.bases.axes("user")
    assert axes.dtype == axes.grad.dtype == torch.float32


def test_one_product_for_several_features_of_a_table():
    # Two slots of "user" side by side: their gradients add up in its axes.
    plan = PLANS[2]
    module = ours(plan)
    bases = module.table_bases()
    expected = oracle(plan, bases, coordinates_of(plan, bases))
    for made in (module, expected):
        out = made(bags()).to_dict()
        (out["friend"].square().sum() + out["me"].tanh().sum()).backward()
    own = expected.embedding_bags["user"].parametrizations.weight[1].axes.grad
    torch.testing.assert_close(module.bases.axes("user").grad, own, atol=1e-3, rtol=1e-4)


def test_batched_products_as_on_cuda(monkeypatch):
    # "a", "b" and "c" have axes of one shape, "d" has none, "e" other ones.
    configs = [config(n, 9, d, f"f_{n}") for n, d in zip("abcde", (6, 6, 6, 6, 8), strict=True)]
    sizes = {t.name: np.arange(9)[::-1] % 4 + (t.name == "e") for t in configs}
    kinds = {"a": "trained", "b": "fixed", "c": "trained", "e": "trained"}
    plan = with_bases(kinds, plan_of(configs, sizes))
    batch = bags(rows={f"f_{n}": 9 for n in "abcde"})
    found = []
    for batched in (False, True):
        monkeypatch.setattr(products, "_batched", lambda _, batched=batched: batched)
        module = BudgetedEmbeddingBagCollection(configs, plan)
        module.load_full_tables(values_of(configs), bases=drawn_bases(plan))
        values = module(batch).values()
        values.square().sum().backward()
        found.append([values, *(weight.grad for weight in module.parameters())])
    assert len(found[0]) > 4
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)
    runs = products._runs(module.bases._products, batched=True)
    assert [[product.table for product in run] for run in runs] == [["a", "b", "c"], [None], ["e"]]


@ALL
def test_graphs_take_the_same_product_in_plain_operators(plan):
    module = ours(plan)
    values = torch.randn(5, module.merger.width)
    found = []
    for product in (module.bases, module.bases._one_by_one):
        module.zero_grad()
        start = values.clone().requires_grad_()
        out = product(start)
        out.square().sum().backward()
        found.append([out, start.grad, *(axes.grad for axes in module.bases.parameters())])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


class Flat(torch.nn.Module):
    """Tensors in, tensors out."""

    def __init__(self, tables):
        super().__init__()
        self.tables = tables

    def forward(self, ids, lengths):
        features = KeyedJaggedTensor(keys=list(ROWS), values=ids, lengths=lengths)
        return self.tables(features).values()


@pytest.mark.slow
def test_compiled_as_one_graph():
    if not available():
        pytest.skip("no C++ compiler")
    module, one = ours(PLANS[1]), bags()
    expected = module(one).values()
    expected.square().sum().backward()
    gradients = [weight.grad.clone() for weight in module.parameters()]
    module.zero_grad()
    compiled = torch.compile(Flat(module), fullgraph=True, backend="aot_eager")
    found = compiled(one.values(), one.lengths())
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    found.square().sum().backward()
    for weight, gradient in zip(module.parameters(), gradients, strict=True):
        torch.testing.assert_close(weight.grad, gradient, atol=1e-3, rtol=1e-4)


def test_on_meta():
    module = BudgetedEmbeddingBagCollection(TABLES, PLANS[1], device="meta")
    assert module.bases.axes("user").is_meta
    assert module(bags()).values().shape == (7, 48)


def test_what_does_not_fit_is_named():
    module = ours(PLANS[1])
    with pytest.raises(InvalidInputError, match="bases of user, tag, got one of 'item'"):
        module.load_full_tables(VALUES, bases={"item": Basis(torch.eye(8))})
    with pytest.raises(InvalidInputError, match="'user': expected 12 or more axes of 12 columns"):
        module.load_full_tables(VALUES, bases={"user": Basis(torch.eye(11, 12))})
    with pytest.raises(InvalidInputError, match=r"'user': expected \(40, 12 or more\)"):
        module.load_full_tables({**VALUES, "user": VALUES["user"][:, :11]})
    with pytest.raises(PlanError, match="at most 60"):
        with_bases(KINDS[0], budget=Budget.parameters(60))


@pytest.mark.parametrize("kind", ["fixed", "trained"])
@pytest.mark.parametrize("layout", ["bucketed", "prefix"])
def test_unpooled(kind, layout):
    plan = with_bases({"user": kind, "tag": kind, "gone": kind}, sequence_cases.PLAN)
    module = BudgetedEmbeddingCollection(sequence_cases.TABLES, plan, layout=layout)
    module.load_full_tables(sequence_cases.VALUES, bases=drawn_bases(plan))
    bases = module.table_bases()
    values = {
        name: torch.nn.functional.pad(bases[name].coordinates(table), (0, 12 - bases[name].width))
        if name in bases
        else table
        for name, table in sequence_cases.VALUES.items()
    }
    expected = sequence_cases.oracle(plan=plan, values=values)
    for table in plan.tables:
        if table.axes:
            turn(expected.embeddings[table.name], table, bases[table.name].axes)
    target = torch.randn(3, 12)
    both = [(m, torch.optim.SGD(m.parameters(), lr=0.01)) for m in (module, expected)]
    for step in range(3):
        found = []
        for made, own in both:
            out = made(bags(step))
            found.append(torch.cat([out[key].values() for key in sorted(out)]))
            own.zero_grad()
            (found[-1].square().sum() + (found[-1][:3] - target).square().sum()).backward()
            own.step()
        torch.testing.assert_close(*found, atol=1e-4, rtol=1e-4)
    for name, table in module.full_tables().items():
        own = expected.embeddings[name].weight.detach()
        torch.testing.assert_close(table, own, atol=1e-4, rtol=1e-4)
    assert isinstance(module.tables[0], EmbeddingConfig)


def test_mean_pooling_is_of_rows():
    mean = replace(TABLES[0], pooling=PoolingType.MEAN, feature_names=["friend", "me"])
    module = BudgetedEmbeddingBagCollection([mean], PLANS[0]).load_full_tables(
        {"user": VALUES["user"]}
    )
    rows, batch = module.full_tables()["user"], bags()
    for key, out in module(batch).to_dict().items():
        for i, ids in enumerate(batch[key].values().split(batch[key].lengths().tolist())):
            wanted = rows[ids].mean(0) if len(ids) else torch.zeros(12)
            torch.testing.assert_close(out[i], wanted, atol=1e-5, rtol=1e-5)
