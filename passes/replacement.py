"""Replacements: a solved surrogate in the place of a span, and the nodes that compute it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from ml_dtypes import bfloat16

from ..calibration.moments import Array
from ..calibration.solve import Solution
from ..ir.onnx_file import OnnxModel
from ..ir.onnx_linear import Linear, as_weight, views_after
from ..ir.spans import Span
from .surrogates import Form


@dataclass(frozen=True)
class Replacement:
    """A surrogate that makes the value `span.exit`.

    `solution` holds W and b as `surrogates.problem` asks for them; None is the identity. `linear`
    is the operation that a folded or refitted surrogate solves again. `predicted_error` is
    E |y - map|^2 / tr(Cyy) on held-out rows.
    """

    span: Span
    solution: Solution | None
    predicted_error: float
    form: Form = "affine"
    linear: Linear | None = None

    @property
    def surrogate(self) -> Form:
        return "identity" if self.solution is None else self.form

    def nodes(self, model: OnnxModel) -> list[gs.Node]:
        """Nodes that compute the exit, the last one making it by its name."""
        span = self.span
        exit_ = gs.Variable(span.exit)
        if self.solution is None:
            entry = gs.Variable(span.entry)
            return [
                gs.Node("Identity", f"{self._prefix}/identity", inputs=[entry], outputs=[exit_])
            ]
        W, b = self.solution.W, self.solution.b
        if self.linear is None:
            return self._map(span.entry, W, b, exit_)
        if self.form != "affine + folded":
            return self._again(model, self.linear, W, b, gs.Variable(self.linear.residual), exit_)
        width = len(b)
        mapped = gs.Variable(f"{self._prefix}/{span.exit}/mapped")
        residual = self._map(self.linear.residual, W[:width], None, mapped)
        return residual + self._again(model, self.linear, W[width:], b, mapped, exit_)

    @property
    def _prefix(self) -> str:
        return f"blockfold/{self.span.name}"

    def _map(self, x: str, W: Array, b: Array | None, made: gs.Variable) -> list[gs.Node]:
        """x W + b on tokens, a convolution on feature maps."""
        span, entry = self.span, gs.Variable(x)
        if span.channel_axis == 1 and span.rank > 2:
            width = W.shape[1]
            axes = span.rank - 2
            size = round((len(W) / width) ** (1 / axes))
            kernel = W.T.reshape(width, width, *(size,) * axes)
            weights = [self._constant("W", kernel)]
            weights += [] if b is None else [self._constant("b", b)]
            attrs = {} if size == 1 else {"pads": [size // 2] * 2 * axes}
            label = f"{self._prefix}/conv"
            return [gs.Node("Conv", label, attrs, inputs=[entry, *weights], outputs=[made])]
        matmul_out = made if b is None else gs.Variable(f"{self._prefix}/{span.exit}/product")
        inputs = [entry, self._constant("W", W)]
        nodes = [gs.Node("MatMul", f"{self._prefix}/matmul", inputs=inputs, outputs=[matmul_out])]
        if b is not None:
            inputs = [matmul_out, self._constant("b", b)]
            nodes.append(gs.Node("Add", f"{self._prefix}/add", inputs=inputs, outputs=[made]))
        return nodes

    def _again(
        self,
        model: OnnxModel,
        linear: Linear,
        W: Array,
        b: Array,
        residual: gs.Variable,
        made: gs.Variable,
    ) -> list[gs.Node]:
        """The linear operation with new weights, the views after it, and the sum with the residual.

        A bias that was added after it is added at once; a constant scale is part of the weights.
        """
        operation = model.proto.graph.node[linear.operation]
        label = f"{self._prefix}/{linear.value}"
        inputs = [gs.Variable(linear.u), self._constant("U", as_weight(model, linear, W))]
        has_own = operation.op_type != "MatMul"
        if has_own:
            inputs.append(self._constant("b", b))
        term = gs.Variable(f"{label}/linear")
        nodes = [_like(operation, f"{label}/linear", inputs, term)]
        if not has_own:
            shifted = gs.Variable(f"{label}/shifted")
            inputs = [term, self._constant("b", b)]
            nodes.append(gs.Node("Add", f"{label}/bias", inputs=inputs, outputs=[shifted]))
            term = shifted
        for number, view in enumerate(views_after(model, linear)):
            following = gs.Variable(f"{label}/view {number}")
            inputs = [term, *map(gs.Variable, view.inputs[1:])]
            proto = model.proto.graph.node[view.index]
            nodes.append(_like(proto, f"{label}/view {number}", inputs, following))
            term = following
        nodes.append(gs.Node("Add", f"{label}/sum", inputs=[residual, term], outputs=[made]))
        return nodes

    def _constant(self, role: str, values: Array) -> gs.Constant:
        """A weight in the dtype of the stream, named after the value it makes."""
        dtype = bfloat16 if self.span.dtype == "bfloat16" else np.dtype(self.span.dtype)
        return gs.Constant(f"blockfold/{self.span.exit}/{role}", values.astype(dtype))


def _like(
    proto: onnx.NodeProto, name: str, inputs: list[gs.Tensor], output: gs.Variable
) -> gs.Node:
    """A node of the same operator with the same attributes."""
    attrs = {a.name: onnx.helper.get_attribute_value(a) for a in proto.attribute}
    texts = {k: v.decode() if isinstance(v, bytes) else v for k, v in attrs.items()}
    return gs.Node(proto.op_type, name, texts, inputs=inputs, outputs=[output], domain=proto.domain)
