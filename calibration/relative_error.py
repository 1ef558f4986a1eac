"""Relative error: squared error of rows against a truth, as a share of the truth's variance."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


class RelativeError:
    """E |y - made|^2 / tr(Cyy), gathered by batches of rows."""

    def __init__(self) -> None:
        self._weight = self._squared = 0.0
        self._sum: NDArray[np.float64] | float = 0.0
        self._power = 0.0

    def add(
        self,
        truth: NDArray[np.floating],
        made: NDArray[np.floating],
        weights: NDArray[np.float64] | None,
    ) -> None:
        """Take rows (n, d) of both, with weights (n,), 0 for padding."""
        kept = np.ones(len(truth)) if weights is None else weights
        rows = truth.astype(np.float64)
        self._weight += float(kept.sum())
        self._sum = self._sum + kept @ rows
        self._power += float(kept @ np.square(rows).sum(1))
        self._squared += float(kept @ np.square(rows - made).sum(1))

    @property
    def value(self) -> float:
        """The error; of a truth without variance, the plain squared error."""
        weight = self._weight or 1.0
        mean = np.asarray(self._sum) / weight
        variance = self._power / weight - float(mean @ mean)
        return self._squared / weight / (variance if variance > 0 else 1.0)
