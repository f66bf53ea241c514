"""Backbones by name, in BET's set-up."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from torch import nn

from ..errors import InvalidInputError
from .lightgcn import LightGCN
from .ncf import NCF
from .ngcf import NGCF
from .propagation import BipartiteGraph

BACKBONES: Mapping[str, Callable[[BipartiteGraph, int], nn.Module]] = MappingProxyType(
    {
        "lightgcn": lambda graph, dim: LightGCN(graph),
        "ngcf": lambda graph, dim: NGCF(graph, dim=dim),
        "ncf": lambda graph, dim: NCF(graph.num_users, graph.num_items, dim=dim),
    }
)


def make_backbone(name: str, graph: BipartiteGraph, *, dim: int) -> nn.Module:
    """A backbone as BET sets it up, for tables of full width ``dim``, its weights not yet drawn.

    Raises:
        InvalidInputError: no backbone has this name.
    """
    if name not in BACKBONES:
        raise InvalidInputError(f"backbone should be one of {sorted(BACKBONES)}, got {name!r}")
    return BACKBONES[name](graph, dim)
