"""Plans made real: TorchRec tables that train, shard, checkpoint, quantise and serve.

Knows the plan and nothing else of planning. Importing this loads TorchRec and FBGEMM, after a
check that their versions fit together.
"""

from .. import _versions

_versions.check()

from .constraints import sharding_constraints, with_dense_kernels  # noqa: E402
from .layout import Block, blocks  # noqa: E402
from .module import BudgetedEmbeddingBagCollection  # noqa: E402
from .routing import IdRangeError  # noqa: E402
from .sharder import (  # noqa: E402
    BudgetedEmbeddingBagCollectionSharder,
    ShardedBudgetedEmbeddingBagCollection,
)
from .sharding_checks import ShardingError  # noqa: E402

__all__ = [
    "Block",
    "BudgetedEmbeddingBagCollection",
    "BudgetedEmbeddingBagCollectionSharder",
    "IdRangeError",
    "ShardedBudgetedEmbeddingBagCollection",
    "ShardingError",
    "blocks",
    "sharding_constraints",
    "with_dense_kernels",
]
