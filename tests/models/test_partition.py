"""The partitioned graph on 1, 2 and 3 ranks against the whole one: values and gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.distributed as dist
from backbone_oracles import random_tables
from gloo_ranks import on_ranks
from scipy import sparse

from bet_torchrec.errors import InvalidInputError
from bet_torchrec.models import NGCF, BipartiteGraph, LightGCN, PartitionedGraph
from bet_torchrec.training import TensorTables

pytestmark = pytest.mark.distributed

ROWS = {"user": 7, "item": 10}  # shares of 3, 2, 2 and 4, 3, 3 on three ranks
LAYERS = (0, 1, 2, 3, 4)


def edges() -> sparse.csr_matrix:
    """User 6 and item 9 have none, user 0 has most."""
    rng = np.random.default_rng(3)
    dense = rng.random((7, 10)) < np.linspace(0.9, 0.2, 7)[:, None]
    dense[6] = dense[:, 9] = False
    return sparse.csr_matrix(dense.astype(float))


def batches(ranks: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Every rank's users and items, with repetitions; the last rank asks for nothing of three."""
    rng = np.random.default_rng(1)
    sizes = [5, 2, 0][:ranks]
    return [
        (torch.from_numpy(rng.integers(7, size=n)), torch.from_numpy(rng.integers(10, size=2 * n)))
        for n in sizes
    ]


