"""The fused CPU step as a module like any other: copied, saved, loaded, cast, quantised, shared."""

from __future__ import annotations

import copy
import pickle
import shutil
import threading

import pytest
import torch
from sharded_cases import batch, full_tables, make_module, make_plan
from torch import nn
from torchrec import KeyedJaggedTensor

from bet_torchrec.embeddings import (
    FusedBudgetedEmbeddingBagCollection,
    QuantizedBudgetedEmbeddingBagCollection,
    load_checkpoint,
    quantize,
    save_checkpoint,
)
from bet_torchrec.embeddings.native import build
from bet_torchrec.errors import InvalidInputError

pytestmark = pytest.mark.skipif(
    not any(shutil.which(name) for name in ("g++", "c++", "clang++")), reason="no C++ compiler"
)
OPTIMIZERS = ("sgd", "rowwise_adagrad", "adagrad")
LR = 0.05


def fused(
    optimizer: str = "adagrad", *, empty: bool = False
) -> FusedBudgetedEmbeddingBagCollection:
    module = make_module(make_plan())
    if not empty:
        module.load_full_tables(full_tables())
    return FusedBudgetedEmbeddingBagCollection(module, optimizer=optimizer, lr=LR)


def train(model: nn.Module, steps: range) -> nn.Module:
    for step in steps:
        kjt, target = batch(step)
        (model(kjt).values() - target).square().sum(1).mean().backward()
    return model


def assert_same(one: FusedBudgetedEmbeddingBagCollection, other) -> None:
    found, wanted = one.module.full_tables(), other.module.full_tables()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    for (_, a), (_, b) in zip(
        one.states.named_buffers(), other.states.named_buffers(), strict=True
    ):
        assert torch.equal(a, b)


def pickled(model: nn.Module) -> nn.Module:
    return pickle.loads(pickle.dumps(model))


