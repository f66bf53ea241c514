"""BPR training over tables of any sizes, and the workbench that sizers try plans on.

On several processes: ``train_bpr`` with ``ranks=Peers(process_group)`` and ``evaluate_sharded``;
TorchRec's tables come in by ``collection_tables.CollectionTables``, which loads TorchRec.
"""

from .bpr import DivergedError, TrainResult, bpr_loss, train_bpr
from .checkpoint import Checkpointer, CheckpointError
from .distributed import evaluate_sharded
from .memory import heap_for_large_arrays
from .model import TrainedModel
from .probe import ProbeCheck
from .ranks import Peers
from .recipes import fast, fast_fine_tuning
from .sampling import BPRSampler
from .settings import TrainSettings, paper, paper_fine_tuning, published_lightgcn
from .sized_embedding import SizedEmbedding, TensorTables
from .workbench import TrainingWorkbench

__all__ = [
    "BPRSampler",
    "CheckpointError",
    "Checkpointer",
    "DivergedError",
    "Peers",
    "ProbeCheck",
    "SizedEmbedding",
    "TensorTables",
    "TrainResult",
    "TrainSettings",
    "TrainedModel",
    "TrainingWorkbench",
    "bpr_loss",
    "evaluate_sharded",
    "fast",
    "fast_fine_tuning",
    "heap_for_large_arrays",
    "paper",
    "paper_fine_tuning",
    "published_lightgcn",
    "train_bpr",
]