def coefficients(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def model(name: str, graph: BipartiteGraph) -> torch.nn.Module:
    if name == "lightgcn":
        return LightGCN(graph, layers=3).double()
    ngcf = NGCF(graph, dim=4, layers=(4, 3), message_dropout=0, node_dropout=0).double()
    ngcf.reset_parameters(torch.Generator().manual_seed(0))
    return ngcf


def loss_of(terms) -> torch.Tensor:
    return terms.margin.sigmoid().sum() + 0.3 * terms.l2


def on_rank(pg) -> dict[str, object]:
    """Everything that this rank computes, by name."""
    rank, ranks = dist.get_rank(pg), dist.get_world_size(pg)
    graph = PartitionedGraph(edges(), pg)
    tables = {k: t.double() for k, t in random_tables(ROWS, 4).items()}
    ids = {"user": graph.user_ids, "item": graph.item_ids}
    found: dict[str, object] = {"ids": ids, "edges": graph.num_edges}

    def local() -> list[torch.Tensor]:
        return [tables[k][ids[k]].requires_grad_() for k in ROWS]

    for layers in LAYERS:
        own = local()
        final = graph.layer_mean(*own, layers=layers)
        sum(
            (coefficients((ROWS[k], 4), 5)[ids[k]] * part).sum()
            for k, part in zip(ROWS, final, strict=True)
        ).backward()
        found[f"mean {layers}"] = [part.detach() for part in final], [t.grad for t in own]
    own = local()
    torch.cat([part.sin().sum(dim=1) for part in graph.propagate(*own)]).sum().backward()
    found["propagate"] = [t.grad for t in own]
    found["whole"] = graph.whole(*[t.detach() for t in own])

    for name in ("lightgcn", "ngcf"):
        backbone = model(name, graph)
        leaves = {k: t.clone().requires_grad_() for k, t in tables.items()}
        users, items = batches(ranks)[rank]
        terms = backbone(TensorTables(leaves), users, *items.chunk(2))
        loss_of(terms).backward()
        found[name] = {
            "margin": terms.margin.detach(),
            "l2": terms.l2.detach(),
            "tables": [leaf.grad for leaf in leaves.values()],
            "weights": [p.grad for p in backbone.parameters()],
            "scores": backbone.scores(TensorTables(tables)),
        }
    try:
        graph.propagate(tables["user"], tables["item"])
        found["error"] = None
    except InvalidInputError as error:
        found["error"] = str(error)
    # Fewer rows than ranks: some ranks have none.
    tiny = PartitionedGraph(sparse.csr_matrix(np.ones((1, 2))), pg)
    rows = tiny.tables(TensorTables({"user": torch.ones(1, 2), "item": torch.ones(2, 2)}))
    found["tiny"] = tiny.whole(*tiny.layer_mean(*rows, layers=3))
    return found


SLOW = (pytest.param(n, marks=pytest.mark.slow) for n in (1, 3))


@pytest.fixture(scope="module", params=[2, *SLOW])
def found(request):
    return on_ranks(on_rank, request.param)


def merged(found, name: str, pick) -> list[torch.Tensor]:
    """User and item rows in id order, out of every rank's."""
    out = []
    for side, (key, rows) in enumerate(ROWS.items()):
        parts = [pick(rank[name])[side] for rank in found]
        whole = torch.zeros(rows, parts[0].shape[1], dtype=parts[0].dtype)
        for rank, part in zip(found, parts, strict=True):
            whole[rank["ids"][key]] = part
        out.append(whole)
    return out


def leaves() -> list[torch.Tensor]:
    return [t.double().requires_grad_() for t in random_tables(ROWS, 4).values()]


def test_every_row_and_edge_has_one_owner(found):
    for key, rows in ROWS.items():
        owned = torch.cat([rank["ids"][key] for rank in found])
        assert sorted(owned.tolist()) == list(range(rows))
    assert sum(rank["edges"] for rank in found) == edges().nnz


@pytest.mark.parametrize("layers", LAYERS)
def test_layer_means_and_their_gradients(found, layers):
    whole = leaves()
    expected = BipartiteGraph(edges()).layer_mean(*whole, layers=layers)
    sum((coefficients(part.shape, 5) * part).sum() for part in expected).backward()
    name = f"mean {layers}"
    torch.testing.assert_close(merged(found, name, lambda x: x[0]), [e.detach() for e in expected])
    torch.testing.assert_close(merged(found, name, lambda x: x[1]), [t.grad for t in whole])


def test_one_product(found):
    whole = leaves()
    torch.cat(
        [p.sin().sum(dim=1) for p in BipartiteGraph(edges()).propagate(*whole)]
    ).sum().backward()
    torch.testing.assert_close(merged(found, "propagate", lambda x: x), [t.grad for t in whole])
    for rank in found:
        torch.testing.assert_close(list(rank["whole"]), [t.detach() for t in whole])


@pytest.mark.parametrize("name", ["lightgcn", "ngcf"])
def test_models_agree_in_loss_scores_and_the_gradient_of_the_summed_loss(found, name):
    backbone = model(name, BipartiteGraph(edges()))
    whole = leaves()
    embedding = TensorTables(dict(zip(ROWS, whole, strict=True)))
    total = 0
    for rank, (users, items) in zip(found, batches(len(found)), strict=True):
        terms = backbone(embedding, users, *items.chunk(2))
        torch.testing.assert_close(rank[name]["margin"], terms.margin.detach())
        torch.testing.assert_close(rank[name]["l2"], terms.l2.detach())
        torch.testing.assert_close(rank[name]["scores"], backbone.scores(embedding))
        total = total + loss_of(terms)
    total.backward()
    for side, table in enumerate(whole):
        # Each rank has the gradient of its own rows and zeros for the others'.
        torch.testing.assert_close(sum(rank[name]["tables"][side] for rank in found), table.grad)
    for place, weight in enumerate(backbone.parameters()):
        torch.testing.assert_close(sum(rank[name]["weights"][place] for rank in found), weight.grad)


def test_fewer_rows_than_ranks(found):
    whole = BipartiteGraph(sparse.csr_matrix(np.ones((1, 2))))
    expected = whole.layer_mean(torch.ones(1, 2), torch.ones(2, 2), layers=3)
    for rank in found:
        torch.testing.assert_close(rank["tiny"], expected)


def test_whole_tables_are_refused(found):
    for rank in found:
        assert len(found) == 1 or "this rank's rows only" in rank["error"]
