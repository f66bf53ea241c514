"""Methods that turn a sizing problem into a plan."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from .bet import BET
from .equal_sizes import EqualSizes
from .mixed_random import MixedRandom
from .problem import SizingProblem
from .sensitivity import Sensitivity
from .workbench import Evaluate, Sized, Sizer, Start, Train, Trained, Workbench

__all__ = [
    "BET",
    "SIZERS",
    "EqualSizes",
    "Evaluate",
    "MixedRandom",
    "Sensitivity",
    "Sized",
    "Sizer",
    "SizingProblem",
    "Start",
    "Train",
    "Trained",
    "Workbench",
]

SIZERS: Mapping[str, Callable[..., Sizer]] = MappingProxyType(
    {"bet": BET, "es": EqualSizes, "mr": MixedRandom, "sensitivity": Sensitivity}
)
