"""Plans made real: TorchRec tables that train, shard, checkpoint, quantise and serve.

Knows the plan and nothing else of planning. Importing this loads TorchRec and FBGEMM, after a
check that their versions fit together.
"""

from .. import _versions

_versions.check()

from ..errors import ShardingError  # noqa: E402
from .by_table import for_blocks  # noqa: E402
from .checkpoints.checkpoint import load_checkpoint, read_checkpoint, save_checkpoint  # noqa: E402
from .checkpoints.index import Checkpoint  # noqa: E402
from .checkpoints.manifest import CheckpointMismatchError  # noqa: E402
from .checkpoints.stored import DamagedCheckpointError  # noqa: E402
from .fused import FusedBudgetedEmbeddingBagCollection  # noqa: E402
from .layout import Block, blocks  # noqa: E402
from .migration.between import migrate  # noqa: E402
from .module import BudgetedEmbeddingBagCollection  # noqa: E402
from .quantization.collection import QuantizedBudgetedEmbeddingBagCollection  # noqa: E402
from .quantization.export import export_dense, export_tables  # noqa: E402
from .quantization.quantizing import quantize  # noqa: E402
from .routing import IdRangeError  # noqa: E402
from .sequence.module import BudgetedEmbeddingCollection  # noqa: E402
from .sequence.quantized import QuantizedBudgetedEmbeddingCollection  # noqa: E402
from .sequence.sharder import (  # noqa: E402
    BudgetedEmbeddingCollectionSharder,
    ShardedBudgetedEmbeddingCollection,
)
from .sharding.constraints import sharding_constraints, with_dense_kernels  # noqa: E402
from .sharding.reservation import IdMapReservation  # noqa: E402
from .sharding.sharder import (  # noqa: E402
    BudgetedEmbeddingBagCollectionSharder,
    ShardedBudgetedEmbeddingBagCollection,
)

__all__ = [
    "Block",
    "BudgetedEmbeddingBagCollection",
    "BudgetedEmbeddingBagCollectionSharder",
    "BudgetedEmbeddingCollection",
    "BudgetedEmbeddingCollectionSharder",
    "Checkpoint",
    "CheckpointMismatchError",
    "DamagedCheckpointError",
    "FusedBudgetedEmbeddingBagCollection",
    "IdMapReservation",
    "IdRangeError",
    "QuantizedBudgetedEmbeddingBagCollection",
    "QuantizedBudgetedEmbeddingCollection",
    "ShardedBudgetedEmbeddingBagCollection",
    "ShardedBudgetedEmbeddingCollection",
    "ShardingError",
    "blocks",
    "export_dense",
    "export_tables",
    "for_blocks",
    "load_checkpoint",
    "migrate",
    "quantize",
    "read_checkpoint",
    "save_checkpoint",
    "sharding_constraints",
    "with_dense_kernels",
]
