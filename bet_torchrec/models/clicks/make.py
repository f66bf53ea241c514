"""Click models by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from torch import nn

from ...errors import InvalidInputError
from .autoint import AutoInt
from .dcn import DCN
from .deepfm import DeepFM
from .dlrm import DLRM
from .fm import FM

CLICK_MODELS: Mapping[str, Callable[..., nn.Module]] = MappingProxyType(
    {"fm": FM, "deepfm": DeepFM, "autoint": AutoInt, "dlrm": DLRM, "dcn": DCN}
)
"""Each is called as maker(num_fields, dim, dense_features=K, **settings)."""


def make_click_model(
    name: str, *, num_fields: int, dim: int, dense_features: int = 0, **settings: Any
) -> nn.Module:
    """A click model over ``num_fields`` fields of tables ``dim`` wide, its weights drawn.

    Raises:
        InvalidInputError: no model has this name, or it has no such setting.
    """
    whole = click_model_settings(name, **settings)
    return CLICK_MODELS[name](num_fields, dim, dense_features=dense_features, **whole)


def click_model_settings(name: str, **settings: Any) -> dict[str, Any]:
    """All of a model's settings, the given ones and its defaults, JSON-serialisable."""
    if name not in CLICK_MODELS:
        raise InvalidInputError(f"model should be one of {sorted(CLICK_MODELS)}, got {name!r}")
    known = {
        key: parameter.default
        for key, parameter in inspect.signature(CLICK_MODELS[name]).parameters.items()
        if key not in ("num_fields", "dim", "dense_features")
    }
    unknown = sorted(set(settings) - set(known))
    if unknown:
        raise InvalidInputError(f"{name} has settings {sorted(known)}, got {unknown}")
    whole = known | settings
    return {key: list(v) if isinstance(v, tuple) else v for key, v in whole.items()}
