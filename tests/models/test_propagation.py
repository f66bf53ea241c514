"""Products with the adjacency against dense and torch.sparse ones, values and gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from backbone_oracles import dense_adjacency
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from bet_torchrec.errors import InvalidInputError
from bet_torchrec.models import BipartiteGraph


def test_one_product_is_the_dense_product(graph, adjacency):
    users, items = torch.randn(7, 5), torch.randn(9, 5)
    expected = adjacency.float() @ torch.cat([users, items])
    torch.testing.assert_close(torch.cat(graph.propagate(users, items)), expected)


@pytest.mark.parametrize("layers", range(7))
def test_layer_mean_is_the_mean_of_powers(graph, adjacency, layers):
    users, items = torch.randn(7, 5).double(), torch.randn(9, 5).double()
    layer = torch.cat([users, items])
    total = layer.clone()
    for _ in range(layers):
        layer = adjacency @ layer
        total += layer
    found = torch.cat(graph.layer_mean(users, items, layers=layers))
    # The graph's weights are fp32.
    torch.testing.assert_close(found, total / (layers + 1), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("layers", [0, 1, 2, 3, 4])
def test_gradients(graph, layers):
    users = torch.randn(7, 3, dtype=torch.float64, requires_grad=True)
    items = torch.randn(9, 3, dtype=torch.float64, requires_grad=True)
    ids = torch.tensor([0, 3, 3, 6]), torch.tensor([8, 1, 1, 1, 2])
    assert torch.autograd.gradcheck(
        lambda u, i: graph.layer_mean(u, i, layers=layers), (users, items)
    )
    assert torch.autograd.gradcheck(
        lambda u, i: graph.layer_mean_rows(u, i, *ids, layers=layers), (users, items)
    )
    assert torch.autograd.gradcheck(graph.propagate, (users, items))


def test_gradient_equals_torch_sparse(graph, adjacency):
    matrix = adjacency.float().to_sparse_coo()
    start = torch.randn(16, 8)
    ours = start.clone().requires_grad_()
    theirs = start.clone().requires_grad_()
    loss = torch.cat(graph.layer_mean(*ours.split([7, 9]), layers=3)).sin().sum()
    loss.backward()
    layer = total = theirs
    for _ in range(3):
        layer = torch.sparse.mm(matrix, layer)
        total = total + layer
    (total / 4).sin().sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_rows_equal_gathering(graph):
    users, items = torch.randn(7, 4, requires_grad=True), torch.randn(9, 4, requires_grad=True)
    some, others = torch.tensor([5, 0, 5]), torch.tensor([1, 1, 7, 2])
    rows = graph.layer_mean_rows(users, items, some, others, layers=3)
    weights = [torch.randn_like(part) for part in rows]
    sum((w * part).sum() for w, part in zip(weights, rows, strict=True)).backward()
    got = users.grad.clone(), items.grad.clone()
    users.grad = items.grad = None

    all_users, all_items = graph.layer_mean(users, items, layers=3)
    norm = (users[some].square().sum() + items[others].square().sum()) / 2
    expected = all_users[some], all_items[others], norm
    torch.testing.assert_close(rows, expected)
    sum((w * part).sum() for w, part in zip(weights, expected, strict=True)).backward()
    torch.testing.assert_close(got, (users.grad, items.grad))


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 2**32 - 1), st.floats(0, 1))
def test_any_graph(num_users, num_items, seed, density):
    rng = np.random.default_rng(seed)
    edges = sparse.csr_matrix((rng.random((num_users, num_items)) < density).astype(float))
    graph = BipartiteGraph(edges)
    x = torch.randn(num_users + num_items, 2)
    found = torch.cat(graph.propagate(x[:num_users], x[num_users:]))
    torch.testing.assert_close(found, dense_adjacency(edges).float() @ x)
    assert graph.num_edges == edges.nnz


def test_repeated_edges_count_once():
    twice = sparse.coo_matrix(([1.0, 1.0, 0.0], ([0, 0, 1], [1, 1, 0])), shape=(2, 2))
    graph = BipartiteGraph(twice)
    assert graph.num_edges == 1
    torch.testing.assert_close(graph.to_users(torch.eye(2)), torch.tensor([[0.0, 1.0], [0, 0]]))


def test_errors(graph):
    with pytest.raises(InvalidInputError, match="sparse"):
        BipartiteGraph(np.ones((2, 2)))
    with pytest.raises(InvalidInputError, match="layers"):
        graph.layer_mean(torch.ones(7, 1), torch.ones(9, 1), layers=-1)
