"""Files that are whole, checked, and written by one process at a time; numpy alone."""

from .atomic import replace_file, replacing
from .lock import FolderInUseError, holding

__all__ = ["FolderInUseError", "holding", "replace_file", "replacing"]
