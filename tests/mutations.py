"""What damage and malice do to JSON: one place of it changed, removed, doubled or replaced."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st

from bet_torchrec.files import tensors

ANYTHING = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([0, -1, 1, 2, 7, 2**31, 2**63, -(2**63) - 1, 10**400]),
    st.sampled_from([0.0, 1.5, float("nan"), float("inf"), -float("inf")]),
    st.sampled_from(["", "x", "fp16", "../up", "\ud800", "[" * 50, "a" * 300]),
    st.sampled_from([[], {}, [[]], {"x": 1}, [1, 2]]),
)


def mutated(draw: Any, value: Any) -> Any:
    """A copy with one place that is another. draw: hypothesis's ``data.draw``."""
    whole = {"": copy.deepcopy(value)}
    here: Any = whole
    key: Any = ""
    while isinstance(here[key], dict | list) and here[key] and draw(st.integers(0, 7)):
        here = here[key]
        key = draw(st.sampled_from(list(here) if isinstance(here, dict) else range(len(here))))
    kind = draw(st.sampled_from(["replace", "near", "remove", "add"]))
    old = here[key]
    if kind == "near" and isinstance(old, int) and not isinstance(old, bool):
        here[key] = old + draw(st.sampled_from([-1, 1, 2]))
    elif kind == "remove" and here is not whole:
        del here[key]
    elif kind == "add" and isinstance(old, list):
        old.append(draw(ANYTHING) if not old else copy.deepcopy(draw(st.sampled_from(old))))
    elif kind == "add" and isinstance(old, dict):
        old[draw(st.sampled_from(["x", "", "name"]))] = draw(ANYTHING)
    else:
        here[key] = draw(ANYTHING)
    return whole[""]


def rewritten(
    path: Path,
    target: Path,
    metadata: Mapping[str, str] | None = None,
    arrays: Mapping[str, Any] | None = None,
) -> Path:
    """A tensor file with other metadata or arrays, and a checksum that fits: malice, not damage."""
    file = tensors.open_file(path)
    told = {**file.metadata, **(metadata or {})}
    del told[tensors.CHECKSUM]
    entries = [
        tensors.Entry(name, stored.dtype, stored.shape, partial(iter, [values]))
        for name, stored in file.tensors.items()
        for values in [(arrays or {}).get(name, np.array(file.array(name)))]
    ]
    tensors.write_file(target, told, entries)
    return target
