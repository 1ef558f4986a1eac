"""All that least squares needs of rows x and y, gathered by batches; a monoid by `merged`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .moments import Array, Centred, CoMoment, Moments

Floats = NDArray[np.floating]


@dataclass
class Regression:
    """Co-moments of y - given on x, and `spread`, the trace of the co-moment of y itself."""

    xx: CoMoment
    xy: CoMoment
    yy: CoMoment
    whole: CoMoment

    @classmethod
    def of(cls, x: Floats, y: Floats, given: Floats | None, weights: Array | None) -> Regression:
        """One batch: x (rows, dx), y (rows, dy), given (rows, dy) or None, weights (rows,)."""
        a, whole = Centred.of(x, weights), Centred.of(y, weights)
        b = whole if given is None else Centred.of(y - given, weights)
        own = CoMoment.of(b, b)
        return cls(
            CoMoment.of(a, a),
            CoMoment.of(a, b),
            own,
            own if given is None else CoMoment.of(whole, whole),
        )

    def merged(self, other: Regression) -> Regression:
        """The regression on both sets of rows together."""
        parts = []
        for mine, theirs in zip(self._parts(), other._parts(), strict=True):
            total = mine.copy()
            total.absorb(theirs)
            parts.append(total)
        return Regression(*parts)

    def _parts(self) -> tuple[CoMoment, ...]:
        return self.xx, self.xy, self.yy, self.whole

    def moments(self) -> Moments:
        return Moments.of(self.xx, self.xy, self.yy)

    @property
    def variance(self) -> float:
        """tr(Cov(y)): what the best constant leaves unexplained."""
        return float(np.trace(self.whole.product)) / self.whole.weight
