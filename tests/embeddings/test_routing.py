"""Routing against a loop over ids in plain Python."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from masked_cases import LAYOUTS, ROWS, SIZES, bags, plan_of, table_configs
from torchrec import KeyedJaggedTensor

from bet_torchrec.embeddings import IdRangeError, blocks, routing, routing_torch
from bet_torchrec.embeddings.routing import Router, Slot, block_key, rank_of_id
from bet_torchrec.errors import InvalidInputError

TABLES = table_configs()
PLAN = plan_of(TABLES, SIZES)
SLOTS = [
    Slot(feature, table.name, f"{feature}@{table.name}")
    for table in TABLES
    for feature in table.feature_names
]


@pytest.fixture(params=["operator", "torch", "large"], autouse=True, scope="module")
def way(request):
    """By our operator, and as it is done without a compiler: at once, and slot by slot."""
    with pytest.MonkeyPatch.context() as patched:
        if request.param != "operator":
            patched.setattr(routing, "available", lambda: False)
            if request.param == "large":
                patched.setattr(routing_torch, "LARGE", 0)
                patched.setattr(routing_torch, "_PIECE", 7)
        elif not routing.available():
            pytest.skip("no C++ compiler")
        yield request.param


def router(layout="bucketed", row_order="ranked", slots=SLOTS, **options):
    laid = {t.name: blocks(PLAN[t.name], layout, row_order) for t in TABLES}
    return Router(slots, {t.name: PLAN[t.name] for t in TABLES}, laid, **options), laid


def rows_by_loop(kjt, slots, laid, weighted):
    """{key: [each bag's (row, weight) pairs]}."""
    found, given_bags = {}, bags_of(kjt, weighted)
    for slot in slots:
        for block in laid[slot.table]:
            row = {int(i): row for row, i in enumerate(block.ids(PLAN[slot.table]))}
            found[block_key(slot, block)] = [
                [(row[i], weight) for i, weight in bag if i in row]
                for bag in given_bags[slot.feature]
            ]
    return found


def bags_of(kjt, weighted):
    """{key: [each bag's (value, weight) pairs]}; TorchRec's own to_dict takes no empty batch."""
    lengths = kjt.lengths().tolist()
    assert sum(lengths) == len(kjt.values()) == sum(kjt.length_per_key())
    weights = kjt.weights().tolist() if weighted else [None] * len(kjt.values())
    pairs = iter(zip(kjt.values().tolist(), weights, strict=True))
    made = iter([[next(pairs) for _ in range(n)] for n in lengths])
    names = kjt.keys()
    return {name: [next(made) for _ in range(kjt.stride())] for name in names}


@settings(max_examples=40, deadline=None)
@given(
    choice=st.sampled_from(LAYOUTS),
    seed=st.integers(0, 1000),
    batch=st.integers(0, 5),
    most=st.integers(0, 4),
    weighted=st.booleans(),
    dtype=st.sampled_from([torch.int32, torch.int64]),
    chosen=st.sets(st.sampled_from(SLOTS), min_size=1),
)
def test_every_id_goes_to_its_blocks_rows(choice, seed, batch, most, weighted, dtype, chosen):
    slots = [slot for slot in SLOTS if slot in chosen]
    route, laid = router(*choice, slots=slots, is_weighted=weighted)
    kjt = bags(seed, batch, most=most, weighted=weighted, dtype=dtype)
    routed = route(kjt)
    assert routed.keys() == route.keys
    assert routed.stride() == batch
    assert routed.values().dtype == dtype
    assert routed.lengths().dtype == torch.int32
    assert bags_of(routed, weighted) == rows_by_loop(kjt, slots, laid, weighted)


@pytest.mark.parametrize(("layout", "row_order"), LAYOUTS)
def test_one_id_a_bag(layout, row_order):
    """The commonest bags have a way of their own."""
    route, laid = router(layout, row_order)
    ids = [torch.arange(40) % n for n in ROWS.values()]
    kjt = KeyedJaggedTensor(
        keys=list(ROWS), values=torch.cat(ids), lengths=torch.ones(40 * len(ROWS)).int()
    )
    assert bags_of(route(kjt), False) == rows_by_loop(kjt, SLOTS, laid, False)


def test_features_are_found_by_name_and_others_ignored():
    route, _ = router()
    kjt = bags()
    shuffled = KeyedJaggedTensor.concat(
        [
            kjt,
            KeyedJaggedTensor(keys=["x"], values=torch.tensor([-9]), lengths=torch.eye(7)[0].int()),
        ]
    ).permute([3, 5, 1, 0, 4, 2])
    assert bags_of(route(kjt), False) == bags_of(route(shuffled), False)


def test_offsets_instead_of_lengths():
    route, _ = router()
    kjt = bags()
    same = KeyedJaggedTensor(keys=kjt.keys(), values=kjt.values(), offsets=kjt.offsets())
    assert bags_of(route(kjt), False) == bags_of(route(same), False)


@pytest.mark.parametrize("batch", [0, 3])
def test_weights_are_left_out_where_they_are_not_wanted(batch):
    routed = router()[0](bags(batch=batch, weighted=True))
    assert routed.weights_or_none() is None
    with pytest.raises(InvalidInputError, match="is_weighted=True expects"):
        router(is_weighted=True)[0](bags(batch=batch))


def test_weights_get_their_gradients():
    route, laid = router("prefix", is_weighted=True)
    kjt = bags(weighted=True)
    weights = kjt.weights().requires_grad_()
    route(kjt).weights().sum().backward()
    per_slot = rows_by_loop(kjt, SLOTS, laid, True)
    assert weights.grad.sum() == sum(len(bag) for own in per_slot.values() for bag in own)


@pytest.mark.parametrize("more", [-1, 1, 10**6])
def test_lengths_that_contradict_the_ids_are_refused(more):
    kjt = bags(2)
    lengths = kjt.lengths().clone()
    lengths[int(lengths.argmax())] += more
    bad = KeyedJaggedTensor(keys=kjt.keys(), values=kjt.values(), lengths=lengths)
    with pytest.raises(InvalidInputError, match="as many ids as there are"):
        router()[0](bad)


def test_scale_is_one_over_the_length_of_mean_bags():
    slots = [Slot(s.feature, s.table, s.key, mean=s.table == "item") for s in SLOTS]
    route, _ = router(slots=slots)
    kjt = bags().permute([4, 2, 0, 1, 3])
    means = [slot for slot in slots if slot.mean]
    for same in (kjt, route.select(kjt)):
        found = route.scale(same)
        assert found.shape == (7, len(means))
        for number, slot in enumerate(means):
            lengths = kjt[slot.feature].lengths().clamp_min(1)
            assert torch.equal(found[:, number], 1 / lengths.float())
    assert router()[0].scale(kjt) is None


def test_missing_features_are_named():
    with pytest.raises(InvalidInputError, match="got friend, me, item: shared, gone missing"):
        router()[0](bags(rows={"friend": 40, "me": 40, "item": 23}))


def test_batch_sizes_that_vary_are_refused():
    kjt = KeyedJaggedTensor(
        keys=["friend", "me"],
        values=torch.tensor([1, 2, 3]),
        lengths=torch.ones(3).int(),
        stride_per_key_per_rank=[[1], [2]],
    )
    with pytest.raises(InvalidInputError, match="the same batch size.*pad with empty bags"):
        router(slots=SLOTS[:2])[0](kjt)


@pytest.mark.parametrize("slots", [[slot] for slot in SLOTS] + [SLOTS], ids=str)
@pytest.mark.parametrize(("layout", "row_order"), LAYOUTS)
def test_ids_out_of_range_are_named(layout, row_order, slots):
    """Mapped and ranked tables, alone and together, one id too many, one below and far off."""
    route, _ = router(layout, row_order, slots=slots)
    for slot in slots:
        rows = PLAN[slot.table].rows
        for wrong in (-1, rows, -(2**31), 2**31 - 1, 2**40, -(2**40)):
            kjt = bags(1)
            at = int(kjt.offset_per_key()[kjt.keys().index(slot.feature)])
            kjt.values()[at + 1] = wrong
            with pytest.raises(IdRangeError) as raised:
                route(kjt)
            assert f"feature {slot.feature!r}: ids of table" in str(raised.value)
            assert f"got {wrong} (and 0 more)" in str(raised.value)
            assert isinstance(raised.value, IndexError)


def test_one_feature_in_tables_of_unlike_rows_is_held_to_each():
    route, _ = router()
    kjt = bags(1)
    at = int(kjt.offset_per_key()[kjt.keys().index("shared")])
    kjt.values()[at] = 15  # "item" has it, "tag" has not
    with pytest.raises(IdRangeError, match="'shared': ids of table 'tag' should be 0 to 8, got 15"):
        route(kjt)
    router(slots=SLOTS[:4])[0](kjt)


@given(order=st.permutations(range(30)))
def test_rank_of_id_is_the_inverse(order):
    order = np.array(order, dtype=np.int32)
    ranks = rank_of_id(order)
    assert ranks.dtype == np.int32
    assert np.array_equal(order[ranks], np.arange(30))


def test_maps_take_what_the_budget_counts():
    """4 bytes a row of tables whose ids are no ranks, however many features look them up."""
    route, _ = router()
    mapped = [t for t in TABLES if PLAN[t.name].order is not None]
    assert [t.name for t in mapped] == ["user", "tag"]
    assert route.id_map_bytes == 4 * (40 + 9)
    assert router(slots=SLOTS[2:4])[0].id_map_bytes == 0
    for table in TABLES:
        found, order = route.id_map(table.name), PLAN[table.name].order
        assert (found is None) == (order is None)
        assert found is None or np.array_equal(order[found.numpy()], np.arange(len(order)))


@pytest.mark.gpu
@pytest.mark.parametrize(("layout", "row_order"), LAYOUTS)
def test_the_gpu_routes_alike(layout, row_order):
    route, _ = router(layout, row_order)
    for kjt in (bags(), bags(batch=0), bags(3, most=1)):
        here, there = route(kjt), route(kjt.to(torch.device("cuda")))
        assert bags_of(here, False) == bags_of(there.to(torch.device("cpu")), False)
    bad = bags(1)
    bad.values()[3] = 1000
    with pytest.raises(IdRangeError):
        route(bad.to(torch.device("cuda")))
