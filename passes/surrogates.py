"""The ladder of surrogates: what may stand in the place of a span, cheapest first.

x is the entry, y the exit; r and u are the terms of an entry that is a sum x = r + u W0 + b0.

    identity         y ~ x                 nothing is left of the span
    folded           y ~ r + u W + b       the linear operation before the span, solved again
    affine           y ~ x W + b           MatMul + Add on tokens, a 1x1 Conv on feature maps
    affine + folded  y ~ r R + u W + b     both
    conv             y ~ x * K + b         a 3x3 Conv on feature maps
    refit            y ~ r + u W + b       no span: the linear operation into a sum, solved again
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from ..calibration.features import Feature
from ..calibration.moments import Array
from ..ir.onnx_file import OnnxModel
from ..ir.onnx_linear import Linear, Window, matrix, offset
from ..ir.spans import Span

Form = Literal["identity", "folded", "affine", "affine + folded", "conv", "refit"]
FOLDED: frozenset[Form] = frozenset({"folded", "affine + folded", "refit"})


@dataclass(frozen=True)
class Problem:
    """Least squares for one surrogate: target ~ given + features W + b.

    W0, b0 are what W and b would be if nothing were solved: W0 is the prior.
    """

    features: tuple[Feature, ...]
    given: Feature | None
    target: Feature
    W0: Array
    b0: Array


def problem(model: OnnxModel, form: Form, span: Span, width: int, linear: Linear | None) -> Problem:
    """What is to be solved to make `span.exit`, of `width` channels, in the given form."""
    axis, axes = span.channel_axis, span.rank - 2
    target, entry, zero = Feature(span.exit, axis), Feature(span.entry, axis), np.zeros(width)
    if form == "affine":
        return Problem((entry,), None, target, np.eye(width), zero)
    if form == "conv":
        entry = Feature(span.entry, axis, same_window(axes))
        return Problem((entry,), None, target, central(width, axes), zero)
    if linear is None:
        raise ValueError(f"a surrogate of the form {form!r} needs a linear operation")
    u = Feature(linear.u, -1 if linear.window is None else 1, linear.window)
    r = Feature(linear.residual, axis)
    W0, b0 = matrix(model, linear), offset(model, linear, width)
    if form == "affine + folded":
        return Problem((r, u), None, target, np.vstack([np.eye(width), W0]), b0)
    return Problem((u,), r, target, W0, b0)


def same_window(axes: int) -> Window:
    """A 3x3 window that keeps the size."""
    return Window((3,) * axes, (1,) * axes, (1,) * 2 * axes, (1,) * axes)


def central(width: int, axes: int) -> Array:
    """The 3x3 kernel that is the identity, as (c 3 3, out)."""
    cells = 3**axes
    kernel = np.zeros((width, cells, width))
    kernel[np.arange(width), cells // 2, np.arange(width)] = 1.0
    return kernel.reshape(width * cells, width)
