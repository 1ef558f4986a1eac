"""One pass over the data: run the graph with taps and gather moments of pairs of values."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..ir.errors import BadInput
from .data import Batch, Dataset
from .features import as_rows, require_finite
from .masks import row_weights
from .metrics.angular import angles
from .metrics.cosine import row_cosines, row_norms
from .moments import Array, Centred, CoMoment, Moments
from .runtime import Runner
from .spread import Processes

Progress = Callable[[int], None]
"""Told how many samples were just done."""

Watch = Callable[[Batch, Mapping[str, NDArray[np.floating]]], None]
"""Shown every batch and the values that were tapped in it."""


@dataclass(frozen=True)
class Pair:
    """Two values of one shape, one row per token or pixel along all axes but `channel_axis`."""

    x: str
    y: str
    channel_axis: int


class Statistics:
    """Moments, mean cosines and angles of pairs of values, by batches; a monoid by `merged`.

    `products` has a co-moment for each of `keys`, once a batch was added; `cosines` and `angles`
    are weighted sums over rows.
    """

    def __init__(self, pairs: Iterable[Pair]) -> None:
        self.pairs = tuple(dict.fromkeys(pairs))
        self.values = tuple(dict.fromkeys(v for pair in self.pairs for v in (pair.x, pair.y)))
        self._axis = {v: pair.channel_axis for pair in self.pairs for v in (pair.x, pair.y)}
        self.keys = _keys(self.pairs)
        self.products: dict[tuple[str, str], CoMoment] = {}
        self.cosines: dict[Pair, float] = dict.fromkeys(self.pairs, 0.0)
        self.angles: dict[Pair, float] = dict.fromkeys(self.pairs, 0.0)

    def add(
        self,
        taps: Mapping[str, NDArray[np.floating]],
        mask: Array | None,
        samples: NDArray[np.int64] | None = None,
    ) -> None:
        """Take one batch of those samples; mask (rows, length) has 0 for padding.

        BadInput names value and sample of a NaN or Inf that is not in padding.
        """
        rows = {v: as_rows(taps[v], self._axis[v]) for v in self.values}
        weights = {
            v: None if mask is None else row_weights(mask, taps[v].shape, self._axis[v])
            for v in self.values
        }
        for name, value in rows.items():
            weight = weights[name]
            require_finite(value, name, weight, samples)
            if weight is not None and not weight.all():  # whatever stands there, NaN included
                rows[name], weights[name] = value[weight != 0], weight[weight != 0]
        centred = {v: Centred.of(rows[v], weights[v]) for v in self.values}
        for a, b in self.keys:
            product = CoMoment.of(centred[a], centred[b])
            if (a, b) in self.products:
                self.products[a, b].absorb(product)
            else:
                self.products[a, b] = product
        norms = {v: row_norms(rows[v]) for v in self.values}
        for pair in self.pairs:
            x, y, kept = rows[pair.x], rows[pair.y], weights[pair.x]
            cosines = row_cosines(x, y, norms[pair.x], norms[pair.y])
            for totals, parts in ((self.cosines, cosines), (self.angles, angles(cosines))):
                totals[pair] += float(parts.sum() if kept is None else parts @ kept)

    def moments(self, pair: Pair) -> Moments:
        """Moments of the pair. BadInput where a mask hides every row; KeyError before any batch."""
        if self.products[pair.x, pair.y].weight == 0.0:
            raise BadInput(f"the mask hides every row of {pair.x!r}; check the mask in the data")
        return Moments.of(
            self.products[pair.x, pair.x],
            self.products[pair.x, pair.y],
            self.products[pair.y, pair.y],
        )

    def cosine(self, pair: Pair) -> float:
        """Mean cosine between the rows of x and y."""
        return self.cosines[pair] / self.products[pair.x, pair.y].weight

    def angular_distance(self, pair: Pair) -> float:
        """Mean angle between the rows of x and y, as a part of pi."""
        return self.angles[pair] / self.products[pair.x, pair.y].weight

    def merged(self, other: Statistics) -> Statistics:
        """The statistics of both sets of rows together; the pairs must be the same."""
        if self.pairs != other.pairs:
            raise ValueError("statistics of different pairs cannot be merged")
        both = Statistics(self.pairs)
        both.products = {key: value.copy() for key, value in self.products.items()}
        for key, value in other.products.items():
            both.products.setdefault(key, CoMoment.zero(*value.product.shape)).absorb(value)
        both.cosines = {p: self.cosines[p] + other.cosines[p] for p in self.pairs}
        both.angles = {p: self.angles[p] + other.angles[p] for p in self.pairs}
        return both

    def reduced(self, group: Processes, widths: Mapping[str, int]) -> Statistics:
        """The statistics of the rows of all processes; `widths` are the values' channels."""
        whole = Statistics(self.pairs)
        for key in self.keys:
            part = self.products.get(key) or CoMoment.zero(*(widths[value] for value in key))
            whole.products[key] = group.reduce(part)
        for ours, sums in ((self.cosines, whole.cosines), (self.angles, whole.angles)):
            total = group.sum(np.array([ours[pair] for pair in self.pairs]))
            sums.update(zip(self.pairs, map(float, total), strict=True))
        return whole


def _keys(pairs: Sequence[Pair]) -> tuple[tuple[str, str], ...]:
    """The products that moments of the pairs need: of every value with itself, and of pairs."""
    values = dict.fromkeys(value for pair in pairs for value in (pair.x, pair.y))
    keys = [(value, value) for value in values] + [(pair.x, pair.y) for pair in pairs]
    return tuple(dict.fromkeys(keys))


def sweep(
    runner: Runner,
    data: Dataset,
    samples: NDArray[np.int64],
    pairs: Sequence[Pair],
    batch: int,
    *,
    mask: str | None = None,
    progress: Progress | None = None,
    watch: Watch | None = None,
) -> Statistics:
    """Statistics of `pairs` over the given samples; `runner` must tap all their values.

    `watch` sees the same pass, for what is gathered beside moments.
    """
    statistics = Statistics(pairs)
    for rows in data.batches(samples, runner.fixed_batch or batch):
        values = add_batch(statistics, runner, rows, mask)
        if watch is not None:
            watch(rows, values)
        if progress is not None:
            progress(len(rows.samples))
    return statistics


def add_batch(
    statistics: Statistics, runner: Runner, batch: Batch, mask: str | None
) -> dict[str, NDArray[np.floating]]:
    """Run one batch and take it; returns what the runner gave."""
    values = runner(batch.feeds)
    kept = None if mask is None else np.asarray(batch.feeds[mask], np.float64)
    statistics.add(values, kept, batch.samples)
    return values


def observe_shapes(
    runner: Runner, data: Dataset, samples: NDArray[np.int64], names: Sequence[str]
) -> dict[str, list[tuple[int, ...]]]:
    """Shapes of the values on two batches of different size: one sample, then up to two others."""
    size = runner.fixed_batch
    first = next(iter(data.batches(samples[:1], size or 1)))
    second = next(iter(data.batches(samples[-2:], size or 2)))
    results = [runner(first.feeds), runner(second.feeds)]
    return {name: [found[name].shape for found in results] for name in names}
