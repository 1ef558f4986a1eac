"""Replacements: a solved surrogate in the place of a span, and the nodes that compute it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from ..calibration.moments import Array
from ..calibration.solve import Solution
from ..ir.onnx_file import OnnxModel
from ..ir.onnx_linear import Linear, as_weight, matrix, offset, views_after
from ..ir.spans import Span
from .precision import numpy_dtype
from .surrogates import Form, kernel_size


@dataclass(frozen=True)
class Replacement:
    """A surrogate that makes the value `span.exit`.

    `solution` holds W and b as `surrogates.problem` asks for them; None is the identity. `linear`
    is the operation that a folded or refitted surrogate solves again, `mask` the input that marks
    padding where the surrogate takes a mean. `predicted_error` is E |y - map|^2 / tr(Cyy) on
    held-out rows.
    """

    span: Span
    solution: Solution | None
    predicted_error: float
    form: Form = "affine"
    linear: Linear | None = None
    mask: str | None = None

    @property
    def surrogate(self) -> Form:
        return "identity" if self.solution is None else self.form

    def nodes(self, model: OnnxModel) -> list[gs.Node]:
        """Nodes that compute the exit, the last one making it by its name."""
        span, exit_ = self.span, gs.Variable(self.span.exit)
        if self.solution is None:
            entry = gs.Variable(span.entry)
            return [self._node("Identity", "identity", [entry], exit_)]
        W, b = self.solution.W, self.solution.b
        d = len(b)
        mapped, joined = (
            gs.Variable(f"{self._prefix}/{span.exit}/{role}") for role in ("mapped", "joined")
        )
        if self.form == "affine + context":
            context, shift = self._context(model, {span.entry: W[d:]}, b)
            nodes = self._map(span.entry, W[:d], None, mapped)
            return [*context, *nodes, self._node("Add", "add", [mapped, shift], exit_)]
        if self.linear is None:
            return self._map(span.entry, W, b, exit_)
        residual = gs.Variable(self.linear.residual)
        if self.form in ("folded", "refit"):
            return self._again(model, self.linear, W, b, residual, exit_)
        nodes = self._map(self.linear.residual, W[:d], None, mapped)
        if self.form == "affine + folded":
            return nodes + self._again(model, self.linear, W[d:], b, mapped, exit_)
        U, V = W[d:-d], W[-d:]
        # the mean of r + u W0 + b0 from those of r and u, so that the sum itself is not needed
        through = matrix(model, self.linear) @ V
        means = {self.linear.residual: V, self.linear.u: through}
        b = b + offset(model, self.linear, d) @ V
        context, shift = self._context(model, means, None)
        nodes += [*context, self._node("Add", "join", [mapped, shift], joined)]
        return nodes + self._again(model, self.linear, U, b, joined, exit_)

    @property
    def _prefix(self) -> str:
        return f"blockfold/{self.span.name}"

    def _map(self, x: str, W: Array, b: Array | None, made: gs.Variable) -> list[gs.Node]:
        """x W + b on tokens, a convolution on feature maps."""
        span, entry = self.span, gs.Variable(x)
        if span.is_map:
            axes = span.rank - 2
            size = kernel_size(self.form)
            kernel = W.T.reshape(W.shape[1], -1, *(size,) * axes)
            weights = [self._constant("W", kernel)]
            weights += [] if b is None else [self._constant("b", b)]
            attrs: dict[str, object] = {} if size == 1 else {"pads": [size // 2] * 2 * axes}
            attrs |= {"strides": list(span.strides)} if span.strides else {}
            return [self._node("Conv", "conv", [entry, *weights], made, attrs)]
        product = made if b is None else gs.Variable(f"{self._prefix}/{span.exit}/product")
        nodes = [self._node("MatMul", "matmul", [entry, self._constant("W", W)], product)]
        if b is not None:
            nodes.append(self._node("Add", "add", [product, self._constant("b", b)], made))
        return nodes

    def _context(
        self, model: OnnxModel, weights: Mapping[str, Array], b: Array | None
    ) -> tuple[list[gs.Node], gs.Variable]:
        """Nodes that give the sum of m V over values by name, plus b: one row per sample.

        m is the mean of the value over its positions, V its weights.
        """
        label = f"{self._prefix}/{self.span.exit}/context"
        terms: list[gs.Variable] = []
        nodes, means = self._means(model, list(weights))
        for number, (mean, V) in enumerate(zip(means, weights.values(), strict=True)):
            terms.append(gs.Variable(f"{label}/term {number}"))
            if self.span.is_map:
                kernel = V.T.reshape(*V.T.shape, *(1,) * (self.span.rank - 2))
                op, weight = "Conv", self._constant(f"V{number}", kernel)
            else:
                op, weight = "MatMul", self._constant(f"V{number}", V)
            nodes.append(self._node(op, f"context product {number}", [mean, weight], terms[-1]))
        total: gs.Tensor = terms[0]
        others: list[gs.Tensor] = [*terms[1:]]
        if b is not None:
            shape = (1, len(b), *(1,) * (self.span.rank - 2)) if self.span.is_map else b.shape
            others.append(self._constant("b", b.reshape(shape)))
        for number, other in enumerate(others):
            joined = gs.Variable(f"{label}/sum {number}")
            nodes.append(self._node("Add", f"context add {number}", [total, other], joined))
            total = joined
        return nodes, total

    def _means(
        self, model: OnnxModel, sources: Sequence[str]
    ) -> tuple[list[gs.Node], list[gs.Variable]]:
        """The mean of each value over the positions of its sample that are no padding."""
        label = f"{self._prefix}/{self.span.exit}/context"
        means = [gs.Variable(f"{label}/mean {number}") for number in range(len(sources))]
        pairs = list(zip(map(gs.Variable, sources), means, strict=True))
        if self.span.is_map:
            op = "GlobalAveragePool"
            return [
                self._node(op, f"context pool {number}", [x], made)
                for number, (x, made) in enumerate(pairs)
            ], means
        if self.mask is None:
            axes = list(range(1, self.span.rank - 1))
            return [
                self._over(model, "ReduceMean", f"context mean {number}", x, axes, made, since=18)
                for number, (x, made) in enumerate(pairs)
            ], means
        shares = gs.Variable(f"blockfold/{self.mask}/shares")
        nodes = self._shares(model, self.mask, shares)
        for number, (x, made) in enumerate(pairs):
            nodes.append(self._node("MatMul", f"context mean {number}", [shares, x], made))
        return nodes, means

    def _shares(self, model: OnnxModel, mask: str, shares: gs.Variable) -> list[gs.Node]:
        """Nodes that give a row for each sample, the weights of its positions in a mean.

        They are divided before anything is summed, since float16 ends at 65504. Their names go by
        the mask alone: replacements share them.
        """
        label = f"blockfold/{mask}"
        is_kept, kept, row, count, some = (
            gs.Variable(f"{label}/{part}") for part in ("is kept", "kept", "row", "count", "some")
        )
        held = numpy_dtype(self.span.dtype)
        dtype = onnx.helper.np_dtype_to_tensor_dtype(held)
        one = gs.Constant(f"{label}/one", np.ones((), held))
        return [
            gs.Node("Cast", f"{label}/truth", {"to": 9}, [gs.Variable(mask)], [is_kept]),
            gs.Node("Cast", f"{label}/cast", {"to": dtype}, [is_kept], [kept]),
            self._over(model, "Unsqueeze", "context row", kept, [1], row, since=13),
            self._over(model, "ReduceSum", "context count", row, [2], count, since=13),
            gs.Node("Clip", f"{label}/clip", {}, [count, one], [some]),
            gs.Node("Div", f"{label}/divide", {}, [row, some], [shares]),
        ]

    def _over(
        self,
        model: OnnxModel,
        op: str,
        role: str,
        x: gs.Variable,
        axes: list[int],
        made: gs.Variable,
        *,
        since: int,
    ) -> gs.Node:
        """An operator along axes, which are an input from opset `since` on, an attribute before."""
        if model.opset < since:
            return self._node(op, role, [x], made, {"axes": axes})
        given = gs.Constant(f"{made.name}/axes", np.array(axes, np.int64))
        return self._node(op, role, [x, given], made)

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
            nodes.append(
                gs.Node(
                    "Add",
                    f"{label}/bias",
                    inputs=[term, self._constant("b", b)],
                    outputs=[shifted],
                )
            )
            term = shifted
        for number, view in enumerate(views_after(model, linear)):
            following = gs.Variable(f"{label}/view {number}")
            inputs = [term, *map(gs.Variable, view.inputs[1:])]
            proto = model.proto.graph.node[view.index]
            nodes.append(_like(proto, f"{label}/view {number}", inputs, following))
            term = following
        nodes.append(gs.Node("Add", f"{label}/sum", inputs=[residual, term], outputs=[made]))
        return nodes

    def _node(
        self,
        op: str,
        role: str,
        inputs: list[gs.Tensor],
        made: gs.Variable,
        attrs: Mapping[str, object] | None = None,
    ) -> gs.Node:
        return gs.Node(
            op, f"{self._prefix}/{role}", dict(attrs or {}), inputs=inputs, outputs=[made]
        )

    def _constant(self, role: str, values: Array) -> gs.Constant:
        """A weight in the dtype of the stream, named after the value it makes."""
        held = numpy_dtype(self.span.dtype)
        return gs.Constant(f"blockfold/{self.span.exit}/{role}", values.astype(held))


def _like(
    proto: onnx.NodeProto, name: str, inputs: list[gs.Tensor], output: gs.Variable
) -> gs.Node:
    """A node of the same operator with the same attributes."""
    attrs = {a.name: onnx.helper.get_attribute_value(a) for a in proto.attribute}
    texts = {k: v.decode() if isinstance(v, bytes) else v for k, v in attrs.items()}
    return gs.Node(proto.op_type, name, texts, inputs=inputs, outputs=[output], domain=proto.domain)
