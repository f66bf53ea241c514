"""Made-up clicks with heavy tails, of a known truth that a model can be held against."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from .fields import Field, check_names
from .log import ClickLog

_BLOCK = 1 << 15  # examples at a time: their factors stay in the cache
_CALIBRATE = 1 << 16
# Ids a bag has in the mean; some bags are empty.
_BAG = 3.0
# Mandelbrot's shift of ranks, in ranks: without it row 1 of a steep field would be nearly all.
_FLAT_HEAD = 2.0


@dataclass(frozen=True, eq=False, kw_only=True)
class ClickTruth:
    """A factorisation machine that labels are drawn from: F fields, k factors.

    linear: {field: float32 (rows,)}. factors: {field: float32 (rows, k)}. weights: float32 (K,) of
    the dense columns. order: {field: int32 (rows - 1,), the ids by falling popularity}; row 0 is
    out of vocabulary and never drawn. bias: such that the mean probability is what was asked.
    """

    fields: tuple[Field, ...]
    linear: Mapping[str, NDArray[np.float32]]
    factors: Mapping[str, NDArray[np.float32]]
    weights: NDArray[np.float32]
    order: Mapping[str, NDArray[np.int32]]
    exponent: float
    bias: float

    def logits(self, log: ClickLog) -> NDArray[np.float32]:
        """(N,): the log-odds of a click for each example of a log over the same fields."""
        single = [self.fields[i] for i in range(len(self.fields)) if not self.fields[i].multi_hot]
        found = []
        for block in log.blocks(_BLOCK):
            bags = {name: (bag.values, np.diff(bag.offsets)) for name, bag in block.bags.items()}
            ids = {field.name: block.ids[:, i] for i, field in enumerate(single)}
            found.append(self._logits(ids, bags, block.dense, len(block)))
        return np.concatenate(found)

    def draw(self, examples: int, *, seed: int, name: str = "generated") -> ClickLog:
        """So many examples, labels drawn with the truth's probabilities; times are 0, 1, 2, ...

        Raises:
            DataError: fewer than one example.
        """
        if examples < 1:
            raise DataError(f"examples should be at least 1, got {examples}")
        rng = np.random.default_rng(seed)
        single = [field for field in self.fields if not field.multi_hot]
        multi = [field for field in self.fields if field.multi_hot]
        ids = np.empty((examples, len(single)), dtype=np.int32)
        labels = np.empty(examples, dtype=np.float32)
        dense = rng.standard_normal((examples, len(self.weights)), dtype=np.float32)
        parts: dict[str, list[tuple[NDArray[np.int32], NDArray[np.int64]]]]
        parts = {field.name: [] for field in multi}
        for start in range(0, examples, _BLOCK):
            own = slice(start, min(start + _BLOCK, examples))
            n = own.stop - own.start
            for i, field in enumerate(single):
                ids[own, i] = self._ids(field, n, rng)
            for field in multi:
                lengths = rng.poisson(_BAG, n)
                parts[field.name].append((self._ids(field, int(lengths.sum()), rng), lengths))
            columns = {field.name: ids[own, i] for i, field in enumerate(single)}
            bags = {name: own_parts[-1] for name, own_parts in parts.items()}
            logits = self._logits(columns, bags, dense[own], n)
            labels[own] = rng.random(n, dtype=np.float32) < 1 / (1 + np.exp(-logits))
        made = {}
        for name_, own_parts in parts.items():
            lengths = np.concatenate([lengths for _, lengths in own_parts])
            values = np.concatenate([values for values, _ in own_parts])
            made[name_] = (values, np.concatenate(([0], np.cumsum(lengths))))
        return ClickLog.from_arrays(
            self.fields,
            labels=labels,
            ids=ids,
            bags=made,
            dense=dense if len(self.weights) else None,
            timestamps=np.arange(examples),
            name=name,
        )

    def _ids(self, field: Field, n: int, rng: np.random.Generator) -> NDArray[np.int32]:
        """n ids of a field: the inverse of a power law's distribution, in closed form."""
        rows = field.rows - 1
        low, high, power = 1 + _FLAT_HEAD, rows + 1 + _FLAT_HEAD, 1 - self.exponent
        u = rng.random(n)
        if abs(power) < 1e-9:
            x = low * (high / low) ** u
        else:
            x = (low**power + u * (high**power - low**power)) ** (1 / power)
        rank = np.clip((x - low).astype(np.int64), 0, rows - 1)
        return self.order[field.name][rank]

    def _logits(
        self,
        ids: Mapping[str, NDArray[np.int32]],
        bags: Mapping[str, tuple[NDArray[np.int32], NDArray[np.int64]]],
        dense: NDArray[np.float32] | None,
        n: int,
    ) -> NDArray[np.float32]:
        k = next(iter(self.factors.values())).shape[1]
        total = np.zeros((n, k), dtype=np.float32)
        squares = np.zeros(n, dtype=np.float32)
        logits = np.full(n, self.bias, dtype=np.float32)
        for name, rows in ids.items():
            vectors = self.factors[name][rows]
            total += vectors
            squares += np.einsum("nk,nk->n", vectors, vectors)
            logits += self.linear[name][rows]
        for name, (rows, lengths) in bags.items():
            share = np.repeat(1 / np.maximum(lengths, 1), lengths).astype(np.float32)
            owner = np.repeat(np.arange(n), lengths)
            vectors = np.zeros((n, k), dtype=np.float32)
            np.add.at(vectors, owner, self.factors[name][rows] * share[:, None])
            total += vectors
            squares += np.einsum("nk,nk->n", vectors, vectors)
            np.add.at(logits, owner, self.linear[name][rows] * share)
        if dense is not None:
            logits += dense @ self.weights
        return logits + (np.einsum("nk,nk->n", total, total) - squares) / 2


