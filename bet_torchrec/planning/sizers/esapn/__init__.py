"""ESAPN: policies grow rows one size at a time while the model trains."""

from .growing import GrowingRows
from .policy import Policy, Rewards
from .settings import ESAPN

__all__ = ["ESAPN", "GrowingRows", "Policy", "Rewards"]
