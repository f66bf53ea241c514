"""Simulated quantisation, bit for bit against FBGEMM, and its laws."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bet_torchrec.errors import InvalidInputError
from bet_torchrec.evaluation import fake_quantise_rows, fake_quantise_sized

BITS = {"int8": 8, "int4": 4, "int2": 2}
INTEGERS = tuple(BITS)


@pytest.fixture(scope="module")
def fbgemm() -> Any:
    try:
        import fbgemm_gpu  # noqa: F401
    except (ImportError, OSError) as error:
        pytest.skip(f"fbgemm_gpu does not load here: {error}")
    return torch.ops.fbgemm


def real(fbgemm: Any, values: torch.Tensor, bits: int) -> torch.Tensor:
    """Stored and read by FBGEMM's own operators, those that TorchRec quantises tables with."""
    stored = fbgemm.FloatOrHalfToFusedNBitRowwiseQuantizedSBHalf(values, bits)
    return fbgemm.FusedNBitRowwiseQuantizedSBHalfToFloat(stored, bits)


def tables() -> list[tuple[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(2000, 40, generator=generator)
    scales = 10.0 ** torch.empty(2000, 1).uniform_(-9, 4, generator=generator)
    shifted = normal * 1e-3 + torch.randn(2000, 1, generator=generator) * 100
    constant = torch.randn(500, 1, generator=generator).expand(500, 24).contiguous()
    steps = torch.randint(-8, 8, (500, 32), generator=generator) / 2  # exact halves: ties in round
    spike = torch.zeros(64, 16)
    spike[:, 3] = 60000.0
    return [
        ("normal", normal),
        ("small and large", (normal * scales).clamp(-60000, 60000)),
        ("far from zero", shifted),
        ("constant", constant),
        ("halves", steps),
        ("zero", torch.zeros(10, 8)),
        ("one spike", spike),
        ("negative zero", torch.full((4, 8), -0.0)),
        ("wide", torch.randn(50, 128, generator=generator) * 0.05),
        ("one number", torch.full((4, 8), 1e-7)),
    ]


@pytest.mark.parametrize("precision", INTEGERS)
@pytest.mark.parametrize(("name", "values"), tables())
def test_bit_for_bit_as_fbgemm(
    fbgemm: Any, name: str, values: torch.Tensor, precision: str
) -> None:
    expected = real(fbgemm, values, BITS[precision])
    assert torch.equal(fake_quantise_rows(values, precision), expected), name


@given(
    seed=st.integers(0, 2**32 - 1),
    width=st.sampled_from([8, 16, 24, 40, 128]),
    exponent=st.floats(-8, 4),
    offset=st.floats(-1000, 1000),
    precision=st.sampled_from(INTEGERS),
)
@settings(max_examples=80, deadline=None)
def test_bit_for_bit_on_anything(
    fbgemm: Any, seed: int, width: int, exponent: float, offset: float, precision: str
) -> None:
    rng = np.random.default_rng(seed)
    values = rng.standard_normal((20, width)) * 10.0**exponent + offset
    table = torch.from_numpy(values.clip(-65000, 65000).astype(np.float32))
    assert torch.equal(fake_quantise_rows(table, precision), real(fbgemm, table, BITS[precision]))


@pytest.mark.parametrize("precision", ["fp16", *INTEGERS])
def test_a_quantised_torchrec_table_reads_the_same(fbgemm: Any, precision: str) -> None:
    """The whole way: TorchRec's quantize_embeddings and the IntNBit kernel's lookups."""
    torchrec = pytest.importorskip("torchrec")
    from torchrec.inference.modules import quantize_embeddings

    config = torchrec.EmbeddingBagConfig(
        name="t", num_embeddings=60, embedding_dim=32, feature_names=["f"]
    )
    module = torchrec.EmbeddingBagCollection(tables=[config], device=torch.device("cpu"))
    table = module.embedding_bags["t"].weight.detach().clone() * 3 + 0.1
    module.embedding_bags["t"].weight.data.copy_(table)
    kind = {"fp16": torch.float16, "int8": torch.qint8, "int4": torch.quint4x2}.get(
        precision, torch.quint2x4 if hasattr(torch, "quint2x4") else None
    )
    quantised = quantize_embeddings(torch.nn.Sequential(module), dtype=kind, inplace=False)[0]
    ids = torch.arange(60)
    features = torchrec.KeyedJaggedTensor(
        keys=["f"], values=ids.int(), lengths=torch.ones(60, dtype=torch.int32)
    )
    read = quantised(features)["f"].float()
    assert torch.equal(read, fake_quantise_rows(table, precision))


@given(
    seed=st.integers(0, 2**32 - 1),
    width=st.integers(1, 40),
    precision=st.sampled_from(INTEGERS),
    exponent=st.floats(-3, 3),
)
@settings(max_examples=80, deadline=None)
def test_error_is_at_most_half_a_step(
    seed: int, width: int, precision: str, exponent: float
) -> None:
    rng = np.random.default_rng(seed)
    values = torch.from_numpy(rng.standard_normal((9, width)).astype("f4")) * 10.0**exponent
    read = fake_quantise_rows(values, precision)
    levels = 2 ** BITS[precision] - 1
    span = (values.amax(1) - values.amin(1)).double()
    largest = values.abs().amax(1).double()
    # Half a step, plus what fp16 takes from bias and scale: half a unit in the 11th bit each, or
    # half of the smallest fp16 number, which the top level multiplies.
    allowed = span / levels * (0.5 + 1e-3) + 2.0**-11 * (2 * largest + span)
    allowed += 2.0**-25 * (levels + 1) + 1e-7
    assert ((read - values).abs().amax(1) <= allowed).all()


@given(seed=st.integers(0, 2**32 - 1), precision=st.sampled_from(["fp32", "fp16", *INTEGERS]))
@settings(max_examples=40, deadline=None)
def test_a_row_depends_on_itself_alone(seed: int, precision: str) -> None:
    rng = np.random.default_rng(seed)
    values = torch.from_numpy(rng.standard_normal((12, 9)).astype("f4"))
    kept = values.clone()
    read = fake_quantise_rows(values, precision)
    order = torch.from_numpy(rng.permutation(12))
    assert torch.equal(fake_quantise_rows(values[order], precision), read[order])
    assert torch.equal(values, kept)


@given(seed=st.integers(0, 2**32 - 1), precision=st.sampled_from(["fp32", "fp16", *INTEGERS]))
@settings(max_examples=60, deadline=None)
def test_sized_rows_equal_tables_of_one_width(seed: int, precision: str) -> None:
    rng = np.random.default_rng(seed)
    sizes = torch.from_numpy(rng.integers(0, 13, 40))
    values = torch.from_numpy(rng.standard_normal((40, 12)).astype("f4")) + 0.5
    read = fake_quantise_sized(values, sizes, precision)
    for size in range(13):
        rows = (sizes == size).nonzero()[:, 0]
        expected = torch.zeros(len(rows), 12)
        if size:
            expected[:, :size] = fake_quantise_rows(values[rows, :size], precision)
        assert torch.equal(read[rows], expected)


def test_constant_and_empty() -> None:
    for precision in INTEGERS:
        # The scale takes up what fp16 took from the bias, so this is no worse than fp16.
        row = torch.full((1, 5), 0.1)
        error = (fake_quantise_rows(row, precision) - row).abs()
        assert (error <= (row.half().float() - row).abs()).all()
        assert not fake_quantise_rows(torch.zeros(3, 4), precision).any()
        assert fake_quantise_rows(torch.empty(0, 4), precision).shape == (0, 4)
        assert fake_quantise_rows(torch.empty(4, 0), precision).shape == (4, 0)


@pytest.mark.parametrize("precision", ["fp16", *INTEGERS])
@pytest.mark.parametrize("bad", [1e6, -1e6, float("nan"), float("inf")])
def test_what_no_such_row_can_hold_is_refused(precision: str, bad: float) -> None:
    values = torch.full((3, 4), bad)
    with pytest.raises(InvalidInputError, match="fp16 cannot hold"):
        fake_quantise_rows(values, precision)


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="'int3'"):
        fake_quantise_rows(torch.zeros(2, 2), "int3")
    with pytest.raises(InvalidInputError, match=r"\(rows, width\)"):
        fake_quantise_rows(torch.zeros(2), "int8")
    with pytest.raises(InvalidInputError, match="one size for each of 2 rows"):
        fake_quantise_sized(torch.zeros(2, 2), torch.tensor([1]), "int8")
    with pytest.raises(InvalidInputError, match="between 0 and 2"):
        fake_quantise_sized(torch.zeros(2, 2), torch.tensor([1, 3]), "int8")
