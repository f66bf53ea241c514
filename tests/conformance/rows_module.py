"""Rows: a collection is a module like any other."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from conformance_kinds import (
    BATCH,
    FEATURES,
    ROWS,
    Kind,
    assert_alike,
    assert_same_output,
    batch,
    loss_of,
    plan,
    values,
)
from conformance_table import TABLE, WORKS, missing, refused
from tensordict import TensorDict
from torchrec import JaggedTensor, KeyedJaggedTensor, KeyedTensor, PoolingType

GROUP = "A module like any other"
INPUT = "What goes in and what comes out"


@TABLE.row(GROUP, "`copy.deepcopy`")
def deep_copy(kind: Kind) -> None:
    for made in kind.both():
        twin = copy.deepcopy(made)
        with torch.no_grad():
            for weight in twin.parameters():
                weight.mul_(2)
        single, double = (kind.rows_of(module(batch())) for module in (made, twin))
        assert_alike(double, {name: 2 * value for name, value in single.items()})


@TABLE.row(GROUP, "`pickle`")
def pickled(kind: Kind) -> None:
    ours, theirs = (pickle.loads(pickle.dumps(made)) for made in kind.both())
    assert_same_output(kind, ours, theirs)


@TABLE.row(GROUP, "`torch.save` and `torch.load` of the state")
def saved(kind: Kind) -> None:
    for made, empty in zip(kind.both(), kind.both(), strict=True):
        file = io.BytesIO()
        torch.save(made.state_dict(), file)
        file.seek(0)
        with torch.no_grad():
            for weight in empty.parameters():
                weight.zero_()
        empty.load_state_dict(torch.load(file, weights_only=True), strict=True)
        assert_same_output(kind, empty, made)


@TABLE.row(GROUP, "`load_state_dict(strict=True)` with a key too many or too few")
def strict(kind: Kind) -> None:
    for made in kind.both():
        state = made.state_dict()
        first = next(iter(state))
        with pytest.raises(RuntimeError, match="Missing key"):
            made.load_state_dict({k: v for k, v in state.items() if k != first})
        with pytest.raises(RuntimeError, match="Unexpected key"):
            made.load_state_dict({**state, "foreign": torch.zeros(1)})


@TABLE.row(GROUP, "`load_state_dict(strict=False)` says what it left out")
def not_strict(kind: Kind) -> None:
    for made in kind.both():
        state = made.state_dict()
        first = next(iter(state))
        del state[first]
        found = made.load_state_dict({**state, "foreign": torch.zeros(1)}, strict=False)
        assert (found.missing_keys, found.unexpected_keys) == ([first], ["foreign"])


@TABLE.row(
    GROUP,
    "`load_state_dict` of a plain collection's state",
    pooled=refused("give them to load_full_tables"),
    unpooled=refused("give them to load_full_tables"),
)
def plain_state(kind: Kind) -> None:
    ours, theirs = kind.both()
    ours.load_state_dict(theirs.state_dict())


@TABLE.row(GROUP, "`load_state_dict(assign=True)`")
def assigned(kind: Kind) -> None:
    for made, other in zip(kind.both(), kind.both(), strict=True):
        state = {name: 2 * value for name, value in other.state_dict().items()}
        made.load_state_dict(state, assign=True)
        double = {k: 2 * v for k, v in kind.rows_of(other(batch())).items()}
        assert_alike(kind.rows_of(made(batch())), double)


@TABLE.row(GROUP, "`named_parameters`: groups by table")
def parameter_groups(kind: Kind) -> None:
    for made in kind.both():
        names = [name for name, _ in made.named_parameters()]
        for table in ROWS:
            parts = [name for name in names if name.split(".")[-2].split("/")[0] == table]
            assert parts
            names = [name for name in names if name not in parts]
        assert not names


@TABLE.row(GROUP, "`.to(dtype)`: half, bfloat16, double")
def dtypes(kind: Kind) -> None:
    for dtype in (torch.half, torch.bfloat16, torch.double):
        ours, theirs = (made.to(dtype) for made in kind.both())
        found, expected = (kind.rows_of(made(batch())) for made in (ours, theirs))
        for name, value in expected.items():
            assert found[name].dtype == value.dtype
            torch.testing.assert_close(found[name], value, atol=0.05, rtol=0.02)


@TABLE.row(GROUP, '`with torch.device("meta")`, then `to_empty` and `reset_parameters`')
def meta(kind: Kind) -> None:
    own = plan()
    with torch.device("meta"):
        both = kind.own(kind.tables(), own), kind.plain(tables=kind.tables())
    for made in both:
        assert all(weight.is_meta for weight in made.parameters())
        made.to_empty(device="cpu")
        for weight in made.parameters():
            weight.data.fill_(7)
        made.reset_parameters()
        if made is both[0]:  # TorchRec's own does nothing, as it was made on "meta"
            assert all(0 < w.abs().max() < 1 for w in made.parameters())


@TABLE.row(GROUP, "`.requires_grad_(False)` freezes")
def frozen(kind: Kind) -> None:
    for made in kind.both():
        made.requires_grad_(False)
        assert not any(rows.requires_grad for rows in kind.rows_of(made(batch())).values())


@TABLE.row(GROUP, "TorchRec's interface (`isinstance`)")
def interface(kind: Kind) -> None:
    from torchrec.modules import embedding_modules

    name = "EmbeddingBagCollectionInterface" if kind.pooled else "EmbeddingCollectionInterface"
    for made in kind.both():
        assert isinstance(made, getattr(embedding_modules, name))
    ours, theirs = kind.both()
    if kind.pooled:
        assert ours.is_weighted() == theirs.is_weighted()
        names = [[c.name for c in made.embedding_bag_configs()] for made in (ours, theirs)]
        assert names[0] == names[1]
    else:
        assert ours.embedding_names_by_table() == theirs.embedding_names_by_table()
        assert ours.embedding_dim() == theirs.embedding_dim()


@TABLE.row(INPUT, "int32 and int64 ids")
def id_types(kind: Kind) -> None:
    for dtype in (torch.int32, torch.int64):
        assert_same_output(kind, *kind.both(), batch(dtype=dtype))


@TABLE.row(INPUT, "features in another order, and some that nobody looks up")
def any_order(kind: Kind) -> None:
    extra = KeyedJaggedTensor(
        keys=["other"],
        values=torch.full((BATCH,), 999),
        lengths=torch.ones(BATCH, dtype=torch.int64),
    )
    shuffled = KeyedJaggedTensor.concat([extra, batch()]).permute([2, 0, 3, 1])
    assert_same_output(kind, *kind.both(), shuffled)


@TABLE.row(
    INPUT,
    "weighted features and the gradient of their weights",
    unpooled=missing("EmbeddingCollection ignores weights"),
)
def weighted(kind: Kind) -> None:
    gradients = []
    for made in kind.both(is_weighted=True):
        features = batch(weighted=True)
        features.weights().requires_grad_()
        loss_of(kind, made(features)).backward()
        gradients.append(features.weights().grad)
    torch.testing.assert_close(*gradients)
    assert_same_output(kind, *kind.both(is_weighted=True), batch(weighted=True))


@TABLE.row(
    INPUT,
    "batch sizes that differ between features",
    pooled=refused("every feature should have the same batch size"),
)
def variable_batches(kind: Kind) -> None:
    one = KeyedJaggedTensor(
        keys=list(FEATURES),
        values=torch.tensor([3, 1, 29, 0, 16, 2]),
        lengths=torch.tensor([1, 1, 0, 2, 1, 1]),
        stride_per_key_per_rank=[[1], [3], [2]],
        inverse_indices=(
            (list(FEATURES), torch.tensor([[0, 0, 0], [0, 1, 2], [1, 0, 1]]))
            if kind.pooled
            else None
        ),
    )
    assert_same_output(kind, *kind.both(), one)


@TABLE.row(INPUT, "an empty batch, and a loss of it", pooled=WORKS)
def no_ids(kind: Kind) -> None:
    one = KeyedJaggedTensor(
        keys=list(FEATURES),
        values=torch.zeros(0, dtype=torch.int64),
        lengths=torch.zeros(3 * BATCH, dtype=torch.int64),
    )
    assert_same_output(kind, *kind.both(), one)
    for made in kind.both():
        loss_of(kind, made(one)).backward()


@TABLE.row(INPUT, "`TensorDict`")
def tensor_dict(kind: Kind) -> None:
    parts = batch().to_dict()
    one = TensorDict(
        {
            key: torch.nested.nested_tensor_from_jagged(part.values(), part.offsets())
            for key, part in parts.items()
        },
        batch_size=[BATCH],
    )
    ours, theirs = kind.both()
    assert_alike(kind.rows_of(ours(one)), kind.rows_of(theirs(batch())))
    assert_alike(kind.rows_of(theirs(one)), kind.rows_of(theirs(batch())))


@TABLE.row(
    INPUT,
    "an id out of range",
    pooled=refused("ids of table 'a' should be 0 to 29, got 30"),
    unpooled=refused("ids of table 'a' should be 0 to 29, got 30"),
)
def out_of_range(kind: Kind) -> None:
    one = batch()
    one.values()[0] = 30
    ours, theirs = kind.both()
    with pytest.raises((RuntimeError, IndexError)):
        theirs(one)
    ours(one)


@TABLE.row(
    INPUT,
    "a feature is missing",
    pooled=refused("expected features f1, f2, f3, got f1, f2: f3 missing"),
    unpooled=refused("expected features f1, f2, f3, got f1, f2: f3 missing"),
)
def missing_feature(kind: Kind) -> None:
    ours, theirs = kind.both()
    one = batch().split([2, 1])[0]
    with pytest.raises(KeyError):
        theirs(one)
    ours(one)


@TABLE.row(
    INPUT,
    "`KeyedTensor.regroup`",
    unpooled=missing("the output is a dictionary, nothing to regroup"),
)
def regroup(kind: Kind) -> None:
    found, expected = (
        KeyedTensor.regroup([made(batch())], [["f3", "f1"], ["f2"]]) for made in kind.both()
    )
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


@TABLE.row(
    INPUT,
    "lengths, offsets, ids as weights (`need_indices`) of the output",
    pooled=missing("bags are pooled"),
)
def jagged(kind: Kind) -> None:
    found, expected = (made(batch()) for made in kind.both(need_indices=True))
    for key, one in expected.items():
        assert isinstance(found[key], JaggedTensor)
        for what in ("lengths", "offsets", "weights"):
            assert torch.equal(getattr(found[key], what)(), getattr(one, what)())


@TABLE.row(INPUT, "mean pooling", unpooled=missing("nothing is pooled"))
def mean(kind: Kind) -> None:
    ours = kind.own(kind.tables(pooling=PoolingType.MEAN), plan()).load_full_tables(values())
    theirs = kind.plain(tables=kind.tables(pooling=PoolingType.MEAN))
    for name, rows in values().items():
        theirs.embedding_bags[name].weight.data.copy_(rows)
    assert_same_output(kind, ours, theirs)
