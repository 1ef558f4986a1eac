"""The ladder of surrogates: what may stand in the place of a span, cheapest first.

x is the entry, y the exit; r and u are the terms of an entry that is made as r + u W0 + b0 (and
perhaps normalised). m is the mean of x over the positions of its sample, beside r and u that of
r + u W0 + b0.

    identity                    y ~ x                     nothing is left of the span
    folded                      y ~ r + u W + b           the linear operation before it, again
    affine                      y ~ x W + b               MatMul + Add, on maps a 1x1 Conv
    affine + context            y ~ x W + m V + b         a row per sample more
    affine + folded             y ~ r R + u W + b
    affine + folded + context   y ~ r R + u W + m V + b
    conv                        y ~ x * K + b             a 3x3 Conv on feature maps
    refit                       y ~ r + u W + b           no span: a sum's linear operation, again

All are one least squares problem, pulled towards what leaves the network as it is: W0 is the
identity on x and r, 0 on m, the weight that was there on u. Where feature maps change in size or
channels the maps are convolutions with strides, and W0 is 0: nothing there is left as it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from ..calibration.features import Feature
from ..calibration.moments import Array
from ..calibration.solve import LEAST_RIDGE
from ..ir.onnx_file import OnnxModel
from ..ir.onnx_linear import Linear, matrix
from ..ir.spans import Span

Form = Literal[
    "identity",
    "folded",
    "affine",
    "affine + context",
    "affine + folded",
    "affine + folded + context",
    "conv",
    "refit",
]
FOLDED: frozenset[Form] = frozenset(
    {"folded", "affine + folded", "affine + folded + context", "refit"}
)
"""Forms that solve a linear operation again."""

CONTEXT: frozenset[Form] = frozenset({"affine + context", "affine + folded + context"})
"""Forms that take the mean over the positions of a sample."""

KERNEL = 3


@dataclass(frozen=True)
class Wish:
    """A span and the form of surrogate to put in its place."""

    span: Span
    form: Form


@dataclass(frozen=True)
class Problem:
    """Least squares for one surrogate: target ~ given + features W + b.

    `prior` is what W would be if nothing were solved: W0 (p, d).
    """

    features: tuple[Feature, ...]
    given: Feature | None
    target: Feature
    prior: Array

    @property
    def least_ridge(self) -> float:
        """Below which a ridge must earn its place: weights of the model are not to explode."""
        return LEAST_RIDGE if self.given is not None else 0.0


def problem(model: OnnxModel, form: Form, span: Span, linear: Linear | None) -> Problem:
    """What is to be solved to make `span.exit` in the given form; `linear` makes the entry."""
    axis, width = span.channel_axis, span.width
    target, entry, eye = Feature(span.exit, axis), Feature(span.entry, axis), np.eye(width)
    if span.strides:
        size = kernel_size(form)
        entry = Feature(span.entry, axis, span.window(size))
        prior = np.zeros((span.entry_width * size ** (span.rank - 2), width))
        return Problem((entry,), None, target, prior)
    if form == "affine":
        return Problem((entry,), None, target, eye)
    mean = Feature(span.entry, axis, pooled=True)
    if form == "affine + context":
        return Problem((entry, mean), None, target, np.vstack([eye, np.zeros_like(eye)]))
    if form == "conv":
        entry = Feature(span.entry, axis, span.window(KERNEL))
        return Problem((entry,), None, target, central(eye, span.rank - 2))
    if linear is None:
        raise ValueError(f"a surrogate of the form {form!r} needs a linear operation")
    u, r = linear_input(linear), Feature(linear.residual, axis)
    weight = matrix(model, linear)
    if form == "affine + folded":
        return Problem((r, u), None, target, np.vstack([eye, weight]))
    if form == "affine + folded + context":
        whole = Feature(linear.value, axis, pooled=True)
        return Problem((r, u, whole), None, target, np.vstack([eye, weight, np.zeros_like(eye)]))
    return Problem((u,), r, target, weight)


def kernel_size(form: Form) -> int:
    """Of the convolution that a map of feature maps is."""
    return KERNEL if form == "conv" else 1


def linear_input(linear: Linear) -> Feature:
    """The rows that a linear operation multiplies its weight with."""
    return Feature(linear.u, -1 if linear.window is None else 1, linear.window)


def central(prior: Array, axes: int) -> Array:
    """A 1x1 kernel (c, out) in the middle of a 3x3 one, as (c 3 3, out)."""
    channels, out = prior.shape
    cells = KERNEL**axes
    kernel = np.zeros((channels, cells, out))
    kernel[:, cells // 2] = prior
    return kernel.reshape(channels * cells, out)
