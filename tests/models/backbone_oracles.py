"""Oracles of the backbones' tests."""

from __future__ import annotations

import numpy as np
import torch
from scipy import sparse


def dense_adjacency(edges: sparse.csr_matrix) -> torch.Tensor:
    """The normalised (U + I, U + I) adjacency, straight from the definition."""
    r = edges.toarray()
    a = np.block([[np.zeros((len(r), len(r))), r], [r.T, np.zeros((r.shape[1], r.shape[1]))]])
    degrees = a.sum(axis=1)
    root = np.where(degrees > 0, 1 / np.sqrt(np.maximum(degrees, 1)), 0)
    return torch.from_numpy(root[:, None] * a * root[None])


def random_tables(rows: dict[str, int], width: int, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(n, width, generator=generator) for name, n in rows.items()}
