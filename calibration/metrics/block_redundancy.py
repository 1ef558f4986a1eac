"""Block redundancy: how little a block moves the stream.

    BR = - E |y - x|^2

x enters the block, y leaves it, one row per token or pixel. Range (-inf, 0]; nearer 0 is more
redundant. It depends on scale: compare blocks of one model, never models.
Source: RBA / TOAST, arXiv 2410.04941, eq. 1.
"""

from __future__ import annotations

from ..moments import Moments


def block_redundancy(moments: Moments, *, per_feature: bool = False) -> float:
    """From the moments of (x, y), which need equal d; divided by d as well where `per_feature`."""
    value = -moments.error(None, None)
    return value / len(moments.mean_x) if per_feature else value
