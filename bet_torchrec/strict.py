"""JSON that somebody else may have written, read as what it was declared to be.

A type is the schema: ``parse(text, Header, "header")`` gives a Header, or an error that says where
and what: "header.tables[3].rows should be an int, got 'x'". Types are frozen dataclasses, int,
float, str, bool, None, Literal, unions, lists, tuples and mappings from str of these; ``Any`` is
free JSON of bounded depth. Nothing is coerced but int to float, no key is unknown, missing or
twice, no declared number is infinite, and nothing ends in Python's own errors.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from .errors import BetError

T = TypeVar("T")

MAX_DEPTH = 32  # of free JSON; elsewhere the declared type is the limit
_LARGEST = 2**63  # what int64 doesn't hold any more
_A_FLOAT_HOLDS = 10**300
_WORDS = {
    int: "an int",
    float: "a finite number",
    str: "a string",
    bool: "true or false",
    NoneType: "null",
}


class StrictError(BetError, ValueError):
    """JSON that is none, or not what it should be; says where."""


def parse(text: str | bytes, kind: type[T], name: str) -> T:
    """A value of a declared type from JSON.

    Args:
        kind: see above. name: what an error should call the whole.

    Raises:
        StrictError: it is no JSON, or not of this type.
    """
    try:
        text = text if isinstance(text, str) else text.decode()
        value = json.loads(text, object_pairs_hook=_object)
    except RecursionError:
        raise StrictError(f"{name} should be nested at most {MAX_DEPTH} deep, got more") from None
    except StrictError as error:
        raise StrictError(f"{name} {error}") from None
    except ValueError as error:  # no UTF-8, no JSON, numbers of thousands of digits
        raise StrictError(f"{name} should be JSON in UTF-8, but {error}") from None
    return typed(value, kind, name)


def typed(value: Any, kind: type[T], name: str) -> T:
    """What ``json.loads`` gave as a declared type; raises StrictError where it isn't."""
    try:
        found: T = _typed(value, kind, name)
    except RecursionError:
        raise StrictError(f"{name} should be nested less deeply") from None
    return found


def _typed(value: Any, kind: Any, name: str) -> Any:
    origin, args = get_origin(kind), get_args(kind)
    kind = NoneType if kind is None else kind
    if kind is Any:
        return _free(value, name, MAX_DEPTH)
    if origin in (Union, UnionType):
        return _one_of(value, args, name)
    if origin is Literal:
        if not any(value == known and type(value) is type(known) for known in args):
            raise _wrong(value, kind, name)
        return value
    if dataclasses.is_dataclass(kind):
        return _record(value, kind, name)
    if origin in (list, Sequence):
        return [_typed(v, args[0], f"{name}[{i}]") for i, v in enumerate(_list(value, kind, name))]
    if origin is tuple:
        return _tuple(value, kind, args, name)
    if origin in (dict, Mapping):
        if not isinstance(value, dict):
            raise _wrong(value, kind, name)
        inner = args[1]
        return {_text(k, name): _typed(v, inner, f"{name}[{k!r}]") for k, v in value.items()}
    return _plain(value, kind, name)


def _plain(value: Any, kind: Any, name: str) -> Any:
    if kind is str and isinstance(value, str):
        return _text(value, name)
    if kind is float and type(value) in (int, float):
        if not abs(value) <= sys.float_info.max:  # NaN, infinite, an int too large for a float
            raise _wrong(value, kind, name)
        return float(value)
    if kind is int and type(value) is int and not -_LARGEST <= value < _LARGEST:
        raise StrictError(f"{name} should be an int of 64 bits, got {_short(value)}")
    if kind in _WORDS and type(value) is kind:
        return value
    if kind not in _WORDS:
        raise TypeError(f"{name}: JSON has nothing for {kind!r}")
    raise _wrong(value, kind, name)


