"""MLET, MDE, hashing and quotient-remainder: what rows share, by hand, and what it costs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fitting_workbench import FittingWorkbench

from bet_torchrec.errors import InfeasibleBudgetError, InvalidInputError, MissingEvaluationError
from bet_torchrec.planning import Budget, RowCounts, TableSpec
from bet_torchrec.planning.sizers import MDE, MGQE, MLET, Hashing, QuotientRemainder, SizingProblem
from bet_torchrec.planning.sizers.mixed_dimensions import equal_popularity

TABLES = (TableSpec("user", 40, 8), TableSpec("item", 25, 4))
COUNTS = (np.arange(40) + 1, np.full(25, 3))  # users: the last id is the most frequent
SIZERS = {
    "mlet": MLET(factors=(2,)),
    "mde": MDE(blocks=3),
    "hashing": Hashing(),
    "qr": QuotientRemainder(),
    "mgqe": MGQE(),
}


def problem(budget, *, tables=TABLES, counts=COUNTS, seed=0, bench=None):
    return SizingProblem(
        tables=tables,
        counts=[RowCounts.from_rows(c) for c in counts],
        budget=budget,
        widths=(0, 1, 2, 4, 8),
        seed=seed,
        workbench=bench,
    )


@pytest.mark.parametrize("name", SIZERS)
@pytest.mark.parametrize("amount", [130, 200, 419, 10**6])
def test_promises(name, amount):
    found = SIZERS[name](problem(Budget.parameters(amount)))
    assert found.sizer == name
    assert found.cost() == found.parameters() <= amount
    again = SIZERS[name](problem(Budget.parameters(amount)))
    assert again == found
    assert again.fingerprint() == found.fingerprint()
    if amount < 10**6:
        assert SIZERS[name](problem(Budget.parameters(10**6))) != found
    module = found.build(3)
    for table in TABLES:
        whole = module.table(table.name)
        assert whole.shape == (table.num_embeddings, module.width)
        assert not whole[:, table.embedding_dim :].any()
        ids = torch.tensor([table.num_embeddings - 1, 0, 7, 7])
        assert torch.allclose(module.lookup(table.name, ids), whole[ids])
        assert torch.equal(found.build(3).table(table.name), whole)
        assert not torch.equal(found.build(4).table(table.name), whole)
    module.table("user").sum().backward()
    stored = sum(p.numel() for p in module.parameters())
    if name not in ("mlet", "mgqe"):  # which train more than they keep
        assert stored == found.parameters()
    found.build(0).load_state_dict(module.state_dict())


@pytest.mark.parametrize("name", SIZERS)
def test_more_than_enough_keeps_the_tables(name):
    assert SIZERS[name](problem(Budget.parameters(10**6))).parameters() == 40 * 8 + 25 * 4


@pytest.mark.parametrize("name", ["mlet", "mde"])
def test_too_little_is_an_error(name):
    tables = (TableSpec("t", 10, 4),)
    asked = problem(Budget.parameters(10), tables=tables, counts=[np.arange(10)])
    if name == "mde":  # 10 rows of one column and one map of 4
        with pytest.raises(InfeasibleBudgetError, match="at least 14 parameters"):
            MDE(blocks=3)(asked)
    else:
        assert MLET(factors=(2,))(asked).parameters() == 10


def test_hashing_keeps_a_share_of_rows_and_qr_tells_all_ids_apart():
    tables = (TableSpec("t", 100, 2),)
    asked = problem(Budget.parameters(60), tables=tables, counts=[np.ones(100, int)])
    hashed = Hashing()(asked)
    assert hashed.parameters() == 60  # 30 rows
    assert len(hashed.build(0).table("t").unique(dim=0)) <= 30
    pair = QuotientRemainder()(asked)
    # the largest m with m + ceil(100 / m) <= 30: 26 + 4
    assert pair.parameters() == (26 + 4) * 2
    assert len(pair.build(0).table("t").unique(dim=0)) == 100


@pytest.mark.parametrize(("compose", "row"), [("multiply", [8.0, -6.0]), ("add", [6.0, -1.0])])
def test_a_row_of_qr_by_hand(compose, row):
    tables = (TableSpec("t", 9, 2),)
    asked = problem(Budget.parameters(12), tables=tables, counts=[np.ones(9, int)])
    module = QuotientRemainder(compose=compose)(asked).build(0)
    with torch.no_grad():
        module.first["t"].copy_(torch.tensor([[1.0, 1.0], [5.0, 7.0], [2.0, -3.0]]))
        module.second["t"].copy_(torch.tensor([[0.0, 0.0], [4.0, 2.0], [9.0, 9.0]]))
    assert module.lookup("t", torch.tensor([5])).tolist() == [row]  # 5 = 1 * 3 + 2


def test_qr_narrows_where_two_tables_do_not_fit():
    tables = (TableSpec("t", 100, 8),)
    asked = problem(Budget.parameters(60), tables=tables, counts=[np.ones(100, int)])
    found = QuotientRemainder()(asked)
    assert found.build(0).width == 3  # 2 sqrt(100) rows of 3
    assert found.parameters() == 60


def test_mlet_collapses_to_what_it_reads_and_says_what_training_takes():
    found = MLET(factors=(4,))(problem(Budget.parameters(65 * 3)))
    assert found.parameters() == 65 * 3
    module = found.build(0)
    assert module.first["user"].shape == (40, 12)
    assert module.second["user"].shape == (12, 3)
    for name, collapsed in module.collapsed().items():
        assert torch.equal(collapsed, module.table(name))
    assert found.notes["in training"] == f"{65 * 12 + 2 * 12 * 3} weights"
    with torch.no_grad():
        module.first["item"][2] = torch.arange(12.0)
        module.second["item"].fill_(2.0)
    assert module.lookup("item", torch.tensor([2])).tolist() == [[132.0] * 3]


def test_mlet_s_factor_is_chosen_on_validation():
    class Prefers(FittingWorkbench):
        def error(self, embedding):
            return super().error(embedding) * 0 + (embedding.first["user"].shape[1] - 6) ** 2

    generator = torch.Generator().manual_seed(0)
    targets = {t.name: torch.randn(t.num_embeddings, 3, generator=generator) for t in TABLES}
    bench = Prefers(targets, steps=1)
    found = MLET(factors=(1, 2, 4), settings="brief")(
        problem(Budget.parameters(65 * 3), bench=bench, seed=4)
    )
    assert found.form.factor == 2
    assert [(seed, settings) for _, seed, settings, _ in bench.fits] == [(4, "brief")] * 3
    with pytest.raises(MissingEvaluationError, match="several factors"):
        MLET()(problem(Budget.parameters(65 * 3)))


def test_mde_cuts_by_popularity_and_maps_to_the_common_width():
    counts = RowCounts.from_rows([8, 2, 2, 2, 2])
    assert equal_popularity(counts, 2).tolist() == [1, 5]
    assert equal_popularity(counts, 1).tolist() == [5]
    assert equal_popularity(RowCounts.from_rows([0, 0]), 4).tolist() == [2]
    tables = (TableSpec("t", 20, 4),)
    # sqrt(38) : sqrt(2) = 4.4 : 1; 4 and 19 * 2 entries and a map of 2 x 4
    asked = problem(Budget.parameters(50), tables=tables, counts=[[2] * 19 + [38]])
    found = MDE(alpha=0.5, blocks=2)(asked)
    (blocks,) = found.form.tables
    assert (blocks.ends, blocks.widths) == ((1, 20), (4, 2))
    assert found.parameters() == 50
    assert found.bytes() == 50 * 4 + 20 * 4  # an id map: the last row comes first
    module = found.build(0)
    popular, others = module.rows["table_t"]
    assert torch.equal(module.table("t")[19], popular[0])
    assert torch.allclose(module.table("t")[0], others[0] @ module.maps["table_t"]["1"])


@pytest.mark.parametrize("name", SIZERS)
def test_tables_may_be_called_anything(name):
    tables = tuple(
        TableSpec(t, 10, 4) for t in ("items", "keys", "training", "requires_grad", "a.b")
    )
    found = SIZERS[name](
        problem(Budget.parameters(150), tables=tables, counts=[np.ones(10, int)] * 5)
    )
    module = found.build(0)
    read = module.full_tables()
    assert list(read) == [table.name for table in tables]
    for table in tables:
        ids = torch.arange(10)
        assert torch.allclose(module.lookup(table.name, ids), read[table.name])
    found.build(1).load_state_dict(module.state_dict())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MLET(factors=()), "factors should be ints"),
        (lambda: MLET(init_std=0), "init_std should be positive"),
        (lambda: MDE(alpha=2), "alpha should be from 0 to 1"),
        (lambda: MDE(blocks=0), "blocks should be an int"),
        (lambda: Hashing(init_std=-1), "init_std should be positive"),
        (lambda: QuotientRemainder(compose="x"), "'multiply' or 'add', got 'x'"),
    ],
)
def test_bad_settings_are_refused(make, message):
    with pytest.raises(InvalidInputError, match=message):
        make()
