"""Affine R^2: the share of a value's variance that an affine map of another explains.

    R^2 = 1 - E |y - x W - b|^2 / tr(Cyy)

Range (-inf, 1] on held-out rows; 1 means that one matrix does all the span does, 0 that it does no
better than a constant. A constant y gives 1 where the error is 0, else -inf.
"""

from __future__ import annotations

from ..moments import Moments
from ..solve import Solution


def affine_r2(held: Moments, solution: Solution) -> float:
    """Of a solution on the moments of rows it was not solved on."""
    error, variance = held.error(solution.W, solution.b), held.variance
    if variance == 0.0:
        return 1.0 if error == 0.0 else float("-inf")
    return 1.0 - error / variance