def _record(value: Any, kind: Any, name: str) -> Any:
    """A dataclass from an object; what its own checks raise gets the place."""
    if not isinstance(value, dict):
        raise _wrong(value, kind, name)
    hints, needed = _fields(kind)
    if unknown := [key for key in value if key not in hints]:
        raise StrictError(f"{name} has no {_short(unknown[0])}: it is none of {', '.join(hints)}")
    if missing := [key for key in needed if key not in value]:
        raise StrictError(f"{name}.{missing[0]} is missing")
    given = {key: _typed(v, hints[key], f"{name}.{key}") for key, v in value.items()}
    try:
        return kind(**given)
    except (ValueError, TypeError, OverflowError) as error:
        raise StrictError(f"{name}: {error}") from error


@cache
def _fields(kind: Any) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Types by name, and the names that have no default."""
    hints, none = get_type_hints(kind), dataclasses.MISSING
    fields = [field for field in dataclasses.fields(kind) if field.init]
    needed = (f.name for f in fields if f.default is none and f.default_factory is none)
    return {f.name: hints[f.name] for f in fields}, tuple(needed)


def _one_of(value: Any, kinds: tuple[Any, ...], name: str) -> Any:
    if value is None and NoneType in kinds:
        return None
    others = [kind for kind in kinds if kind is not NoneType]
    if len(others) == 1:
        return _typed(value, others[0], name)
    if {int, float} <= set(others) and type(value) is int and abs(value) < _A_FLOAT_HOLDS:
        return value  # "any number": exact, where a float would round it
    for kind in others:
        try:
            return _typed(value, kind, name)
        except StrictError:
            continue
    raise StrictError(f"{name} should be {' or '.join(map(_words, kinds))}, got {_short(value)}")


def _tuple(value: Any, kind: Any, args: tuple[Any, ...], name: str) -> tuple[Any, ...]:
    values = _list(value, kind, name)
    if len(args) == 2 and args[1] is Ellipsis:
        args = (args[0],) * len(values)
    if len(values) != len(args):
        raise StrictError(f"{name} should have {len(args)} entries, got {len(values)}")
    pairs = zip(values, args, strict=True)
    return tuple(_typed(v, inner, f"{name}[{i}]") for i, (v, inner) in enumerate(pairs))


def _list(value: Any, kind: Any, name: str) -> Sequence[Any]:
    if not isinstance(value, list | tuple):
        raise _wrong(value, kind, name)
    return value


def _free(value: Any, name: str, depth: int) -> Any:
    """Any JSON, NaN and infinities included, as deep as ``depth``."""
    if isinstance(value, dict | list) and depth == 0:
        raise StrictError(f"{name} should be nested at most {MAX_DEPTH} deep, got more")
    if isinstance(value, dict):
        for key, inner in value.items():
            _free(inner, f"{name}[{_text(key, name)!r}]", depth - 1)
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            _free(inner, f"{name}[{i}]", depth - 1)
    elif isinstance(value, str):
        _text(value, name)
    return value


def _text(value: str, name: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError:
        raise StrictError(f"{name} should be text, got half a character in {value!a:.60}") from None
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise StrictError(f"should name everything once, got {_short(twice)} twice")
    return found


def _wrong(value: Any, kind: Any, name: str) -> StrictError:
    return StrictError(f"{name} should be {_words(kind)}, got {_short(value)}")


def _words(kind: Any) -> str:
    if kind in _WORDS:
        return _WORDS[kind]
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(repr(known) for known in get_args(kind))
    return "a list" if get_origin(kind) in (list, tuple, Sequence) else "an object"


def _short(value: Any) -> str:
    """As in an error: no endless numbers, texts or nests."""
    if isinstance(value, dict | list):
        return f"{'an object' if isinstance(value, dict) else 'a list'} of {len(value)}"
    if isinstance(value, int) and abs(value) >= _LARGEST:
        return f"an integer of {value.bit_length()} bits"
    said = ascii(value)
    return said if len(said) <= 60 else f"{said[:56]} ..."