def click_truth(
    fields: Sequence[int | Field],
    *,
    dense: int = 0,
    factors: int = 8,
    exponent: float = 1.05,
    signal: float = 1.5,
    positives: float = 0.25,
    seed: int = 0,
) -> ClickTruth:
    """What ``generate_clicks`` draws from; its arguments are explained there."""
    named = tuple(
        one if isinstance(one, Field) else Field(f"field_{i}", one) for i, one in enumerate(fields)
    )
    _check(named, dense, factors, exponent, signal, positives)
    rng = np.random.default_rng([seed, 1])
    # Fields matter unequally, as they do: strengths fall like a power law over the fields.
    strength = rng.permutation(np.arange(1, len(named) + 1) ** -0.5)
    strength *= signal / np.sqrt((strength**2).sum())
    pairs = max(1, len(named) - 1)
    linear, latent, order = {}, {}, {}
    for field, own in zip(named, strength, strict=True):
        linear[field.name] = (own * rng.standard_normal(field.rows)).astype(np.float32)
        # A pair's product has the standard deviation a * b / signal * sqrt(2 / pairs): together
        # the interactions weigh about as much as the linear terms.
        scale = np.sqrt(own) * (2 / (pairs * factors)) ** 0.25
        spread = scale * rng.standard_normal((field.rows, factors))
        latent[field.name] = spread.astype(np.float32)
        order[field.name] = (1 + rng.permutation(field.rows - 1)).astype(np.int32)
    weights = (0.3 * signal * rng.standard_normal(dense) / np.sqrt(max(dense, 1))).astype("f4")
    truth = ClickTruth(
        fields=named,
        linear=linear,
        factors=latent,
        weights=weights,
        order=order,
        exponent=exponent,
        bias=0.0,
    )
    sample = truth.logits(truth.draw(_CALIBRATE, seed=seed)).astype(np.float64)
    low, high = -50.0, 50.0
    for _ in range(60):  # bisect the bias at which the mean probability is right
        bias = (low + high) / 2
        if (1 / (1 + np.exp(-(sample + bias)))).mean() < positives:
            low = bias
        else:
            high = bias
    return ClickTruth(**{**vars(truth), "bias": low})


def generate_clicks(
    examples: int = 100_000,
    fields: Sequence[int | Field] = (20_000, 5_000, 1_000, 200, 30, 7, 3),
    *,
    dense: int = 0,
    factors: int = 8,
    exponent: float = 1.05,
    signal: float = 1.5,
    positives: float = 0.25,
    seed: int = 0,
) -> ClickLog:
    """Clicks on fields whose rows have power-law counts, labels from a factorisation machine.

    Args:
        examples: how many. fields: rows of each (row 0 is out of vocabulary and never occurs), or
            a ``Field``; a multi-hot one has bags of three ids in the mean.
        dense: normal columns, each with a weight. factors: of the truth's vectors.
        exponent: a row's share is about (rank + 2)^-exponent. signal: standard deviation of the
            linear terms' sum; the interactions' is about the same. 0 leaves nothing to learn.
        positives: mean probability of a click. seed: of everything.

    The same seed draws the same truth; ``click_truth`` gives it, with its log-odds.

    Raises:
        DataError: a field without a row to draw, or a share that is none.
    """
    settings = {"factors": factors, "exponent": exponent, "signal": signal, "positives": positives}
    truth = click_truth(fields, dense=dense, seed=seed, **settings)  # type: ignore[arg-type]
    name = f"generated-{examples}x{len(truth.fields)}-seed{seed}"
    return truth.draw(examples, seed=seed, name=name)


def _check(
    fields: Sequence[Field],
    dense: int,
    factors: int,
    exponent: float,
    signal: float,
    positives: float,
) -> None:
    if not fields:
        raise DataError("expected at least one field, got none")
    check_names([field.name for field in fields], "fields")
    for field in fields:
        if field.rows < 2 or field.oov != 0:
            raise DataError(
                f"field {field.name!r} should have at least 2 rows, of which row 0 is out of "
                f"vocabulary, got {field.rows} and row {field.oov}"
            )
    if factors < 1 or dense < 0 or exponent < 0 or signal < 0:
        raise DataError(
            "factors should be at least 1, dense, exponent and signal at least 0, got "
            f"{factors}, {dense}, {exponent} and {signal}"
        )
    if not 0 < positives < 1:
        raise DataError(f"positives should be a share between 0 and 1, got {positives}")
