"""Serving in one pass: the same numbers as through TorchRec's kernels, whatever comes in."""

from __future__ import annotations

import copy
import pickle
import shutil
import warnings

import numpy as np
import pytest
import torch
from serving_cases import FEATURES, PRECISIONS, TABLES, inference, make_plan, trained
from torch._subclasses.fake_tensor import FakeTensorMode
from torchrec import KeyedJaggedTensor

from bet_torchrec import SizePlan
from bet_torchrec.embeddings import (
    IdRangeError,
    QuantizedBudgetedEmbeddingBagCollection,
    quantize,
)
from bet_torchrec.embeddings.native import build
from bet_torchrec.embeddings.quantization import one_pass
from bet_torchrec.errors import InvalidInputError
from bet_torchrec.planning.plan import Bucket, TablePlan

pytestmark = pytest.mark.skipif(
    not any(shutil.which(name) for name in ("g++", "c++", "clang++")), reason="no C++ compiler"
)


def bags(
    batch: int = 9, *, weighted: bool = False, dtype: torch.dtype = torch.int64, seed: int = 0
) -> KeyedJaggedTensor:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, 5, (3, batch))
    ids = [rng.integers(0, 33 if f == 2 else 60, lengths[f].sum()) for f in range(3)]
    values = torch.from_numpy(np.concatenate(ids)).to(dtype)
    return KeyedJaggedTensor(
        keys=list(FEATURES),
        values=values,
        lengths=torch.from_numpy(lengths.ravel()).to(dtype),
        weights=torch.from_numpy(rng.standard_normal(len(values))).float() if weighted else None,
    )


