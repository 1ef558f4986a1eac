"""The affine map of least squared error, from moments alone.

    minimise  E |x W + b - y|^2 + lambda t |W - W0|^2,   t = tr(Cxx) / d

    W = (Cxx + lambda t I)^-1 (Cxy + lambda t W0),   b = mean_y - mean_x W

One eigendecomposition of Cxx gives W for every lambda; no inverse is ever formed. As lambda grows
the map becomes W0: the identity for a map of the stream, so that dropping a block and replacing it
are one family; the weight that is there for a linear operation that is solved again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .moments import Array, Moments

RIDGES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
RANK_TOLERANCE = 1e-10
"""Eigenvalues below this share of the largest count as zero: float32 activations hold no more."""


@dataclass(frozen=True)
class Solution:
    """y ~ x W + b, solved on `rows` rows with lambda = `ridge`; `rank`, `condition`: of Cxx.

    W (dx, dy), b (dy,).
    """

    W: Array
    b: Array
    ridge: float
    rows: int
    rank: int
    condition: float


def solve(
    moments: Moments, ridges: Sequence[float] = RIDGES, prior: Array | None = None
) -> list[Solution]:
    """One Solution per ridge. W0 = `prior` (dx, dy), the identity where None.

    Raises ValueError where there is no prior and x and y differ in width.
    """
    d, out = moments.Cxy.shape
    if prior is None and d != out:
        raise ValueError(f"the prior is the identity, but x has {d} channels and y {out}")
    values, vectors = np.linalg.eigh(moments.Cxx)
    values = np.maximum(values, 0.0)
    largest = float(values[-1])
    rank = int(np.count_nonzero(values > RANK_TOLERANCE * largest))
    smallest = float(values[d - rank]) if rank else 0.0
    condition = largest / smallest if smallest > 0 else float("inf")
    unit = float(values.mean()) or 1.0
    projected = vectors.T @ moments.Cxy
    kept = vectors.T if prior is None else vectors.T @ prior
    found = []
    for ridge in ridges:
        pull = ridge * unit
        W = vectors @ ((projected + pull * kept) / (values + pull)[:, None])
        b = moments.mean_y - moments.mean_x @ W
        found.append(Solution(W, b, ridge, moments.rows, rank, condition))
    return found


def solve_held_out(fit: Moments, held: Moments, prior: Array | None = None) -> Solution:
    """Solve on `fit` with the ridge of least error on `held`; the smaller ridge where equal."""
    return min(solve(fit, prior=prior), key=lambda solution: held.error(solution.W, solution.b))
