"""A training step of our own for CPU: lookup, and backward with the update in it."""

from ..native.build import CompilerError
from .module import FusedBudgetedEmbeddingBagCollection

__all__ = ["CompilerError", "FusedBudgetedEmbeddingBagCollection"]
