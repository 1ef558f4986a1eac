"""Angular distance of a block's input and output, and block influence.

    angular = E [ arccos(cos(x, y)) / pi ],   influence = 1 - E [ cos(x, y) ]

x enters the block, y leaves it, one row per token or pixel. The angular distance is in [0, 1] and
a metric on directions, the influence in [0, 2]; nearer 0 is more redundant, in both. Neither sees
the lengths of rows. Rows of zeros are treated as in `cosine`.
Sources: Gromov et al., arXiv 2403.17887, for the distance; ShortGPT, arXiv 2403.03853, for the
influence.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ...ir.errors import BadInput
from .cosine import Floats, row_cosines


def row_angles(x: Floats, y: Floats) -> NDArray[np.float64]:
    """Per row of x and y, both (..., d): their angle as a part of pi, shape (...,), in [0, 1]."""
    return angles(row_cosines(x, y))


def angles(cosines: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of each cosine the angle as a part of pi, in [0, 1]."""
    # Rounding may carry a cosine past 1, where arccos is NaN
    return np.asarray(np.arccos(np.clip(cosines, -1.0, 1.0)) / np.pi, np.float64)


def angular_distance(x: Floats, y: Floats) -> float:
    """The mean over rows of `row_angles`, x and y (..., d)."""
    _refuse_nothing(x)
    return float(row_angles(x, y).mean())


def block_influence(x: Floats, y: Floats) -> float:
    """1 minus the mean cosine over rows, x and y (..., d)."""
    _refuse_nothing(x)
    return 1.0 - float(row_cosines(x, y).mean())


def _refuse_nothing(x: Floats) -> None:
    if x.size == 0:
        raise BadInput(f"no rows to take the mean of: x has shape {x.shape}")
