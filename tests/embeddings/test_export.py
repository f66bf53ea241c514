"""Files of tables: read back bit by bit, with and without TorchRec; damaged ones refused."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mutations import mutated, rewritten
from safetensors.numpy import load_file as load_numpy
from safetensors.torch import load_file, save_file
from serving_cases import (
    PRECISIONS,
    TABLES,
    assert_rows,
    every_row,
    expected,
    inference,
    make_plan,
    rows_of,
    trained,
)

from bet_torchrec import Budget, SizePlan
from bet_torchrec.embeddings import (
    BudgetedEmbeddingBagCollection,
    QuantizedBudgetedEmbeddingBagCollection,
    export_dense,
    export_tables,
    quantize,
)
from bet_torchrec.embeddings.quantization import export
from bet_torchrec.errors import InvalidInputError
from bet_torchrec.files import tensors
from bet_torchrec.serving import TableFileError, packed, read_tables

load = QuantizedBudgetedEmbeddingBagCollection.load


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that these small tables are written and read in several."""
    monkeypatch.setattr(packed, "_CHUNK", 7)
    monkeypatch.setattr(export, "_PIECE", 5)


def read_all(path: Path) -> dict[str, np.ndarray]:
    return {name: table.read(np.arange(table.rows)) for name, table in read_tables(path).items()}


