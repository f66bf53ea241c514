"""One loop that trains any task over any embedding module, and the workbench of the sizers.

On several processes a task carries its process group; TorchRec's tables come in by
``collection_tables.CollectionTables``, which loads TorchRec.
"""

from .checkpoint import Checkpointer, CheckpointError
from .fit import DivergedError, fit
from .probe import Hopeless, ProbeCheck
from .recipes import (
    RankingRecipe,
    Recipe,
    clicks,
    fast,
    of_size,
    paper,
    published_lightgcn,
    rounding_epochs,
    small,
)
from .settings import TrainSettings
from .sized_embedding import SizedEmbedding, TensorTables
from .trained import Trained
from .turned_embedding import TurnedEmbedding, orthonormal_basis
from .workbench import TrainingWorkbench

__all__ = [
    "CheckpointError",
    "Checkpointer",
    "DivergedError",
    "Hopeless",
    "ProbeCheck",
    "RankingRecipe",
    "Recipe",
    "SizedEmbedding",
    "TensorTables",
    "TrainSettings",
    "Trained",
    "TrainingWorkbench",
    "TurnedEmbedding",
    "clicks",
    "fast",
    "fit",
    "of_size",
    "orthonormal_basis",
    "paper",
    "published_lightgcn",
    "rounding_epochs",
    "small",
]
