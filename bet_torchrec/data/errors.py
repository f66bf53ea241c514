"""What is wrong with data, as errors."""

from __future__ import annotations

from ..errors import BetError


class DataError(BetError, ValueError):
    """Data is damaged or not what it should be, or it lacks what was asked of it."""


class DataNotFoundError(DataError, FileNotFoundError):
    """There is no such data here, and it could not be had elsewhere."""


class DownloadError(DataNotFoundError):
    """A download failed: unreachable, refused, incomplete, or not the file that was expected."""
