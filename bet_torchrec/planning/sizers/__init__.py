"""Methods that turn a sizing problem into a plan."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from .bet import BET
from .equal_sizes import EqualSizes
from .mixed_random import MixedRandom
from .problem import Evaluate, Sizer, SizingProblem, Workbench

__all__ = [
    "BET",
    "SIZERS",
    "EqualSizes",
    "Evaluate",
    "MixedRandom",
    "Sizer",
    "SizingProblem",
    "Workbench",
]

SIZERS: Mapping[str, Callable[..., Sizer]] = MappingProxyType(
    {"bet": BET, "es": EqualSizes, "mr": MixedRandom}
)
