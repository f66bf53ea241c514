"""Rows: TorchRec's optimizers and their wrappers, each with a checkpoint in between."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from typing import Any

import torch
from conformance_kinds import LR, Kind, Model, assert_alike, trained
from conformance_table import TABLE, refused
from torchrec.optim import GradientClipping, GradientClippingOptimizer, WarmupPolicy, WarmupStage
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizerWrapper
from torchrec.optim.optimizers import in_backward_optimizer_filter
from torchrec.optim.warmup import WarmupOptimizer

from bet_torchrec.embeddings import load_checkpoint, save_checkpoint

GROUP = "Optimizers"


def keyed(made: Any) -> KeyedOptimizerWrapper:
    """Adagrad over all tables."""
    weights = dict(in_backward_optimizer_filter(made.named_parameters()))
    return KeyedOptimizerWrapper(weights, lambda p: torch.optim.Adagrad(p, lr=LR))


def _trains_alike(kind: Kind, optimizer: Callable[[Any], Any]) -> None:
    tables = [kind.table(trained(kind, made, optimizer(made))) for made in kind.both()]
    assert_alike(*tables)


def _continues(kind: Kind, optimizer: Callable[[Any], Any]) -> None:
    """A run with a checkpoint and a new process in its middle is the run without."""
    whole = kind.ours()
    trained(kind, whole, optimizer(whole), range(6))
    first, second = Model(kind.ours()), Model(kind.ours())
    with tempfile.TemporaryDirectory() as folder:
        own = optimizer(first.tables)
        trained(kind, first, own, range(3))
        save_checkpoint(first, folder, own)
        other = optimizer(second.tables)
        load_checkpoint(second, folder, other)
    trained(kind, second, other, range(3, 6))
    assert_alike(kind.table(second.tables), kind.table(whole))


@TABLE.row(GROUP, "`apply_optimizer_in_backward`, not sharded")
def in_backward(kind: Kind) -> None:
    from torch.distributed.optim import _apply_optimizer_in_backward as apply

    tables = []
    for made in kind.both():
        apply(torch.optim.Adagrad, made.parameters(), {"lr": LR})
        tables.append(kind.table(trained(kind, made, None)))
    assert_alike(*tables)


@TABLE.row(GROUP, "`KeyedOptimizerWrapper`")
def wrapper(kind: Kind) -> None:
    _trains_alike(kind, keyed)


@TABLE.row(GROUP, "`KeyedOptimizerWrapper` with a checkpoint")
def wrapper_checkpoint(kind: Kind) -> None:
    _continues(kind, keyed)


@TABLE.row(GROUP, "`CombinedOptimizer`")
def combined(kind: Kind) -> None:
    _trains_alike(kind, lambda made: CombinedOptimizer([keyed(made)]))


@TABLE.row(GROUP, "`CombinedOptimizer` with a checkpoint")
def combined_checkpoint(kind: Kind) -> None:
    _continues(kind, lambda made: CombinedOptimizer([keyed(made)]))


def warm_up(made: Any) -> WarmupOptimizer:
    return WarmupOptimizer(
        keyed(made), [WarmupStage(WarmupPolicy.LINEAR, max_iters=10, value=0.1, lr_scale=1)], lr=LR
    )


@TABLE.row(GROUP, "`WarmupOptimizer`")
def warmup(kind: Kind) -> None:
    _trains_alike(kind, warm_up)


GIVE_INNER = refused("got WarmupOptimizer, .*: give the optimizer that it wraps")


@TABLE.row(GROUP, "`WarmupOptimizer` with a checkpoint", pooled=GIVE_INNER, unpooled=GIVE_INNER)
def warmup_checkpoint(kind: Kind) -> None:
    _continues(kind, warm_up)


def clipping(made: Any) -> GradientClippingOptimizer:
    return GradientClippingOptimizer(keyed(made), clipping=GradientClipping.VALUE, max_gradient=0.2)


@TABLE.row(GROUP, "`GradientClippingOptimizer`")
def clipped(kind: Kind) -> None:
    _trains_alike(kind, clipping)


@TABLE.row(GROUP, "`GradientClippingOptimizer` with a checkpoint")
def clipped_checkpoint(kind: Kind) -> None:
    _continues(kind, clipping)


@TABLE.row(GROUP, "`optimizer.state_dict` keyed by parameter names, and back")
def optimizer_state(kind: Kind) -> None:
    for made, twin in zip(kind.both(), kind.both(), strict=True):
        own, other = keyed(made), keyed(twin)
        trained(kind, made, own)
        other.init_state() if hasattr(other, "init_state") else None
        twin.load_state_dict(made.state_dict())
        trained(kind, twin, other, range(0))
        for weight in twin.parameters():
            weight.grad = torch.zeros_like(weight)
        other.step()
        other.load_state_dict(own.state_dict())
        assert_alike(
            kind.table(trained(kind, made, own, range(3, 5))),
            kind.table(trained(kind, twin, other, range(3, 5))),
        )
