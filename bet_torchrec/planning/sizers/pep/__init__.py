"""PEP: learnt thresholds prune the tables' entries, and what survives is trained anew."""

from .settings import PEP
from .threshold import Granularity, SoftThreshold

__all__ = ["PEP", "Granularity", "SoftThreshold"]
