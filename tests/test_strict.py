"""The strict reader: declared types come out, or an error of ours that says where."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bet_torchrec.strict import MAX_DEPTH, StrictError, parse, typed


@dataclass(frozen=True)
class Table:
    name: str
    rows: int
    buckets: tuple[tuple[int, int, str], ...]
    share: float = 0.5
    kind: Literal["a", "b"] = "a"

    def __post_init__(self) -> None:
        if self.rows < 1:
            raise ValueError(f"a table has rows, got {self.rows}")


@dataclass(frozen=True)
class Header:
    tables: tuple[Table, ...]
    seed: int | None
    notes: Mapping[str, str]
    free: Any = None


HEADER = Header((Table("t", 3, ((8, 1, "fp32"), (2, 2, "int8"))),), None, {"a": "b"}, [1, {}])


def test_what_was_declared_comes_out() -> None:
    assert parse(json.dumps(asdict(HEADER)), Header, "header") == HEADER
    assert parse(b"3", int, "x") == 3
    assert type(parse("3", float, "x")) is float
    assert parse('{"a": [1]}', dict[str, list[int]], "x") == {"a": [1]}
    assert parse("[1, null, true]", tuple[int, None, bool], "x") == (1, None, True)
    assert str(parse("[NaN, -Infinity]", Any, "x")) == "[nan, -inf]"


def changed(**changes: Any) -> dict[str, Any]:
    header = json.loads(json.dumps(asdict(HEADER)))
    header["tables"][0] |= changes.pop("table", {})
    return {**header, **changes}


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (changed(table={"rows": "x"}), "header.tables[0].rows should be an int, got 'x'"),
        (changed(table={"rows": True}), "tables[0].rows should be an int, got True"),
        (changed(table={"rows": 3.0}), "tables[0].rows should be an int, got 3.0"),
        (changed(table={"rows": 2**63}), "int of 64 bits, got an integer of 64 bits"),
        (changed(table={"rows": 0}), "header.tables[0]: a table has rows, got 0"),
        (changed(table={"share": float("inf")}), "share should be a finite number, got inf"),
        (changed(table={"share": 10**400}), "share should be a finite number, got an integer of"),
        (changed(table={"kind": "c"}), "kind should be one of 'a', 'b', got 'c'"),
        (changed(table={"kind": ["a"]}), "kind should be one of 'a', 'b', got a list of 1"),
        (changed(table={"buckets": [[1, 2]]}), "buckets[0] should have 3 entries, got 2"),
        (changed(table={"more": 1}), "header.tables[0] has no 'more': it is none of name, rows"),
        (changed(tables=None), "header.tables should be a list, got None"),
        (changed(tables={"0": 1}), "header.tables should be a list, got an object of 1"),
        (changed(notes={"a": 1}), "header.notes['a'] should be a string, got 1"),
        (changed(notes={"a": "\ud800"}), "header.notes['a'] should be text, got half a character"),
        (changed(seed="x" * 999), "header.seed should be an int, got 'xxxxx"),
        ([], "header should be an object, got a list of 0"),
        ({}, "header.tables is missing"),
    ],
)
def test_anything_else_is_told_with_its_place(value: Any, says: str) -> None:
    with pytest.raises(StrictError) as error:
        parse(json.dumps(value), Header, "header")
    assert says in str(error.value)
    assert len(str(error.value)) < 200


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"\xff{}", "should be JSON in UTF-8"),
        ("{", "should be JSON in UTF-8"),
        ("9" * 5000, "should be JSON in UTF-8"),
        ('{"a": 1, "a": 2}', "name everything once, got 'a' twice"),
        ("[" * 100_000, "nested"),
        ("[" * 100_000 + "]" * 100_000, "nested"),
        ('{"a":' * 900 + "1" + "}" * 900, "nested"),
        ("[" * 40 + "]" * 40, f"nested at most {MAX_DEPTH} deep"),
    ],
)
def test_what_is_no_json_is_told(text: str | bytes, says: str) -> None:
    with pytest.raises(StrictError, match=says):
        parse(text, Any, "x")


def test_unions_take_what_fits() -> None:
    kind: Any = Table | int | None
    assert typed(None, kind, "x") is None
    assert typed(3, kind, "x") == 3
    for number in (3, 2**63, 10**30, 0.5):
        found: Any = typed(number, int | float, "x")  # type: ignore[arg-type]
        assert found == number
        assert type(found) is type(number)
    with pytest.raises(StrictError, match="x should be an int or a finite number, got an integer"):
        typed(10**400, int | float, "x")  # type: ignore[arg-type]
    with pytest.raises(StrictError, match="x should be an object or an int or null, got 'y'"):
        typed("y", kind, "x")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_no_other_error_comes_out(data: Any) -> None:
    """One place of a sound header is replaced by anything."""
    header: Any = changed()
    here = header
    while True:
        keys = list(here) if isinstance(here, dict) else list(range(len(here)))
        key = data.draw(st.sampled_from(keys))
        if not (isinstance(here[key], dict | list) and here[key] and data.draw(st.booleans())):
            break
        here = here[key]
    here[key] = data.draw(json_values)
    for text in (json.dumps(header), data.draw(st.text(max_size=20)), data.draw(st.binary())):
        with contextlib.suppress(StrictError):
            parse(text, Header, "header")
