"""Methods that turn a sizing problem into a plan."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from .bet import BET
from .ciess import CIESS
from .darts import DartsEmb
from .equal_sizes import EqualSizes
from .esapn import ESAPN
from .forms import Form, FormPlan
from .hashing import Hashing, QuotientRemainder
from .magnitude import Magnitude
from .mgqe import MGQE
from .mixed_dimensions import MDE
from .mixed_random import MixedRandom
from .mlet import MLET
from .optembed import OptEmbed
from .pep import PEP
from .problem import SizingProblem
from .sensitivity import Sensitivity
from .workbench import Evaluate, Sized, Sizer, Start, Train, Trained, Workbench

__all__ = [
    "BET",
    "CIESS",
    "ESAPN",
    "MDE",
    "MGQE",
    "MLET",
    "PEP",
    "SIZERS",
    "DartsEmb",
    "EqualSizes",
    "Evaluate",
    "Form",
    "FormPlan",
    "Hashing",
    "Magnitude",
    "MixedRandom",
    "OptEmbed",
    "QuotientRemainder",
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
    {
        "bet": BET,
        "es": EqualSizes,
        "mr": MixedRandom,
        "sensitivity": Sensitivity,
        "magnitude": Magnitude,
        "pep": PEP,
        "mlet": MLET,
        "mde": MDE,
        "mgqe": MGQE,
        "darts": DartsEmb,
        "optembed": OptEmbed,
        "esapn": ESAPN,
        "ciess": CIESS,
        "hashing": Hashing,
        "qr": QuotientRemainder,
    }
)
