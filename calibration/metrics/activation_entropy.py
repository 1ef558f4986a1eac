"""Activation entropy: how often the rectifiers of a layer change sides.

    H_u = -p log2 p - (1 - p) log2 (1 - p),   p = P(z_u > 0),   H = mean over units u

z (..., units) is what enters a ReLU, or another activation with a linear and a flat side. Range
[0, 1] bits. 0 is redundant: every unit is always on or always off, and the layer is linear on the
data. The reverse does not hold: a layer whose units switch where it matters little has a high H.
Sources: NEPENTHE, arXiv 2404.16890, and EASIER, arXiv 2404.18949.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ...ir.errors import BadInput

Array = NDArray[np.float64]


@dataclass
class SideCounts:
    """How often each unit was on, over batches."""

    rows: int = field(default=0, init=False)
    positive: NDArray[np.int64] = field(
        default_factory=lambda: np.zeros(0, np.int64), init=False, repr=False
    )

    @classmethod
    def of(cls, rows: int, positive: NDArray[np.int64]) -> SideCounts:
        """Counts of so many rows that were made before."""
        counts = cls()
        counts.rows, counts.positive = rows, positive
        return counts

    def absorb(self, other: SideCounts) -> None:
        """Become the counts of both sets of rows together."""
        if other.rows:
            self.positive = self.positive + other.positive if self.rows else other.positive
            self.rows += other.rows

    def add(self, z: NDArray[np.floating], axis: int = -1) -> None:
        """One batch of pre-activations, the units along `axis`: -1 for tokens, 1 for maps."""
        if np.isnan(z).any():
            raise BadInput("pre-activations hold NaN: they are on no side of 0")
        rows = np.moveaxis(z, axis, -1).reshape(-1, z.shape[axis])
        counts = np.count_nonzero(rows > 0, axis=0).astype(np.int64)
        if self.rows and len(counts) != len(self.positive):
            raise BadInput(
                f"a batch of {len(counts)} units after batches of {len(self.positive)}: "
                "give the same layer each time, its units along `axis`"
            )
        self.positive = self.positive + counts if self.rows else counts
        self.rows += len(rows)

    @property
    def unit_entropies(self) -> Array:
        """H_u of every unit, (units,)."""
        if self.rows == 0:
            raise BadInput("an entropy of no rows: add a batch first")
        return _bits(self.positive / self.rows)

    @property
    def entropy(self) -> float:
        """H, the mean over units."""
        return float(self.unit_entropies.mean())


def activation_entropy(z: NDArray[np.floating], axis: int = -1) -> float:
    """H of one batch of pre-activations, the units along `axis`."""
    counts = SideCounts()
    counts.add(z, axis)
    return counts.entropy


def _bits(p: Array) -> Array:
    """The entropy of a coin, 0 log 0 being 0."""
    parts = np.stack([p, 1.0 - p])
    surprise = -np.log2(np.where(parts > 0, parts, 1.0))
    return np.asarray(np.sum(parts * surprise, axis=0) + 0.0, np.float64)
