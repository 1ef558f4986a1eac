"""Replacements: a span and the map that takes its place.

identity   y ~ x           nothing is left of the span
affine     y ~ x W + b     MatMul + Add on tokens, a 1x1 Conv on feature maps
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs
from ml_dtypes import bfloat16

from ..calibration.moments import Array
from ..calibration.solve import Solution
from ..ir.spans import Span


@dataclass(frozen=True)
class Replacement:
    """A map from the value `entry` to the value `exit`.

    `solution` holds W (d, d) and b (d,) of an affine map; None is the identity. `predicted_error`
    is E |y - map(x)|^2 / tr(Cyy) on held-out rows.
    """

    span: Span
    solution: Solution | None
    predicted_error: float

    @property
    def surrogate(self) -> str:
        return "identity" if self.solution is None else "affine"

    def nodes(self) -> list[gs.Node]:
        """Nodes that compute the exit from the entry, the last one making it by its name."""
        span = self.span
        entry, exit_ = gs.Variable(span.entry), gs.Variable(span.exit)
        prefix = f"blockfold/{span.name}"
        if self.solution is None:
            return [gs.Node("Identity", f"{prefix}/identity", inputs=[entry], outputs=[exit_])]
        W, b = self.solution.W, self.solution.b
        if span.channel_axis == 1 and span.rank > 2:
            kernel = W.T.reshape(*W.T.shape, *(1,) * (span.rank - 2))
            weights = [self._constant("W", kernel), self._constant("b", b)]
            return [gs.Node("Conv", f"{prefix}/conv", inputs=[entry, *weights], outputs=[exit_])]
        product = gs.Variable(f"{prefix}/{span.exit}/product")
        matmul = gs.Node(
            "MatMul",
            f"{prefix}/matmul",
            inputs=[entry, self._constant("W", W)],
            outputs=[product],
        )
        add = gs.Node(
            "Add", f"{prefix}/add", inputs=[product, self._constant("b", b)], outputs=[exit_]
        )
        return [matmul, add]

    def _constant(self, role: str, values: Array) -> gs.Constant:
        """A weight in the dtype of the stream, named after the value it makes."""
        dtype = bfloat16 if self.span.dtype == "bfloat16" else np.dtype(self.span.dtype)
        return gs.Constant(f"blockfold/{self.span.exit}/{role}", values.astype(dtype))
