"""Column codes behind TorchRec's interface, for serving."""

from __future__ import annotations

from .collection import CodedEmbeddingBagCollection

__all__ = ["CodedEmbeddingBagCollection"]
