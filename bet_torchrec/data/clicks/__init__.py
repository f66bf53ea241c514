"""Clicks: examples of many fields with a label, their splits, sources, and made-up ones."""

from __future__ import annotations

from .avazu import read_avazu
from .batch import ClickBatch
from .binary import read_binary_criteo
from .coded import read_coded
from .criteo import PEP_MIN_COUNT, read_criteo, read_criteo_encoded
from .fields import Field
from .libfm import read_libfm
from .log import ClickLog
from .movielens import read_movielens, read_movielens_pep
from .registry import CLICK_SETS, ClickSet, load_clicks
from .split import ClickSplit, split_given, split_random, split_temporal
from .synthetic import ClickTruth, click_truth, generate_clicks
from .table import read_table
from .vocabulary import Vocabulary

__all__ = [
    "CLICK_SETS",
    "PEP_MIN_COUNT",
    "ClickBatch",
    "ClickLog",
    "ClickSet",
    "ClickSplit",
    "ClickTruth",
    "Field",
    "Vocabulary",
    "click_truth",
    "generate_clicks",
    "load_clicks",
    "read_avazu",
    "read_binary_criteo",
    "read_coded",
    "read_criteo",
    "read_criteo_encoded",
    "read_libfm",
    "read_movielens",
    "read_movielens_pep",
    "read_table",
    "split_given",
    "split_random",
    "split_temporal",
]
