"""A table in axes of its own: row = coordinates[:size] @ basis[:size], for any model.

Apart from ``embeddings``, whose import loads TorchRec: a probe or a sizer needs axes, too.
"""

from __future__ import annotations

from .basis import Basis
from .moments import Moments, row_blocks
from .principal import lookups, principal_basis, turn_in_place

__all__ = [
    "Basis",
    "Moments",
    "lookups",
    "principal_basis",
    "row_blocks",
    "turn_in_place",
]
