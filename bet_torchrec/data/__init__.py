"""Who took which item: interactions, their splits, where they come from, and made-up ones."""

from __future__ import annotations

from .errors import DataError, DataNotFoundError, DownloadError
from .interactions import Interactions
from .loaders import DATASETS, data_directory, load
from .split import Split, published_split, random_split, temporal_split
from .synthetic import generate

__all__ = [
    "DATASETS",
    "DataError",
    "DataNotFoundError",
    "DownloadError",
    "Interactions",
    "Split",
    "data_directory",
    "generate",
    "load",
    "published_split",
    "random_split",
    "temporal_split",
]
