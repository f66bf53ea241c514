"""BPR training over tables of any sizes, and the workbench that sizers try plans on."""

from .bpr import DivergedError, TrainResult, bpr_loss, train_bpr
from .checkpoint import CheckpointError
from .memory import heap_for_large_arrays
from .model import TrainedModel
from .probe import ProbeCheck
from .recipes import fast, fast_fine_tuning
from .sampling import BPRSampler
from .settings import TrainSettings, paper, paper_fine_tuning, published_lightgcn
from .sized_embedding import SizedEmbedding, TensorTables
from .workbench import TrainingWorkbench

__all__ = [
    "BPRSampler",
    "CheckpointError",
    "DivergedError",
    "ProbeCheck",
    "SizedEmbedding",
    "TensorTables",
    "TrainResult",
    "TrainSettings",
    "TrainedModel",
    "TrainingWorkbench",
    "bpr_loss",
    "fast",
    "fast_fine_tuning",
    "heap_for_large_arrays",
    "paper",
    "paper_fine_tuning",
    "published_lightgcn",
    "train_bpr",
]
