"""MSRS: how many pairs of a model's layers are similar, counted softly.

    MSRS = sum_(i<j) sigmoid(2 beta (S_ij - tau)),   beta = 100, tau = 0.8

S (L, L) holds the CKA of every two layers. Range [0, L (L-1) / 2]; higher is more redundant. It
grows with depth squared: divide by the number of pairs, to [0, 1], where depths differ. Published
with tau 0.8 for most networks, 0.7 or 0.4 for VGG.
Source: RedTest, arXiv 2411.10507.
"""

from __future__ import annotations

from ...ir.errors import BadInput
from .arrays import AnyArray, namespace

BETA = 100.0
TAU = 0.8


def msrs(
    similarities: AnyArray, *, beta: float = BETA, tau: float = TAU, per_pair: bool = False
) -> AnyArray:
    """Of `similarities` (L, L), of which the part above the diagonal is read: a scalar array."""
    shape = tuple(similarities.shape)
    if len(shape) != 2 or shape[0] != shape[1] or shape[0] < 2:
        raise BadInput(
            f"similarities of shape {shape} are not those of layers with each other: "
            "give a square matrix of at least 2 layers"
        )
    xp = namespace(similarities)
    # sigmoid(2 z) = (1 + tanh z) / 2, and tanh does not overflow as a quotient of exp does
    soft = 0.5 * (1 + xp.tanh(beta * (similarities - tau)))
    upper = xp.triu(xp.ones(shape, dtype=soft.dtype, device=soft.device), k=1)
    count = xp.sum(soft * upper)
    return count / (shape[0] * (shape[0] - 1) / 2) if per_pair else count