@pytest.mark.parametrize("alignment", [1, 16])
@pytest.mark.parametrize("layout", ["bucketed", "prefix"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_saved_and_loaded_bit_by_bit(tmp_path: Path, precision: str, layout: Any, alignment: int):
    plan = make_plan(inference(precision, alignment))
    module = trained(plan, layout=layout, row_order="interleaved")
    quantised = quantize(module, layout=layout)
    path = quantised.save(tmp_path / "new folder" / "tables.safetensors")
    assert [p.name for p in path.parent.iterdir()] == ["tables.safetensors"]
    loaded = load(path)
    assert (loaded.plan, loaded.layout, loaded.row_order) == (plan, layout, "interleaved")
    assert loaded.allocated_bytes() == quantised.allocated_bytes()
    for name, own in quantised.blocks.items():
        assert loaded.blocks[name] == own
        for block in own:
            assert torch.equal(loaded.packed_rows(block), quantised.packed_rows(block))
    assert torch.equal(loaded(every_row()).values(), quantised(every_row()).values())
    for here, there in zip(loaded.embedding_bag_configs(), TABLES, strict=True):
        assert (here.name, here.feature_names) == (there.name, there.feature_names)
    arrays = load_numpy(path)
    for name, again in load_numpy(loaded.save(tmp_path / "again.safetensors")).items():
        assert name == "plan" or np.array_equal(again, arrays[name])
    assert_rows(read_all(path), rows_of(quantised))


def test_a_table_of_one_width_is_read_back(tmp_path: Path):
    # It has one block, under the table's own name.
    sizes = {table.name: np.full(table.num_embeddings, 6) for table in TABLES}
    plan = SizePlan.from_sizes(TABLES, sizes, budget=inference("int8"))
    served = quantize(trained(plan))
    assert_rows(rows_of(load(served.save(tmp_path / "a"))), rows_of(served))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_rows_do_not_depend_on_the_alignment(tmp_path: Path, precision: str):
    quantised = quantize(trained(make_plan(inference(precision, 1))))
    path = quantised.save(tmp_path / "one.safetensors")
    wide = load(path, alignment=16)
    assert wide.alignment == 16
    assert_rows(rows_of(wide), rows_of(quantised))
    narrow = load(wide.save(tmp_path / "wide.safetensors"), alignment=1)
    for own in quantised.blocks.values():
        for block in own:
            assert torch.equal(narrow.packed_rows(block), quantised.packed_rows(block))


@pytest.mark.parametrize("layout", ["bucketed", "prefix"])
@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_a_training_module_is_exported_as_it_is(tmp_path: Path, dtype: str, layout: Any):
    budget = Budget.bytes(10**6, purpose="training", dtype=dtype, optimizer="sgd")
    module = trained(make_plan(budget), layout=layout, is_weighted=True)
    path = export_tables(module, tmp_path / "tables.safetensors")
    assert_rows(read_all(path), expected(module.plan, dtype))
    loaded = load(path)
    assert loaded.is_weighted()
    assert loaded.full_tables().keys() == {"a", "b"}
    assert_rows(loaded.full_tables(), module.full_tables())


def test_what_the_file_holds(tmp_path: Path):
    plan = make_plan(inference("int8"))
    quantised = quantize(trained(plan))
    arrays = load_numpy(quantised.save(tmp_path / "tables.safetensors"))
    names = {f"rows/{b.name}" for own in quantised.blocks.values() for b in own}
    assert set(arrays) == {"plan", "id_map/b"} | names
    assert arrays["id_map/b"].dtype == np.int32
    assert np.array_equal(arrays["id_map/b"][plan["b"].order], np.arange(33))
    assert arrays["rows/a/w9"].dtype == np.uint8
    # Nothing twice: rows, one id map, and at most a few kilobytes about them.
    stored = sum(array.nbytes for name, array in arrays.items() if name != "plan")
    assert stored <= plan.cost()
    assert (tmp_path / "tables.safetensors").stat().st_size - stored < 8192


@pytest.mark.parametrize("precision", [None, "int4"])
def test_dense_tables_for_anything(tmp_path: Path, precision: str | None):
    module = trained(make_plan(Budget.parameters(10**5)), layout="prefix")
    source = module if precision is None else quantize(module, precision=precision)
    path = export_dense(source, tmp_path / "dense.safetensors")
    dense = load_file(path)
    assert_rows(dense, module.full_tables() if precision is None else expected(module.plan, "int4"))
    assert {name: table.shape for name, table in dense.items()} == {"a": (60, 20), "b": (33, 13)}


def test_reading_by_id(tmp_path: Path):
    module = trained(make_plan(inference("int4")))
    tables = read_tables(quantize(module).save(tmp_path / "tables.safetensors"))
    rows = expected(module.plan)["b"].numpy()
    ids = np.array([[3, 3, 32], [0, 17, 5]])
    assert np.array_equal(tables["b"].read(ids), rows[ids])
    assert np.array_equal(tables["b"].read(ids, width=4), rows[ids, :4])
    assert np.array_equal(tables["b"].read(7), rows[7])
    assert tables["b"].read([]).shape == (0, 13)
    for wrong in ([33], [-1], [0.5], [True]):
        with pytest.raises(InvalidInputError, match="integers from 0 to 32"):
            tables["b"].read(wrong)


def test_reading_needs_numpy_alone(tmp_path: Path):
    path = quantize(trained(make_plan(inference("int8")))).save(tmp_path / "tables.safetensors")
    code = (
        "import sys; from bet_torchrec.serving import read_tables\n"
        f"rows = read_tables({str(path)!r})['b'].read([4])\n"
        "print(rows.tolist())\n"
        "assert not {'torch', 'torchrec', 'fbgemm_gpu', 'safetensors'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    wanted = expected(make_plan(inference("int8")))["b"][4:5]
    assert torch.equal(torch.tensor(json.loads(done.stdout)), wanted)


def test_damaged_files_are_refused(tmp_path: Path):
    path = quantize(trained(make_plan(inference("int8")))).save(tmp_path / "tables.safetensors")
    good = path.read_bytes()
    rng = np.random.default_rng(0)
    places = {0, 3, 8, 9, 20, 200, len(good) // 2, len(good) - 1, *rng.integers(0, len(good), 60)}
    damaged = [good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :] for place in places]
    damaged += [b"", b"x", good[:7], good[:100], good[:-1], good + b"\0", bytes(100)]
    for data in damaged:
        path.write_bytes(data)
        for read in (read_tables, load):
            with pytest.raises(TableFileError, match="tables.safetensors"):
                read(path)


def test_foreign_and_newer_files_are_refused(tmp_path: Path):
    plan = make_plan(inference("int8"))
    quantised = quantize(trained(plan))
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "nowhere")
    with pytest.raises(TableFileError, match="got a safetensors file of 'bet_torchrec.plan'"):
        load(plan.save(tmp_path / "plan"))
    save_file({"x": torch.zeros(3)}, str(tmp_path / "other"))
    with pytest.raises(TableFileError, match="something else"):
        read_tables(tmp_path / "other")
    path = quantised.save(tmp_path / "tables")
    path.write_bytes(path.read_bytes().replace(b'"version": "1"', b'"version": "3"'))
    with pytest.raises(TableFileError, match="version 2 or older, got '3'; upgrade"):
        load(path)


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path):
    def interrupted() -> Any:
        yield np.zeros(2, dtype=np.uint8)
        raise KeyboardInterrupt

    path = export_tables(trained(make_plan(inference("int8"))), tmp_path / "tables")
    before = path.read_bytes()
    with pytest.raises(KeyboardInterrupt):
        tensors.write_file(path, {}, [tensors.Entry("x", "U8", (4,), interrupted)])
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_modules_without_weights_are_refused(tmp_path: Path):
    plan = make_plan(inference("int8"))
    empty = BudgetedEmbeddingBagCollection(TABLES, plan, device="meta")
    for write in (export_tables, export_dense):
        with pytest.raises(InvalidInputError, match="'meta'"):
            write(empty, tmp_path / "tables")
        with pytest.raises(InvalidInputError, match="unsharded collection, got _Sharded"):
            write(_Sharded(plan), tmp_path / "tables")
    assert not list(tmp_path.iterdir())


class _Sharded:
    """What a sharded collection has in common with others."""

    def __init__(self, plan: Any) -> None:
        whole = trained(plan)
        self.tables, self.plan, self.blocks = whole.tables, plan, whole.blocks


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("good") / "tables"
    return quantize(trained(make_plan(inference("int8")), row_order="interleaved")).save(path)


@settings(max_examples=120, deadline=None)
@given(st.data())
def test_a_crafted_header_is_refused_or_can_be_read(good: Path, data: st.DataObject):
    header = mutated(data.draw, json.loads(tensors.open_file(good).metadata["header"]))
    path = rewritten(good, good.with_name("crafted"), {"header": json.dumps(header)})
    with contextlib.suppress(TableFileError):
        read_all(path)
    with contextlib.suppress(TableFileError):
        load(path)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ('"rows": 60', "header.tables[0].rows should be an int, got 'x'"),
        ('"width": 9', "width should be an int, got 'x'"),
        ('"layout": "bucketed"', "header.layout should be one of 'bucketed', 'prefix', got 'x'"),
    ],
)
def test_the_place_is_told(good: Path, tmp_path: Path, change: str, says: str):
    header = tensors.open_file(good).metadata["header"]
    assert change in header
    crafted = header.replace(change, change.split(":")[0] + ': "x"')
    path = rewritten(good, tmp_path / "tables", {"header": crafted})
    with pytest.raises(TableFileError) as error:
        read_tables(path)
    assert says in str(error.value)
    rewritten(good, path, {"header": "[" * 50_000})
    with pytest.raises(TableFileError, match="nested"):
        read_tables(path)


@pytest.mark.parametrize("swap", [[0, 0], [1, -1], [0, 33]])
def test_an_id_map_that_is_none_is_refused(good: Path, tmp_path: Path, swap: list[int]):
    """It would read other rows' values, or zeros, without a word."""
    id_map = np.array(tensors.open_file(good).array("id_map/b"))
    id_map[:2] = swap
    path = rewritten(good, tmp_path / "tables", arrays={"id_map/b": id_map})
    with pytest.raises(TableFileError, match="id map of 'b' should name each rank once"):
        read_tables(path)
