"""Recommenders as plain modules over any embedding module; they know no sizes."""

from .lightgcn import LightGCN
from .make import BACKBONES, make_backbone
from .ncf import NCF
from .ngcf import NGCF
from .partition import PartitionedGraph
from .propagation import BipartiteGraph
from .protocol import Backbone, BPRTerms, EmbeddingModule, principal_axes

__all__ = [
    "BACKBONES",
    "NCF",
    "NGCF",
    "BPRTerms",
    "Backbone",
    "BipartiteGraph",
    "EmbeddingModule",
    "LightGCN",
    "PartitionedGraph",
    "make_backbone",
    "principal_axes",
]
