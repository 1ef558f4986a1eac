"""The affine map of least squared error, from moments alone.

    minimise  E |x W + b - y|^2 + lambda t |W - W0|^2,   t = tr(Cxx) / d

    W = (Cxx + lambda t I)^-1 (Cxy + lambda t W0),   b = mean_y - mean_x W

One eigendecomposition of Cxx gives W for every lambda; no inverse is ever formed. As lambda grows
the map becomes W0: the identity for a map of the stream, so that dropping a block and replacing it
are one family; the weight that is there for a linear operation that is solved again. With lambda 0
it is plain least squares, and W has no part where x has no variance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .moments import Array, Moments

RIDGES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)

LEAST_RIDGE = 1e-4
"""For weights that are solved anew: smaller ones let them grow a hundredfold along directions in
which activations hardly vary. The error falls a little, and rounded to 8 bits it is large."""

WORTH_LESS = 0.5
"""Share of the error that a ridge below the least must reach: such a map is about exact."""

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


@dataclass(frozen=True)
class Spectrum:
    """Eigenvalues (dx,), ascending and not below zero, and eigenvectors (dx, dx) of Cxx."""

    values: Array
    vectors: Array

    @classmethod
    def of(cls, moments: Moments) -> Spectrum:
        values, vectors = np.linalg.eigh(moments.Cxx)
        return cls(np.maximum(values, 0.0), vectors)


def solve(
    moments: Moments,
    ridges: Sequence[float] = RIDGES,
    prior: Array | None = None,
    spectrum: Spectrum | None = None,
) -> list[Solution]:
    """One Solution per ridge. W0 = `prior` (dx, dy), the identity where None.

    `spectrum` is that of Cxx, where it is known. Raises ValueError where there is no prior and x
    and y differ in width.
    """
    d, out = moments.Cxy.shape
    if prior is None and d != out:
        raise ValueError(f"the prior is the identity, but x has {d} channels and y {out}")
    spectrum = spectrum or Spectrum.of(moments)
    values, vectors = spectrum.values, spectrum.vectors
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
        told = values > RANK_TOLERANCE * largest if ridge == 0.0 else np.full(d, True)
        scale = np.where(told, values + pull, np.inf)
        W = vectors @ ((projected + pull * kept) / scale[:, None])
        b = moments.mean_y - moments.mean_x @ W
        found.append(Solution(W, b, ridge, moments.rows, rank, condition))
    return found


def solve_held_out(
    fit: Moments,
    held: Moments,
    prior: Array | None = None,
    ridges: Sequence[float] = RIDGES,
    spectrum: Spectrum | None = None,
    least: float = 0.0,
) -> Solution:
    """Solve on `fit` with the ridge of least error on `held`; the smaller ridge where equal.

    One below `least` is taken only where the error falls to WORTH_LESS of that without.
    """
    found = solve(fit, ridges, prior, spectrum)
    errors = {solution.ridge: held.error(solution.W, solution.b) for solution in found}
    usual = [ridge for ridge in errors if ridge >= least] or errors
    best, safe = (min(some, key=errors.__getitem__) for some in (errors, usual))
    chosen = best if errors[best] <= WORTH_LESS * errors[safe] else safe
    return next(solution for solution in found if solution.ridge == chosen)
