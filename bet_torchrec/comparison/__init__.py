"""Methods side by side under one honest budget: a grid of cells, one results file, one report."""

from __future__ import annotations

from .cells import Cell, Share, grid
from .methods import DEFAULTS, METHODS
from .results import read_results
from .run import Settings, run_cells

__all__ = ["DEFAULTS", "METHODS", "Cell", "Settings", "Share", "grid", "read_results", "run_cells"]
