"""Costs by hand, from DESIGN section 4's table."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bet_torchrec.errors import InvalidInputError
from bet_torchrec.planning.budget import OPTIMIZERS, PRECISIONS, Budget, MemoryModel
from bet_torchrec.planning.tables import TableSpec

GOWALLA = [TableSpec("user", 29858, 128), TableSpec("item", 40981, 128)]


def inference(alignment=None, dtype="int8"):
    return Budget.bytes(10**6, purpose="inference", dtype=dtype, alignment=alignment)


def training(optimizer, dtype="fp32"):
    return Budget.bytes(10**6, purpose="training", dtype=dtype, optimizer=optimizer)


@pytest.mark.parametrize(
    ("width", "precision", "packed", "aligned"),
    [
        (43, "int4", 26, 32),  # stored 44 wide: 22 + 4
        (12, "int8", 16, 16),
        (13, "int8", 18, 32),  # stored 14 wide
        (124, "int8", 128, 128),
        (5, "int2", 6, 16),  # stored 8 wide: 2 + 4
        (3, "fp32", 12, 16),  # no scale and bias
        (9, "fp16", 18, 32),
        (0, "int8", 0, 0),  # stored nowhere
    ],
)
def test_an_inference_row(width, precision, packed, aligned):
    assert MemoryModel.for_budget(inference(1)).row_cost(width, precision) == packed
    assert MemoryModel.for_budget(inference()).row_cost(width, precision) == aligned


@pytest.mark.parametrize(
    ("optimizer", "fp32", "fp16"),
    [
        ("sgd", 40, 20),
        ("rowwise_adagrad", 44, 24),
        ("adagrad", 80, 60),
        ("adam", 120, 100),
        ("lamb", 120, 100),
        ("partial_rowwise_adam", 84, 64),
    ],
)
def test_a_training_row_of_width_10(optimizer, fp32, fp16):
    model = MemoryModel.for_budget(training(optimizer))
    assert model.row_cost(10, "fp32") == fp32
    assert model.row_cost(10, "fp16") == fp16
    assert model.row_cost(0, "fp32") == 0
    assert model.bucket_cost(10, 3, "fp32") == 3 * fp32  # no rounding


def test_a_real_inference_table_is_rounded_up_to_128_bytes():
    model = MemoryModel.for_budget(inference(1))
    assert model.table_alignment == 128
    assert model.bucket_cost(12, 8, "int8") == 128
    assert model.bucket_cost(12, 9, "int8") == 256
    assert model.bucket_cost(0, 9, "int8") == 0


def test_parameters_cost_what_they_are():
    for budget in (Budget.parameters(5), Budget.sparsity(0.5)):
        model = MemoryModel.for_budget(budget)
        assert model.row_costs([0, 1, 43], "fp32").tolist() == [0, 1, 43]
        assert (model.table_alignment, model.id_map_cost(7)) == (1, 0)
        assert budget.cost_unit == "parameters"
    assert MemoryModel.for_budget(inference()).id_map_cost(7) == 28
    assert MemoryModel.for_budget(training("sgd")).id_map_cost(7) == 28


@given(st.sampled_from(PRECISIONS), st.sampled_from([1, 2, 16, 64]), st.integers(0, 300))
def test_costs_rise_with_width_and_are_aligned(precision, alignment, width):
    model = MemoryModel.for_budget(inference(alignment, PRECISIONS))
    here, next_ = model.row_costs([width, width + 1], precision)
    assert 0 <= here <= next_
    assert here % alignment == 0


@pytest.mark.parametrize(("precision", "bits"), [("int8", 8), ("int4", 4), ("int2", 2)])
def test_integer_rows_are_fbgemms_own(precision, bits):
    """Its quantiser refuses other widths, and its rows are as long as ours cost."""
    pytest.importorskip("fbgemm_gpu")
    quantise = torch.ops.fbgemm.FloatOrHalfToFusedNBitRowwiseQuantizedSBHalf
    model = MemoryModel.for_budget(inference(1))
    for width in range(1, 49):
        if width % model.width_multiple(precision):
            with pytest.raises(RuntimeError, match="multiple of 2 Bytes"):
                quantise(torch.zeros(1, width), bits)
        else:
            assert quantise(torch.zeros(1, width), bits).shape[1] == model.row_cost(
                width, precision
            )


@pytest.mark.parametrize(
    ("sparsity", "limit"),
    [
        (0.95, 453369),  # .05 * 9067392 = 453369.6
        (0.9, 906739),
        (0.8, 1813478),
        (0, 9067392),
        (1 - 0.9, 8160652),  # a float that is not quite .1
        (0.5, 4533696),
    ],
)
def test_sparsity_keeps_a_share_of_rows_times_width(sparsity, limit):
    assert Budget.sparsity(sparsity).limit(GOWALLA) == limit


@given(st.integers(0, 999), st.integers(1, 10**9))
def test_sparsity_is_not_off_by_a_floats_error(thousandths, rows):
    exact = (1000 - thousandths) * rows * 8 // 1000
    tables = [TableSpec("t", rows, 8)]
    assert Budget.sparsity(thousandths / 1000).limit(tables) == exact
    assert Budget.sparsity(1 - (1 - thousandths / 1000)).limit(tables) == exact


@given(st.floats(0, 0.999999), st.integers(1, 10**6))
def test_sparsity_keeps_no_more_than_it_says(sparsity, rows):
    limit = Budget.sparsity(sparsity).limit([TableSpec("t", rows, 100)])
    assert limit <= (1 - Decimal(sparsity)) * rows * 100 + Decimal("1e-6")
    assert limit >= (1 - Decimal(sparsity)) * rows * 100 - 1 - Decimal("1e-6")


def test_amounts_of_bytes_and_parameters_are_the_limit():
    assert Budget.parameters(7).limit(GOWALLA) == 7
    assert inference().limit(GOWALLA) == 10**6


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Budget.sparsity(1), "0 to below 1"),
        (lambda: Budget.sparsity(-0.1), "0 to below 1"),
        (lambda: Budget.sparsity(95), "0 to below 1"),
        (lambda: Budget.sparsity(float("nan")), "0 to below 1"),
        (lambda: Budget.parameters(-1), "whole number"),
        (lambda: Budget.parameters(2.5), "whole number"),
        (lambda: Budget.parameters(float("inf")), "whole number"),
        (lambda: Budget.parameters(True), "whole number"),
        (lambda: Budget.bytes(9, purpose="serving", dtype="int8"), "training' or 'inference"),
        (lambda: Budget.bytes(9, purpose="inference", dtype="int3"), "one or several"),
        (lambda: Budget.bytes(9, purpose="inference", dtype=()), "one or several"),
        (lambda: Budget.bytes(9, purpose="inference", dtype=("fp16", "fp16")), "each once"),
        (lambda: Budget.bytes(9, purpose="training", dtype="int8", optimizer="sgd"), "one of fp32"),
        (lambda: training("sgd", ("fp32", "fp16")), "a single one"),
        (lambda: training(None), f"one of {OPTIMIZERS[0]}"),
        (lambda: training("adamw"), "got 'adamw'"),
        (lambda: replace(inference(), optimizer="sgd"), "no optimizer"),
        (lambda: inference(3), "power of 2"),
        (lambda: replace(Budget.parameters(3), purpose="inference"), "Budget.bytes for those"),
        (lambda: Budget(amount=3, unit="megabytes"), "unit should be"),
    ],
)  # fmt: skip
def test_wrong_budgets_are_refused(make, says):
    with pytest.raises(InvalidInputError, match=says):
        make()


def test_an_unknown_precision_is_refused():
    with pytest.raises(InvalidInputError, match="int3"):
        MemoryModel.for_budget(inference()).row_cost(4, "int3")


def test_budgets_compare_by_what_they_are():
    assert inference() == inference(16) != inference(1)
    assert len({Budget.parameters(3), Budget.parameters(3.0), Budget.sparsity(0.5)}) == 2


@pytest.mark.parametrize("amount", [10**400, 10**31, -1, float("inf"), "9", None])
def test_amounts_beyond_reason_are_refused(amount):
    with pytest.raises(InvalidInputError, match="whole number from 0 to 1e30"):
        Budget.parameters(amount)
