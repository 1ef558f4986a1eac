"""Rectifiers of an ONNX graph: values that are above 0 just where what enters an activation is.

Relu(z), Gelu(z), Clip(z, 0, 6), ...      one operator
z Sigmoid(z), z (1 + Erf(z / sqrt 2)) / 2, ...      a value times a gate that it opens itself
"""

from __future__ import annotations

from collections.abc import Sequence

from .graph import Kind, Node
from .onnx_file import OnnxModel
from .onnx_linear import constant
from .onnx_ops import GATES, RECTIFIERS


def rectified(model: OnnxModel) -> dict[int, str]:
    """By index of the node that makes it, the output of each rectifier, in topological order.

    A product is one where all that flows into it is made of one value, number by number, and part
    of it through a gate. A value times a gate that another value opens (a gated linear unit,
    squeeze and excitation) is none.
    """
    found: dict[int, str] = {}
    origin: dict[str, str] = {}
    gated: set[str] = set()
    for node in model.graph.nodes:
        flowing = [name for name in node.inputs if name in model.graph.input_dependent]
        if node.kind not in (Kind.POINTWISE, Kind.ADD) or not flowing:
            continue
        output = node.outputs[0]
        origins = {origin.get(name, name) for name in flowing}
        is_gated = not gated.isdisjoint(flowing)
        if _is_rectifier(model, node) or (is_gated and _is_product(node, flowing, origins)):
            found[node.index] = output
        elif len(origins) == 1:
            (origin[output],) = origins
            if is_gated or node.op in GATES:
                gated.add(output)
    return found


def _is_rectifier(model: OnnxModel, node: Node) -> bool:
    if node.op == "Clip" and len(node.inputs) > 1 and node.inputs[1] in model.graph.constants:
        return bool(constant(model, node.inputs[1]) == 0)
    return node.op in RECTIFIERS


def _is_product(node: Node, flowing: Sequence[str], origins: set[str]) -> bool:
    return node.op == "Mul" and len(set(flowing)) == 2 and len(origins) == 1
