"""What the metrics on the Python array API share: one function for NumPy arrays and torch tensors.

Such a function takes and gives arrays of one library, on any device, and torch's autograd runs
through it. Nothing here imports torch: who hands over a tensor has done so.
"""

from __future__ import annotations

from typing import Any

from array_api_compat import array_namespace, is_torch_array

from ...ir.errors import BadInput

AnyArray = Any
"""An array of any library that `array_api_compat` knows; the array API has no static type."""


def namespace(*arrays: AnyArray) -> Any:
    """The array API functions for these arrays, which must be of one library."""
    return array_namespace(*arrays)


def flat_rows(x: AnyArray, what: str) -> AnyArray:
    """x (n, ...) as (n, d), in float32 at least: squares overflow and round away in narrower types.

    Raises BadInput where x has no axis of features beside the samples.
    """
    xp = namespace(x)
    if x.ndim < 2 or 0 in x.shape:
        raise BadInput(
            f"{what} has shape {tuple(x.shape)}: give samples along the first axis "
            "and their features along the others"
        )
    wide = x if x.dtype in (xp.float32, xp.float64) else xp.astype(x, xp.float32)
    return xp.reshape(wide, (x.shape[0], -1))


def fixed(x: AnyArray) -> AnyArray:
    """x as a constant: no gradient flows into what made it."""
    return x.detach() if is_torch_array(x) else x


def safe_root(square: AnyArray) -> AnyArray:
    """The square root, with gradient 0 instead of infinity at 0."""
    xp = namespace(square)
    positive = square > 0
    root = xp.sqrt(xp.where(positive, square, xp.ones_like(square)))
    return xp.where(positive, root, xp.zeros_like(square))
