"""Plain sums over rows that were made on a device, as moments about the means.

    sum w,   sum w S,   sum w Sx' Sy,   sum w cos(x, y),   sum w angle(x, y),   S = rows - shift

A device adds to these without ever asking for a number; NaN and Inf stay in a sum and show here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .features import NotFinite
from .moments import Array, CoMoment
from .sweep import Pair, Statistics


@dataclass(frozen=True)
class Sums:
    """Per value sum w and sum w S (d,), per key products (dx, dy), per pair cosines and angles."""

    weights: Mapping[str, float]
    rows: Mapping[str, Array]
    products: Mapping[tuple[str, str], Array]
    cosines: Mapping[Pair, float]
    angles: Mapping[Pair, float]

    def statistics(
        self, pairs: Sequence[Pair], shifts: Mapping[str, NDArray[np.floating]]
    ) -> Statistics:
        """Moments about the means; `shifts` (d,) are what rows were moved by.

        BadInput names a value that holds NaN or Inf.
        """
        found = Statistics(pairs)
        for value in found.values:
            if not np.isfinite(self.products[value, value]).all():
                raise NotFinite(value)
        for x, y in found.keys:
            weight = self.weights[x]
            mean_x, mean_y = (self.rows[value] / (weight or 1.0) for value in (x, y))
            found.products[x, y] = CoMoment(
                round(weight),
                weight,
                np.asarray(shifts[x], np.float64) + mean_x,
                np.asarray(shifts[y], np.float64) + mean_y,
                self.products[x, y] - np.outer(self.rows[x], mean_y),
            )
        found.cosines, found.angles = dict(self.cosines), dict(self.angles)
        return found
