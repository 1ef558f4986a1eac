"""Pairwise: how little the rows of a stream move between any two of its layers.

Of every two layers i and j of equal shape, over all rows (tokens or pixels) that are no padding:

    block redundancy  - E |y - x|^2 = 2 G_ij - G_ii - G_jj,   G = E x . y
    cosine            E [ x . y / (|x| |y|) ]

Both come from one matrix product per batch over the layers, so that all pairs cost little more than
the neighbours do. Equations and sources: metrics/block_redundancy.py, metrics/cosine.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from .features import as_rows
from .masks import row_weights
from .moments import Array
from .spread import Processes

MOST_NUMBERS = 1 << 20
"""Of all layers together, how many are in float64 at a time."""


class Pairwise:
    """Gathers both by batches of the layers' values, `axes` being those of their channels.

    A monoid by `merged`; `sums` (3, layers, layers) are of weights, |y - x|^2 and cosines.
    """

    def __init__(self, axes: Mapping[str, int], sums: Array | None = None) -> None:
        self.layers = tuple(axes)
        self._axes = axes
        self.sums = np.zeros((3, len(axes), len(axes))) if sums is None else sums
        self._weight, self._moved, self._cosine = self.sums

    def merged(self, other: Pairwise) -> Pairwise:
        """Those of both sets of rows; the layers must be the same."""
        return self.holding(self.sums + other.sums)

    def reduced(self, group: Processes) -> Pairwise:
        """Those of the rows of all processes."""
        return self.holding(group.sum(self.sums).astype(np.float64))

    def holding(self, sums: Array) -> Pairwise:
        """Other sums over the same layers."""
        return Pairwise(self._axes, sums)

    def add(self, values: Mapping[str, NDArray[np.floating]], mask: Array | None) -> None:
        """Take one batch; mask (rows, length) has 0 for padding."""
        alike: dict[tuple[object, ...], list[int]] = {}
        for at, name in enumerate(self.layers):
            alike.setdefault((values[name].shape, self._axes[name]), []).append(at)
        for group in alike.values():
            names = [self.layers[at] for at in group]
            rows = [as_rows(values[name], self._axes[name]) for name in names]
            shape, axis = values[names[0]].shape, self._axes[names[0]]
            weights = np.ones(len(rows[0])) if mask is None else row_weights(mask, shape, axis)
            step = max(1, MOST_NUMBERS // (len(group) * rows[0].shape[1]))
            for begin in range(0, len(weights), step):
                part = slice(begin, begin + step)
                self._absorb(np.ix_(group, group), [r[part] for r in rows], weights[part])

    def _absorb(
        self,
        place: tuple[NDArray[np.intp], ...],
        rows: Sequence[NDArray[np.floating]],
        weights: Array,
    ) -> None:
        layers = np.stack(rows).astype(np.float64)
        norms = np.linalg.norm(layers, axis=2)
        is_zero = (norms == 0).astype(np.float64) * np.sqrt(weights)
        unit = layers * (np.sqrt(weights) / np.where(norms > 0, norms, 1.0))[:, :, None]
        # taken from one of them, layers that hardly move lose no digits to a large common part
        layers -= layers[:1].copy()
        layers *= np.sqrt(weights)[:, None]
        products, cosines = (flat @ flat.T for flat in (_flat(layers), _flat(unit)))
        own = np.diag(products)
        self._weight[place] += weights.sum()
        self._moved[place] += own[:, None] + own[None, :] - 2 * products
        self._cosine[place] += cosines + is_zero @ is_zero.T

    @property
    def block_redundancy(self) -> Array:
        """(layers, layers), at most 0; NaN between layers that were never of one shape."""
        return -np.maximum(self._mean(self._moved), 0.0)

    @property
    def cosine(self) -> Array:
        """(layers, layers), in [-1, 1]; NaN between layers that were never of one shape."""
        return self._mean(self._cosine)

    def _mean(self, total: Array) -> Array:
        seen = self._weight > 0
        return np.where(seen, total / np.where(seen, self._weight, 1.0), np.nan)


def _flat(layers: Array) -> Array:
    return layers.reshape(len(layers), -1)
