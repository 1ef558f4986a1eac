"""Precision: solved maps as the model will hold them, in the type of its stream.

Maps are solved in float64. From then on, the numbers that a float16 or bfloat16 file can hold are
what is walked on with and judged, so that what is measured is what is written.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from ml_dtypes import bfloat16

from ..calibration.solve import Solution


class OutOfRange(Exception):
    """A solved map needs numbers that the type of its stream does not hold; says which."""


def numpy_dtype(name: str) -> np.dtype[np.generic]:
    """The dtype of a stream by the name that the view gives it."""
    return np.dtype(bfloat16) if name == "bfloat16" else np.dtype(name)


def rounded(solution: Solution, dtype: str) -> Solution:
    """The solution in numbers that the dtype holds. Raises OutOfRange where one is beyond it."""
    held = numpy_dtype(dtype)
    with np.errstate(over="ignore"):
        W, b = (part.astype(held).astype(np.float64) for part in (solution.W, solution.b))
    if not (np.isfinite(W).all() and np.isfinite(b).all()):
        largest = max(float(np.abs(part).max()) for part in (solution.W, solution.b))
        raise OutOfRange(f"its map needs numbers up to {largest:.3g}, more than {dtype} holds")
    return replace(solution, W=W, b=b)
