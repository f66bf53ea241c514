"""CIESS: actors that size rows, taught by TD3 from the qualities of what they proposed."""

from .settings import CIESS
from .td3 import TD3, TD3Settings

__all__ = ["CIESS", "TD3", "TD3Settings"]
