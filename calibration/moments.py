"""Second moments of pairs of values, as a monoid: nothing, add a batch, merge two.

A batch is centred on its own mean before the product is taken, so the product may be float32
without losing the centring where activations are huge (rounding the mean to float32 first costs
only its square); across batches everything is float64,
combined by Chan, Golub & LeVeque's update (1979):

    S = S_a + S_b + (w_a w_b / (w_a + w_b)) (m_a - m_b)_x' (m_a - m_b)_y
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass
class CoMoment:
    """Weighted co-moment of x (rows, dx) and y (rows, dy) about their means.

    weight: sum of row weights; mean_x (dx,), mean_y (dy,); product (dx, dy) = sum_n w_n (x_n -
    mean_x)' (y_n - mean_y). `rows` counts rows of positive weight.
    """

    rows: int
    weight: float
    mean_x: Array
    mean_y: Array
    product: Array

    @classmethod
    def zero(cls, dx: int, dy: int) -> CoMoment:
        return cls(0, 0.0, np.zeros(dx), np.zeros(dy), np.zeros((dx, dy)))

    @classmethod
    def of(cls, x: Centred, y: Centred) -> CoMoment:
        """Of one batch whose rows are centred already."""
        product = (x.rows.T @ y.rows).astype(np.float64)
        return cls(x.count, x.weight, x.mean, y.mean, product)

    def absorb(self, other: CoMoment) -> None:
        """Become the co-moment of both sets of rows together."""
        total = self.weight + other.weight
        if other.weight == 0.0:
            return
        step_x, step_y = other.mean_x - self.mean_x, other.mean_y - self.mean_y
        self.product += other.product
        self.product += np.outer(step_x, step_y * (self.weight * other.weight / total))
        self.mean_x = self.mean_x + step_x * (other.weight / total)
        self.mean_y = self.mean_y + step_y * (other.weight / total)
        self.rows += other.rows
        self.weight = total

    def scaled(self, factor: float) -> CoMoment:
        """As if every row had `factor` times its weight."""
        return CoMoment(
            self.rows, self.weight * factor, self.mean_x, self.mean_y, self.product * factor
        )

    def copy(self) -> CoMoment:
        return CoMoment(self.rows, self.weight, self.mean_x, self.mean_y, self.product.copy())


@dataclass(frozen=True)
class Centred:
    """Rows of one value in one batch, minus their weighted mean, times the root of their weight.

    So the co-moment of a value with itself is the product of one array with itself, which takes
    half the time of another.
    """

    rows: NDArray[np.floating]
    mean: Array
    weight: float
    count: int

    @classmethod
    def of(cls, rows: NDArray[np.floating], weights: Array | None = None) -> Centred:
        """rows (n, d) in the model's dtype; weights (n,) or None for all ones."""
        if rows.dtype != np.float64:
            rows = rows.astype(np.float32, copy=False)
        count = len(rows) if weights is None else int(np.count_nonzero(weights))
        if weights is not None and count < len(rows):  # whatever stands there, NaN included
            rows, weights = rows[weights != 0], weights[weights != 0]
        total = float(count) if weights is None else float(weights.sum())
        if total == 0.0:
            empty = np.zeros((0, rows.shape[1]), rows.dtype)
            return cls(empty, np.zeros(rows.shape[1]), 0.0, 0)
        if weights is None:
            mean = rows.mean(axis=0, dtype=np.float64)
        else:
            mean = weights @ rows.astype(np.float64) / total
        centred = rows - mean.astype(rows.dtype)
        if weights is not None:
            centred *= np.sqrt(weights).astype(rows.dtype)[:, None]
        return cls(centred, mean, total, count)


@dataclass(frozen=True)
class Moments:
    """All second moments of a pair (x, y), divided by the sum of weights.

    Cxx (dx, dx), Cxy (dx, dy), Cyy (dy, dy), mean_x (dx,), mean_y (dy,).
    """

    rows: int
    mean_x: Array
    mean_y: Array
    Cxx: Array
    Cxy: Array
    Cyy: Array

    @classmethod
    def of(cls, xx: CoMoment, xy: CoMoment, yy: CoMoment) -> Moments:
        scale = 1.0 / xy.weight
        return cls(
            xy.rows,
            xy.mean_x,
            xy.mean_y,
            xx.product * scale,
            xy.product * scale,
            yy.product * scale,
        )

    def about_zero(self) -> Moments:
        """The moments about zero instead of the means: what a map without a bias is solved on."""
        x, y = self.mean_x, self.mean_y
        return Moments(
            self.rows,
            np.zeros_like(x),
            np.zeros_like(y),
            self.Cxx + np.outer(x, x),
            self.Cxy + np.outer(x, y),
            self.Cyy + np.outer(y, y),
        )

    def through(self, W: Array, b: Array) -> Moments:
        """The moments of x W + b and y."""
        return Moments(
            self.rows,
            self.mean_x @ W + b,
            self.mean_y,
            W.T @ self.Cxx @ W,
            W.T @ self.Cxy,
            self.Cyy,
        )

    @property
    def variance(self) -> float:
        """tr(Cyy): what the best constant leaves unexplained."""
        return float(np.trace(self.Cyy))

    def error(self, W: Array | None, b: Array | None) -> float:
        """E |y - x W - b|^2 from moments alone; W None is the identity map.

        tr(Cyy) - 2 tr(W' Cxy) + tr(W' Cxx W) + |mean_y - mean_x W - b|^2
        """
        if W is None:
            spread = np.trace(self.Cyy) - 2 * np.trace(self.Cxy) + np.trace(self.Cxx)
            offset = self.mean_y - self.mean_x
        else:
            spread = np.trace(self.Cyy) - 2 * np.vdot(W, self.Cxy) + np.vdot(W, self.Cxx @ W)
            offset = self.mean_y - self.mean_x @ W
        if b is not None:
            offset = offset - b
        return max(0.0, float(spread + offset @ offset))
