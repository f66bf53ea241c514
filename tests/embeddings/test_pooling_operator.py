"""The whole lookup as one operator, which compiled and exported graphs hold, against modules."""

from __future__ import annotations

import pytest
import torch
from masked_cases import LAYOUTS, ROWS, assert_same_tables, bags, ours
from torchrec import KeyedJaggedTensor

from bet_torchrec.embeddings import IdRangeError
from bet_torchrec.embeddings.native import pooling
from bet_torchrec.errors import InvalidInputError


@pytest.fixture(params=["kernel", "torch"])
def way(request, monkeypatch):
    """By our kernel, and as it is done elsewhere."""
    if request.param == "torch":
        monkeypatch.setattr(pooling, "available", lambda: False)
    elif not pooling.available():
        pytest.skip("no C++ compiler")


def weighted_bags(seed, weighted, dtype):
    kjt = bags(seed, weighted=weighted, dtype=dtype)
    if weighted:
        kjt.weights().requires_grad_()
    return kjt


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("layout", "row_order"), LAYOUTS)
def test_it_is_the_module_s_own_lookup_forward_and_backward(layout, row_order, weighted, way):
    """Mean-pooled tables, a feature of two tables and an empty one are among them."""
    found, expected = (ours(layout, row_order, is_weighted=weighted) for _ in range(2))
    for seed, dtype in ((0, torch.int64), (1, torch.int32)):
        own, other = (weighted_bags(seed, weighted, dtype) for _ in range(2))
        out, wanted = found._as_operator(own), expected(other).values()
        torch.testing.assert_close(out, wanted, atol=1e-6, rtol=1e-5)
        for values in (out, wanted):
            values.tanh().square().sum().backward()
        if weighted:
            torch.testing.assert_close(own.weights().grad, other.weights().grad)
    for module in (found, expected):
        torch.optim.SGD(module.parameters(), lr=0.1).step()
    assert_same_tables(found.full_tables(), expected.full_tables())


def test_offsets_instead_of_lengths_and_keys_in_another_order(way):
    module, kjt = ours(), bags()
    expected = module._as_operator(kjt)
    turned = kjt.permute([4, 2, 0, 1, 3])
    assert torch.equal(module._as_operator(turned), expected)
    same = KeyedJaggedTensor(keys=turned.keys(), values=turned.values(), offsets=turned.offsets())
    assert torch.equal(module._as_operator(same), expected)


def test_wrong_batches_are_refused(way):
    module = ours("prefix")
    kjt = bags(1)
    at = kjt.offset_per_key()[kjt.keys().index("item")]
    for wrong in (-1, ROWS["item"], 2**40):
        kjt.values()[at] = wrong
        with pytest.raises(IdRangeError, match=f"0 to {ROWS['item'] - 1}, got {wrong}"):
            module._as_operator(kjt)
    kjt = bags(2)
    kjt.lengths()[0] += 10**6
    with pytest.raises(InvalidInputError, match="as many ids as there are"):
        module._as_operator(kjt)


def test_other_types_than_fp32():
    kjt = bags(3)
    wanted = ours()._as_operator(kjt)
    found = ours().to(torch.bfloat16)._as_operator(kjt)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), wanted, atol=0.1, rtol=0.1)


def test_it_is_registered_as_torch_wants_it():
    module, kjt = ours(is_weighted=True), weighted_bags(0, True, torch.int64)
    laid = module.router.laid
    torch.library.opcheck(
        torch.ops.bet_torchrec.pool.default,
        (
            [w.detach().requires_grad_() for w in module.parameters()],
            module.router.order(kjt),
            module.merger.width,
            *(len(kjt.keys()), kjt.stride(), kjt.values(), kjt.lengths(), None, kjt.weights()),
            *(laid.slots, laid.tables, laid.blocks, module.router.map),
        ),
    )