def through_torchrec(module, features: KeyedJaggedTensor, monkeypatch) -> torch.Tensor:
    """What the module serves without our kernel."""
    with monkeypatch.context() as patched:
        patched.setattr(one_pass, "available", lambda: False)
        return module(features).values()


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("alignment", [1, 16])
@pytest.mark.parametrize("layout", ["bucketed", "prefix"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_as_torchrec_serves(precision, layout, alignment, weighted, monkeypatch):
    plan = make_plan(inference(precision, alignment))
    served = quantize(trained(plan, row_order="interleaved", is_weighted=weighted), layout=layout)
    for dtype in (torch.int32, torch.int64):
        asked = bags(weighted=weighted, dtype=dtype)
        found, wanted = served(asked).values(), through_torchrec(served, asked, monkeypatch)
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    # With one id a bag nothing is summed, so that every bit has to be right.
    single = bags(weighted=weighted)
    single = KeyedJaggedTensor(
        keys=["f1", "f2", "f3"],
        values=torch.cat([torch.arange(60), torch.arange(60), torch.arange(60) % 33]),
        lengths=torch.ones(180, dtype=torch.int32),
        weights=torch.ones(180) if weighted else None,
    )
    assert torch.equal(served(single).values(), through_torchrec(served, single, monkeypatch))


def test_each_block_in_its_own_format(monkeypatch):
    order = np.random.default_rng(0).permutation(33).astype(np.int32)
    a = (Bucket(20, 5, "int8"), Bucket(9, 10, "int4"), Bucket(3, 20, "fp16"), Bucket(0, 25))
    b = (Bucket(13, 3, "fp32"), Bucket(5, 30, "int2"))
    tables = (TablePlan("a", 60, 20, a), TablePlan("b", 33, 13, b, order))
    served = quantize(trained(SizePlan(tables, inference(PRECISIONS), "test")))
    wanted = through_torchrec(served, bags(), monkeypatch)
    torch.testing.assert_close(served(bags()).values(), wanted, atol=1e-5, rtol=1e-5)


def test_keys_in_any_order_and_others_ignored():
    served, given = quantize(trained(make_plan(inference("int8")))), bags()
    more = KeyedJaggedTensor(
        keys=["x"], values=torch.tensor([-5]), lengths=torch.eye(9, dtype=torch.int64)[0]
    )
    turned = KeyedJaggedTensor.concat([given, more]).permute([2, 3, 0, 1])
    assert turned.keys() == ["f3", "x", "f1", "f2"]
    assert torch.equal(served(turned).values(), served(given).values())


def test_lengths_or_offsets_or_both():
    served, given = quantize(trained(make_plan(inference("int8")))), bags()
    wanted = served(bags()).values()
    offsets = KeyedJaggedTensor(keys=given.keys(), values=given.values(), offsets=given.offsets())
    both = KeyedJaggedTensor(
        keys=given.keys(),
        values=given.values(),
        offsets=given.offsets().int(),
        lengths=given.lengths(),
    )
    strided = KeyedJaggedTensor(
        keys=given.keys(),
        values=given.values().repeat_interleave(2)[::2],
        lengths=given.lengths().repeat_interleave(3)[::3],
    )
    for same in (offsets, both, strided):
        assert torch.equal(served(same).values(), wanted)


@pytest.mark.parametrize("threads", [1, 2])
def test_more_bags_than_one_task_takes(threads, monkeypatch):
    served, given = quantize(trained(make_plan(inference("int4")))), bags(1500)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = served(given).values()
    finally:
        torch.set_num_threads(before)
    wanted = through_torchrec(served, given, monkeypatch)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


def test_a_batch_that_contradicts_itself_is_refused():
    served, given = quantize(trained(make_plan(inference("int8")), is_weighted=True)), bags()
    ids, lengths = given.values(), given.lengths()
    for said, batch in {
        "as many ids as there are, 60": {"lengths": torch.full((27,), 1000)},
        "as many ids as there are": {"lengths": torch.ones(27, dtype=torch.int64)},
        "from 0 on, got -1 at 3": {"lengths": torch.tensor([1, 1, 1, -1] + [0] * 23)},
        "rise from 0 to the": {"offsets": torch.arange(28).flip(0)},
        "rise from 0 to the .* ids, got 1000": {"offsets": torch.full((28,), 1000)},
        "say the same": {"lengths": lengths.flip(0), "offsets": given.offsets()},
        "weights should be one an id": {"lengths": lengths, "weights": torch.ones(len(ids) - 1)},
    }.items():
        said = said.replace("60", str(len(ids)))
        batch = {"weights": torch.ones(len(ids)), **batch}
        bad = KeyedJaggedTensor(keys=given.keys(), values=ids, **batch)
        with pytest.raises(InvalidInputError, match=said):
            served(bad)
    floats = KeyedJaggedTensor(
        keys=given.keys(), values=ids.float(), lengths=lengths, weights=torch.ones(len(ids))
    )
    with pytest.raises(InvalidInputError, match="int32 or int64, got torch.float32"):
        served(floats)


@pytest.mark.parametrize("wrong", [-1, 60, 2**31 - 1, -(2**31), 2**40])
def test_ids_out_of_range_are_named(wrong):
    served, given = quantize(trained(make_plan(inference("int8")))), bags()
    given.values()[3] = wrong
    with pytest.raises(IdRangeError, match=f"'f1': ids of table 'a' should be .* got {wrong}"):
        served(given)


def test_without_a_compiler_torchrec_s_kernels_serve(monkeypatch):
    served = quantize(trained(make_plan(inference("int8"))))
    wanted = served(bags()).values()
    build.library.cache_clear()
    build.available.cache_clear()
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "which", lambda name: None)
        with pytest.warns(UserWarning, match="more slowly: .*install g\\+\\+"):
            found = served(bags()).values()
        with warnings.catch_warnings():  # said once
            warnings.simplefilter("error")
            served(bags())
    build.library.cache_clear()
    build.available.cache_clear()
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_copies_and_pickles_serve_alike(precision):
    served = quantize(trained(make_plan(inference(precision))))
    wanted = served(bags()).values()
    for other in (copy.deepcopy(served), pickle.loads(pickle.dumps(served))):
        assert torch.equal(other(bags()).values(), wanted)
        for own in other.blocks.values():
            for block in own:
                other.packed_rows(block).zero_()
        assert not other(bags()).values().any()  # its own rows, not the first one's
    assert torch.equal(served(bags()).values(), wanted)


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_rows_that_are_loaded_are_served(precision, monkeypatch):
    """Also if they take the place of the old ones, where TorchRec's kernel would not look."""
    plan = make_plan(inference(precision))
    source, wanted = quantize(trained(plan)), quantize(trained(plan))(bags()).values()
    for assign in (False, True):
        served = QuantizedBudgetedEmbeddingBagCollection(TABLES, plan)
        assert not served(bags()).values().any()
        served.load_state_dict(source.state_dict(), assign=assign)
        assert torch.equal(served(bags()).values(), wanted)
        there = through_torchrec(served, bags(), monkeypatch)
        torch.testing.assert_close(there, wanted, atol=1e-5, rtol=1e-5)


def test_traced_with_fake_tensors():
    served = quantize(trained(make_plan(inference("int8"))))
    given = bags()
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = KeyedJaggedTensor(
            keys=given.keys(),
            values=mode.from_tensor(given.values()),
            lengths=mode.from_tensor(given.lengths()),
        )
        out = served(fake)
    assert out.values().shape == (9, 53)
    assert out.values().dtype == torch.float32
    assert torch.equal(served(given).values(), served(bags()).values())
