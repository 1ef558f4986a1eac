"""Cosine similarity of a block's input and output, row by row, and block influence.

    cos = E [ x . y / (|x| |y|) ],   block influence = 1 - cos

Range [-1, 1]; nearer 1 (influence nearer 0) is more redundant. Rows where either side is zero count
as 0 unless both are, as 1. Source of block influence: ShortGPT, arXiv 2403.03853.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def row_cosines(x: NDArray[np.floating], y: NDArray[np.floating]) -> NDArray[np.float64]:
    """Per row of x and y, both (rows, d): their cosine, shape (rows,)."""
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    norms = np.linalg.norm(x, axis=-1) * np.linalg.norm(y, axis=-1)
    dots = np.einsum("...d,...d->...", x, y)
    both_zero = ~x.any(axis=-1) & ~y.any(axis=-1)
    safe = np.where(norms > 0, norms, 1.0)
    return np.where(norms > 0, dots / safe, both_zero.astype(np.float64))
