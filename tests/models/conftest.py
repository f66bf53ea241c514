"""Small graphs and tables."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from backbone_oracles import dense_adjacency
from scipy import sparse

from bet_torchrec.models import BipartiteGraph


@pytest.fixture
def edges() -> sparse.csr_matrix:
    """7 users x 9 items, 24 edges; user 6 and item 8 have none."""
    rng = np.random.default_rng(0)
    places = rng.choice(6 * 8, 24, replace=False)
    return sparse.csr_matrix((np.ones(24), (places // 8, places % 8)), shape=(7, 9))


@pytest.fixture
def graph(edges: sparse.csr_matrix) -> BipartiteGraph:
    return BipartiteGraph(edges)


@pytest.fixture
def adjacency(edges: sparse.csr_matrix) -> torch.Tensor:
    return dense_adjacency(edges)
