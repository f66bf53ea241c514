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
from .settings import BET
from .shares import Dirichlet, Informed
from .training import FullBatch, SingleSamples

__all__ = [
    "BET",
    "EXPLORING_FAMILIES",
    "PAPER_FAMILIES",
    "Candidates",
    "CountPower",
    "Dirichlet",
    "FitnessPredictor",
    "Flat",
    "FullBatch",
    "History",
    "HistoryError",
    "Informed",
    "LogNormal",
    "PowerLaw",
    "Probe",
    "Sampler",
    "SingleSamples",
    "TruncatedExponential",
    "TruncatedNormal",
]
