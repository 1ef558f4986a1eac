"""Canonical correlations, and what they say of the best affine map of one value to another.

    Cxx^(-1/2) Cxy Cyy^(-1/2) = P diag(rho) Q'      1 >= rho_1 >= rho_2 >= ... >= 0

    error / tr(Cyy) <= sum_k w_k (1 - rho_k^2)                        weighted by variance: equal
                    <= sum_k t_k (1 - rho_(r+1-k)^2) / tr(Cyy)        the worst pairing
                    <= sum_k (1 - rho_k^2)                            NBL's theorem

error = min over W, b of E |y - x W - b|^2; t_k, descending, are the eigenvalues of Cyy, and w_k is
the share of y's variance along the k-th canonical direction, q_k' diag(t) q_k / tr(Cyy). Where y
has more directions than x can tell, the others have rho = 0.

NBL weighs every direction alike, so that a quiet one that x does not tell counts like a loud one;
with the shares of variance the bound is met with equality, and says which directions the error is
in. The worst pairing needs the correlations and variances of y alone (von Neumann's trace
inequality); it is far above the error wherever a quiet direction goes untold. The first two lie in
[0, 1]; nearer 0 is more redundant. They are of the rows that the moments are of: on few rows of
many features they are too good.

Only eigenvalues above a share of the largest are divided by (`solve.RANK_TOLERANCE`, so that the
error is that of the solver with ridge 0); no inverse is formed. Variance of y below that counts as
unexplained.
Source of the bound: NBL, arXiv 2505.21077. Canonical correlations: Hotelling (1936).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..moments import Array, Moments
from ..solve import RANK_TOLERANCE


@dataclass(frozen=True)
class Canonical:
    """How x and y of one `Moments` go together.

    correlations (r,): rho, descending, in [0, 1], r the rank of Cyy. shares (r,): w, the part of
    tr(Cyy) along each canonical direction of y. variances (r,): eigenvalues of Cyy, descending, as
    parts of tr(Cyy). rest: the part in eigenvalues too small to divide by.
    """

    correlations: Array
    shares: Array
    variances: Array
    rest: float

    @classmethod
    def of(cls, moments: Moments) -> Canonical:
        """A constant x has no correlations but 0; a constant y none at all (r = 0)."""
        x_values, x_vectors = _spectrum(moments.Cxx)
        y_values, y_vectors = _spectrum(moments.Cyy)
        total = moments.variance
        if len(y_values) == 0 or total <= 0.0:
            return cls(np.zeros(0), np.zeros(0), np.zeros(0), 0.0)
        between = x_vectors.T @ moments.Cxy @ y_vectors
        between = between / np.sqrt(x_values)[:, None] / np.sqrt(y_values)
        _, found, directions = np.linalg.svd(between, full_matrices=True)
        correlations = np.zeros(len(y_values))
        correlations[: len(found)] = np.clip(found, 0.0, 1.0)
        shares = directions**2 @ y_values / total
        rest = max(0.0, 1.0 - float(y_values.sum()) / total)
        return cls(correlations, shares, y_values / total, rest)

    @property
    def error(self) -> float:
        """The normalised error of the best affine map of x to y: 1 - R^2 on the same rows."""
        return min(1.0, self.rest + float(self.shares @ self._unexplained))

    @property
    def worst(self) -> float:
        """What that error is at most, whichever directions of y have these correlations."""
        worst_first = self._unexplained[::-1]
        return min(1.0, self.rest + float(self.variances @ worst_first))

    @property
    def _unexplained(self) -> Array:
        """1 - rho^2, ascending; as a product, which keeps the digits where rho is near 1."""
        return (1.0 - self.correlations) * (1.0 + self.correlations)


def canonical_correlations(moments: Moments) -> Array:
    """rho (r,), descending, in [0, 1]; r is the rank of Cyy."""
    return Canonical.of(moments).correlations


def nbl_bound(moments: Moments) -> float:
    """The variance-weighted bound on the normalised error of the best affine map of x to y.

    It is met with equality, but for rounding and for variance too small to divide by, which counts
    as unexplained; 0.0 for a constant y.
    """
    return Canonical.of(moments).error


def _spectrum(C: Array) -> tuple[Array, Array]:
    """Eigenvalues (r,) of C (d, d) worth dividing by, descending, and eigenvectors (d, r)."""
    values, vectors = np.linalg.eigh(C)
    kept = (values > RANK_TOLERANCE * values[-1]) & (values > 0.0)
    return values[kept][::-1], vectors[:, kept][:, ::-1]