@pytest.mark.parametrize("copied", [copy.deepcopy, pickled])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_copy_trains_itself_and_goes_on_alike(optimizer, copied):
    model = train(fused(optimizer), range(3))
    other = copied(model)
    assert_same(other, model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    train(other, range(3, 6))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not torch.equal(other.module.full_tables()["a"], model.module.full_tables()["a"])
    assert_same(train(model, range(3, 6)), other)
    other.lr = 1.0
    assert model.lr == LR


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_checkpoint_has_its_state(optimizer, tmp_path):
    straight = train(fused(optimizer), range(6))
    model = train(fused(optimizer), range(3))
    save_checkpoint(nn.Sequential(model), tmp_path / "saved")
    other = nn.Sequential(fused(optimizer, empty=True))
    load_checkpoint(other, tmp_path / "saved")
    assert_same(train(other, range(3, 6))[0], straight)


@pytest.mark.parametrize("optimizer", ["rowwise_adagrad", "adagrad"])
def test_its_optimizer_has_its_state_by_name(optimizer):
    model, other = train(fused(optimizer), range(3)), fused(optimizer)
    assert set(model.fused_optimizer.params) == {name for name, _ in model.named_parameters()}
    saved = copy.deepcopy(model.fused_optimizer.state_dict())
    assert len(saved["state"]) == len(list(model.parameters()))
    other.load_state_dict(model.state_dict())
    other.fused_optimizer.load_state_dict(saved)
    assert_same(train(other, range(3, 6)), train(model, range(3, 6)))


def test_a_schedule_sets_the_rate_through_the_optimizer():
    slow, model = fused("sgd"), fused("sgd")
    slow.lr = LR / 2
    optimizer = model.fused_optimizer
    optimizer.param_groups[0]["lr"] = LR / 2
    optimizer.zero_grad()
    assert_same(train(model, range(2)), train(slow, range(2)))
    optimizer.step()
    assert_same(model, slow)
    with pytest.raises(InvalidInputError, match="lr should be positive"):
        model.lr = float("nan")


def test_loading_by_assignment_is_what_it_trains_from():
    source = fused("adagrad")
    model = fused("adagrad", empty=True)
    model.load_state_dict(copy.deepcopy(source.state_dict()), assign=True)
    assert_same(train(model, range(3)), train(source, range(3)))
    held = model.fused_optimizer
    assert all(held.params[name] is weight for name, weight in model.named_parameters())


def test_another_type_or_device_is_refused_until_it_is_back():
    model, twin = train(fused(), range(2)), train(fused(), range(2))
    with pytest.raises(InvalidInputError, match="fp32 on the CPU, contiguous, got torch.float64"):
        train(model.double(), range(1))
    assert_same(train(model.float(), range(2, 4)), train(twin, range(2, 4)))
    kjt, _ = batch(0)
    with pytest.raises(InvalidInputError, match="ids should be on the CPU, got meta"):
        model(kjt.to(torch.device("meta")))
    with pytest.raises(InvalidInputError, match="torch.float32 on meta"):
        fused().to("meta")(kjt)
    block = model.module.blocks["a"][0]
    weight = model.module.weight(block)
    weight.data = weight.data.t().contiguous().t()
    with pytest.raises(InvalidInputError, match=f"block '{block.name}'.*contiguous"):
        model(kjt)
    weight.data = weight.data[:-1].contiguous()
    with pytest.raises(InvalidInputError, match="those of the plan"):
        model(kjt)


def test_quantised_it_serves_what_it_trained():
    model = nn.Sequential(train(fused(), range(3)))
    served = quantize(model, precision="int8")
    assert isinstance(served[0], QuantizedBudgetedEmbeddingBagCollection)
    wanted = quantize(model[0].module, precision="int8")
    kjt, _ = batch(0)
    assert torch.equal(served(kjt).values(), wanted(kjt).values())
    alone = quantize(model[0], precision="int8")
    assert torch.equal(alone(kjt).values(), wanted(kjt).values())


def test_threads_lose_no_update():
    """Whole numbers, so that sums are exact in whatever order."""
    model = fused("sgd")
    model.lr = 1.0
    for weight in model.parameters():
        weight.data.zero_()
    kjt, target = batch(0)
    ones = torch.ones(len(target), model.module.merger.width)

    def work() -> None:
        for _ in range(50):
            model(kjt).values().backward(ones)

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    together = {name: table.clone() for name, table in model.module.full_tables().items()}
    for weight in model.parameters():
        weight.data.zero_()
    for _ in range(200):
        model(kjt).values().backward(ones)
    alone = model.module.full_tables()
    assert all(torch.equal(together[name], alone[name]) for name in alone)
    assert any(table.any() for table in alone.values())


def contradictions(kjt: KeyedJaggedTensor) -> dict[str, KeyedJaggedTensor]:
    """What a KeyedJaggedTensor lets one say about ids that aren't there, by the error's words."""
    ids, lengths = kjt.values(), kjt.lengths()
    more, cut = lengths.clone(), lengths.clone()
    more[-1] += 1000
    cut[-1] += 1
    steps = kjt.offsets().clone()
    steps[2] = 2**40
    made = {
        "as many ids as there are": {"lengths": more},
        "as many ids as there are, ": {"lengths": cut},
        "from 0 on": {"lengths": lengths - lengths.max() - 1},
        "rise from 0": {"offsets": steps},
        "rise from 0 to": {"offsets": kjt.offsets().flip(0)},
    }
    return {
        said: KeyedJaggedTensor(keys=kjt.keys(), values=ids, **given)
        for said, given in made.items()
    }


def test_a_batch_that_contradicts_itself_changes_nothing():
    model = fused("rowwise_adagrad")
    before = model.module.full_tables()
    kjt, _ = batch(0)
    for said, bad in contradictions(kjt).items():
        with pytest.raises(InvalidInputError, match=said):
            model(bad).values().sum().backward()
    after = model.module.full_tables()
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_bag_weights_that_are_too_few():
    module = make_module(make_plan(), is_weighted=True).load_full_tables(full_tables())
    model = FusedBudgetedEmbeddingBagCollection(module, optimizer="sgd", lr=LR)
    kjt, _ = batch(0)
    for count in (0, 1, len(kjt.values()) - 1, len(kjt.values()) + 1):
        short = KeyedJaggedTensor(
            keys=kjt.keys(), values=kjt.values(), lengths=kjt.lengths(), weights=torch.ones(count)
        )
        with pytest.raises(InvalidInputError, match=f"weights should be one an id.*got {count}"):
            model(short)


def test_lengths_changed_between_forward_and_backward_are_noticed():
    model = fused("sgd")
    kjt, _ = batch(0)
    out = model(kjt).values()
    kjt.lengths()[0] += 1000
    with pytest.raises(InvalidInputError, match="as many ids as there are"):
        out.sum().backward()


def test_the_operators_are_registered_as_torch_wants_them():
    """Schemas say what is changed, fake kernels what comes out: torch's own checks."""
    model = fused("adagrad")
    kjt, _ = batch(0)
    kjt = model.module.router.select(kjt)
    from bet_torchrec.embeddings.fused.module import _tables
    from bet_torchrec.embeddings.native.batch import batch_of

    given = (*batch_of(kjt, weighted=False), *_tables(model))
    weights = [weight.detach() for weight in model._weights()]
    operators = torch.ops.bet_torchrec
    checks = ("test_schema", "test_faketensor")
    width = model.module.merger.width
    torch.library.opcheck(operators.lookup.default, (weights, width, *given), test_utils=checks)
    out, places = operators.lookup(weights, width, *given)
    arguments = (weights, model._states(), torch.randn_like(out), places, 2, LR, 1e-8, *given)
    torch.library.opcheck(operators.update_.default, arguments, test_utils=checks)


def test_no_compiler_says_so(monkeypatch):
    build.library.cache_clear()
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(build.CompilerError, match="install g\\+\\+ or set CXX"):
        fused()(batch(0)[0])
    build.library.cache_clear()
