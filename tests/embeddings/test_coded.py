"""A collection of coded tables against its rows pooled by torch, and its bytes as counted."""

from __future__ import annotations

import copy
import pickle
import shutil

import numpy as np
import pytest
import torch
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor
from torchrec.modules.embedding_configs import PoolingType

from bet_torchrec import RowCounts
from bet_torchrec.axes import principal_basis
from bet_torchrec.column_codes import CodedEmbedding, coded_bytes, encode_tables
from bet_torchrec.embeddings import IdRangeError
from bet_torchrec.embeddings.coded import CodedEmbeddingBagCollection, collection
from bet_torchrec.errors import InvalidInputError

ROWS = {"user": 300, "item": 41, "few": 3}
DIM = {"user": 12, "item": 12, "few": 5}


def configs(*, means: bool = True) -> list[EmbeddingBagConfig]:
    features = {"user": ["u"], "item": ["i", "seen"], "few": ["f"]}
    return [
        EmbeddingBagConfig(
            name=name,
            num_embeddings=rows,
            embedding_dim=DIM[name],
            feature_names=features[name],
            pooling=PoolingType.MEAN if means and name == "item" else PoolingType.SUM,
        )
        for name, rows in ROWS.items()
    ]


def coded_tables(*, blocks: int = 1, turned: bool = False, width: int = 9, limit: int = 8000):
    rng = np.random.default_rng(blocks)
    full = {
        name: torch.from_numpy(rng.standard_normal((rows, DIM[name]), np.float32))
        for name, rows in ROWS.items()
    }
    counts = {
        name: RowCounts.from_rows(rng.zipf(1.5, rows).clip(max=999)) for name, rows in ROWS.items()
    }
    bases = {k: principal_basis(t, width=min(width, DIM[k])) for k, t in full.items()}
    return encode_tables(
        full, counts, limit=limit, bases=bases if turned else {}, rank_blocks=blocks
    )


def batch(*, weighted: bool = False, dtype=torch.int64, size: int = 7, seed: int = 0):
    rng = np.random.default_rng(seed)
    keys = {"seen": "item", "u": "user", "unused": "few", "i": "item", "f": "few"}
    lengths = rng.integers(0, 5, (len(keys), size))
    ids = [
        rng.integers(0, ROWS[table], own.sum())
        for table, own in zip(keys.values(), lengths, strict=True)
    ]
    values = torch.from_numpy(np.concatenate(ids)).to(dtype)
    weights = torch.from_numpy(rng.standard_normal(len(values)).astype(np.float32))
    return KeyedJaggedTensor(
        keys=list(keys),
        values=values,
        lengths=torch.from_numpy(lengths.ravel()).to(torch.int32),
        weights=weights if weighted else None,
    )


def torchrecs(coded, *, weighted: bool) -> EmbeddingBagCollection:
    """TorchRec's own collection of the rows as they read."""
    made = EmbeddingBagCollection(configs(means=not weighted), is_weighted=weighted)
    read = CodedEmbedding(coded)
    for name, bag in made.embedding_bags.items():
        bag.weight.data.copy_(read.table(name)[:, : DIM[name]])
    return made


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("blocks", [1, 3])
def test_as_torchrec_pools(blocks, turned, weighted, compiled, monkeypatch):
    if not compiled:
        monkeypatch.setattr(collection, "available", lambda: False)
    elif not any(shutil.which(name) for name in ("g++", "c++", "clang++")):
        pytest.skip("no C++ compiler")
    coded = coded_tables(blocks=blocks, turned=turned)
    # TorchRec has no means of weighted rows.
    module = CodedEmbeddingBagCollection(configs(means=not weighted), coded, is_weighted=weighted)
    wanted = torchrecs(coded, weighted=weighted)
    for dtype in (torch.int32, torch.int64):
        asked = batch(weighted=weighted, dtype=dtype)
        found, right = module(asked).to_dict(), wanted(asked).to_dict()
        assert found.keys() == right.keys()
        for key, values in right.items():
            assert torch.allclose(found[key], values, atol=1e-4), key


@pytest.mark.parametrize("bits", [[8, 7, 5, 3, 2, 1, 1, 0, 6, 4], [1], [3, 0, 0, 2], [0, 0]])
def test_any_bits(bits: list[int]):
    """Every number of bits, and rows that end before the last column."""
    from bet_torchrec.serving.column_codes import CodedBlock, CodedTable, pack_codes

    rng = np.random.default_rng(len(bits))
    width, n = np.array(bits, np.uint8), len(bits)
    codes = np.stack([rng.integers(0, 1 << b, 50) for b in bits], axis=1).astype(np.uint8)
    scale, offset = rng.standard_normal((2, n)).astype(np.float32)
    block = CodedBlock(0, width, scale, offset, pack_codes(codes, width))
    table = CodedTable("t", n, (block,))
    config = EmbeddingBagConfig(name="t", num_embeddings=50, embedding_dim=n, feature_names=["t"])
    module = CodedEmbeddingBagCollection([config], {"t": table})
    ids = torch.arange(50)
    bags = KeyedJaggedTensor(keys=["t"], values=ids, lengths=torch.ones(50, dtype=torch.int32))
    assert np.allclose(module(bags).values(), codes * scale + offset, atol=1e-6)


@pytest.mark.parametrize("blocks", [1, 3])
def test_what_is_held_is_what_is_counted(blocks: int):
    coded = coded_tables(blocks=blocks, turned=True)
    module = CodedEmbeddingBagCollection(configs(), coded)
    assert module.allocated_bytes() == coded_bytes(coded)
    for name, table in coded.items():
        held = module.coded(name)
        assert np.array_equal(held.read(np.arange(ROWS[name])), table.read(np.arange(ROWS[name])))


def test_copies_and_saved_states_read_alike():
    coded = coded_tables(blocks=3, turned=True)
    module, asked = CodedEmbeddingBagCollection(configs(), coded), batch()
    wanted = module(asked).values()
    other = CodedEmbeddingBagCollection(configs(), coded_tables(blocks=3, turned=True))
    other.rows.zero_()
    other.load_state_dict(module.state_dict())
    for same in (copy.deepcopy(module), pickle.loads(pickle.dumps(module)), other):
        assert torch.equal(same(asked).values(), wanted)


@pytest.mark.parametrize("compiled", [True, False])
def test_errors_say_what_came(compiled: bool, monkeypatch):
    if not compiled:
        monkeypatch.setattr(collection, "available", lambda: False)
    coded = coded_tables()
    module = CodedEmbeddingBagCollection(configs(), coded)
    asked = batch()
    asked.values()[-1] = 3
    with pytest.raises(IdRangeError, match="'f': ids of table 'few' should be 0 to 2, got 3"):
        module(asked)
    with pytest.raises(InvalidInputError, match="features"):
        module(
            KeyedJaggedTensor(keys=["u"], values=asked.values()[:1], lengths=torch.ones(1).int())
        )
    with pytest.raises(InvalidInputError, match="expected codes of tables"):
        CodedEmbeddingBagCollection(configs(), {"user": coded["user"]})
    with pytest.raises(InvalidInputError, match="on the CPU"):
        module.to("meta")
