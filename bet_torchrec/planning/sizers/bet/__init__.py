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
from .predictor import FitnessPredictor, Predictor, Scene
from .sampler import Candidates, Sampler
from .settings import BET
from .shares import Dirichlet, Informed
from .sizes_only import SizesOnly
from .surrogate import GaussianProcess
from .training import FullBatch, SingleSamples, Trainer

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
    "GaussianProcess",
    "History",
    "HistoryError",
    "Informed",
    "LogNormal",
    "PowerLaw",
    "Predictor",
    "Probe",
    "Sampler",
    "Scene",
    "SingleSamples",
    "SizesOnly",
    "Trainer",
    "TruncatedExponential",
    "TruncatedNormal",
]
