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

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
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
    """Least squares for one surrogate: target ~ given + features W + b, W having `columns` rows.

    Of a wide stream a prior is large and wishes are many, so it is made when asked for.
    """

    features: tuple[Feature, ...]
    given: Feature | None
    target: Feature
    columns: int
    make_prior: Callable[[], Array]

    @property
    def prior(self) -> Array:
        """What W would be if nothing were solved: W0 (columns, d)."""
        return self.make_prior()

    @property
    def least_ridge(self) -> float:
        """Below which a ridge must earn its place: weights of the model are not to explode."""
        return LEAST_RIDGE if self.given is not None else 0.0


def problem(model: OnnxModel, form: Form, span: Span, linear: Linear | None) -> Problem:
    """What is to be solved to make `span.exit` in the given form; `linear` makes the entry."""
    axis, width, axes = span.channel_axis, span.width, span.rank - 2
    target, entry = Feature(span.exit, axis), Feature(span.entry, axis)
    eye, zeros = partial(np.eye, width), partial(np.zeros, (width, width))
    if span.strides:
        size = kernel_size(form)
        entry, columns = Feature(span.entry, axis, span.window(size)), span.entry_width * size**axes
        return Problem((entry,), None, target, columns, partial(np.zeros, (columns, width)))
    if form == "affine":
        return Problem((entry,), None, target, width, eye)
    if form == "affine + context":
        mean = Feature(span.entry, axis, pooled=True)
        return Problem((entry, mean), None, target, 2 * width, partial(_stacked, eye, zeros))
    if form == "conv":
        entry, columns = Feature(span.entry, axis, span.window(KERNEL)), width * KERNEL**axes
        return Problem((entry,), None, target, columns, partial(_central, width, axes))
    if linear is None:
        raise ValueError(f"a surrogate of the form {form!r} needs a linear operation")
    u, r = linear_input(linear), Feature(linear.residual, axis)
    weight = partial(matrix, model, linear)
    columns = model.graph.constants[linear.weight].elements // width
    if form == "affine + folded":
        return Problem((r, u), None, target, width + columns, partial(_stacked, eye, weight))
    if form == "affine + folded + context":
        whole = Feature(linear.value, axis, pooled=True)
        prior = partial(_stacked, eye, weight, zeros)
        return Problem((r, u, whole), None, target, 2 * width + columns, prior)
    return Problem((u,), r, target, columns, weight)


def kernel_size(form: Form) -> int:
    """Of the convolution that a map of feature maps is."""
    return KERNEL if form == "conv" else 1


def linear_input(linear: Linear) -> Feature:
    """The rows that a linear operation multiplies its weight with."""
    return Feature(linear.u, -1 if linear.window is None else 1, linear.window)


def _stacked(*parts: Callable[[], Array]) -> Array:
    return np.vstack([part() for part in parts])


def _central(channels: int, axes: int) -> Array:
    """What leaves feature maps as they are: 1 in the middle of each 3x3 kernel, (c 3 3, c)."""
    cells = KERNEL**axes
    kernel = np.zeros((channels, cells, channels))
    kernel[:, cells // 2] = np.eye(channels)
    return kernel.reshape(channels * cells, channels)
