"""BET: a budgeted search over whole tables of sizes."""

from .families import (
    EXPLORING_FAMILIES,
    PAPER_FAMILIES,
    CountPower,
    Flat,
    LogNormal,
    PowerLaw,
    TruncatedExponential,
    TruncatedNormal,
)
from .history import History, HistoryError, Probe
from .predictor import FitnessPredictor
from .sampler import Candidates, Sampler
from .search import BET
from .training import FullBatch, SingleSamples

__all__ = [
    "BET",
    "EXPLORING_FAMILIES",
    "PAPER_FAMILIES",
    "Candidates",
    "CountPower",
    "FitnessPredictor",
    "Flat",
    "FullBatch",
    "History",
    "HistoryError",
    "LogNormal",
    "PowerLaw",
    "Probe",
    "Sampler",
    "SingleSamples",
    "TruncatedExponential",
    "TruncatedNormal",
]
