"""Cosine similarity of a block's input and output, row by row, and block influence.

    cos = E [ x . y / (|x| |y|) ],   block influence = 1 - cos

Range [-1, 1]; nearer 1 (influence nearer 0) is more redundant. Rows where either side is zero count
as 0 unless both are, as 1. Source of block influence: ShortGPT, arXiv 2403.03853.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]


def row_norms(x: Floats) -> NDArray[np.float64]:
    """|x| of every row of x (..., d), shape (...,)."""
    return np.asarray(np.sqrt(_dots(x, x)), np.float64)


def row_cosines(
    x: Floats, y: Floats, x_norms: Floats | None = None, y_norms: Floats | None = None
) -> NDArray[np.float64]:
    """Per row of x and y, both (..., d): their cosine, shape (...,). Norms may be given."""
    x_norms = row_norms(x) if x_norms is None else x_norms
    y_norms = row_norms(y) if y_norms is None else y_norms
    norms = x_norms * y_norms
    both_zero = (x_norms == 0) & (y_norms == 0)
    cosines = _dots(x, y) / np.where(norms > 0, norms, 1.0)
    return np.asarray(np.where(norms > 0, cosines, both_zero), np.float64)


def _dots(x: Floats, y: Floats) -> Floats:
    """x . y row by row, in float32 at least."""
    wide = np.float64 if x.dtype == np.float64 else np.float32
    dots: Floats = np.einsum("...d,...d->...", x, y, dtype=wide)
    return dots
