"""Linear operations that feed a sum: `value = residual + linear(u)`, as an ONNX graph spells it.

MatMul, Gemm and Conv with constant weights, a bias of their own or added after, a constant scale
per channel (LayerScale), and views between them and the sum.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx

from .graph import Kind, Node
from .onnx_file import OnnxModel, numbers
from .windows import Window

Weights = np.ndarray


@dataclass(frozen=True)
class Linear:
    """`value = residual + linear(u)`.

    `operation` is the index of the MatMul, Gemm or Conv, `weight` and `bias` name its constants;
    `bias_node` adds the bias where the operation has none of its own. `after` are the indices of
    the nodes between it and the sum, in order. `window` is set for a Conv.
    """

    value: str
    residual: str
    u: str
    operation: int
    weight: str
    bias: str | None
    bias_node: int | None
    after: tuple[int, ...]
    window: Window | None


def linear_into(model: OnnxModel, value: str) -> Linear | None:
    """The linear operation that feeds the sum `value`, None where it is no such sum.

    Where both terms end in one, the later one in the graph is taken.
    """
    graph = model.graph
    total = graph.producer.get(value)
    if total is None or total.kind is not Kind.ADD or len(total.inputs) != 2:
        return None
    terms = [name for name in total.inputs if name not in graph.constants]
    if len(terms) != 2:
        return None
    found = [_trace(model, value, terms[1 - i], terms[i]) for i in (0, 1)]
    return max((f for f in found if f), key=lambda f: f.operation, default=None)


def _trace(model: OnnxModel, value: str, residual: str, term: str) -> Linear | None:
    """Walk from a term of the sum back to its linear operation."""
    graph = model.graph
    after: list[int] = []
    bias: str | None = None
    bias_node: int | None = None
    node = graph.producer.get(term)
    while node is not None:
        if node.op in OPERATIONS:
            return _read(model, node, value, residual, tuple(reversed(after)), bias, bias_node)
        flowing = [name for name in node.inputs if name in graph.input_dependent]
        constant = [name for name in node.inputs if name in graph.constants]
        if node.kind is Kind.ADD and len(flowing) == len(constant) == 1 and bias is None:
            bias, bias_node = constant[0], node.index
        elif node.op not in VIEWS and not (node.op == "Mul" and len(constant) == 1):
            return None
        after.append(node.index)
        node = graph.producer.get(flowing[0]) if flowing else None
    return None


OPERATIONS = frozenset({"MatMul", "Gemm", "Conv"})
VIEWS = frozenset({"Reshape", "Transpose", "Identity", "Dropout", "Squeeze", "Unsqueeze"})


def _read(
    model: OnnxModel,
    node: Node,
    value: str,
    residual: str,
    after: tuple[int, ...],
    bias: str | None,
    bias_node: int | None,
) -> Linear | None:
    """The linear operation of a node, if its weight is a constant and its form a plain one."""
    graph = model.graph
    proto = model.proto.graph.node[node.index]
    u, weight = node.inputs[:2]
    known = {a.name: onnx.helper.get_attribute_value(a) for a in proto.attribute}
    dims = graph.constants[weight].shape if weight in graph.constants else None
    if dims is None or len(dims) < 2 or u not in graph.input_dependent:
        return None
    if node.op == "Gemm":
        if (
            known.get("transA", 0)
            or known.get("alpha", 1.0) != 1.0
            or known.get("beta", 1.0) != 1.0
        ):
            return None
    elif node.op == "MatMul" and len(dims) != 2:
        return None
    window = None
    if node.op == "Conv":
        window = _window(known, [d for d in dims[2:] if isinstance(d, int)])
        if window is None:
            return None
    if len(node.inputs) > 2 and node.inputs[2]:
        if bias is not None or node.inputs[2] not in graph.constants:
            return None
        bias = node.inputs[2]
    out = dims[0] if node.op == "Conv" or _is_transposed(proto) else dims[-1]
    beside = [_scale_name(model, index) for index in after if graph.nodes[index].op == "Mul"]
    beside += [] if bias is None else [bias]
    if any(graph.constants[name].elements not in (1, out) for name in beside):
        return None
    return Linear(value, residual, u, node.index, weight, bias, bias_node, after, window)


def _window(known: Mapping[str, object], kernel: list[int]) -> Window | None:
    """A plain convolution's window; grouped ones and automatic padding are not taken."""
    auto = known.get("auto_pad", b"NOTSET")
    if known.get("group", 1) != 1 or auto not in (b"NOTSET", b"VALID"):
        return None

    def integers(name: str, default: int, count: int) -> tuple[int, ...]:
        given = known.get(name)
        return tuple(given) if isinstance(given, list) else (default,) * count

    axes = len(kernel)
    return Window(
        tuple(kernel),
        integers("strides", 1, axes),
        integers("pads", 0, 2 * axes),
        integers("dilations", 1, axes),
    )


def matrix(model: OnnxModel, linear: Linear) -> Weights:
    """The weight as W (inputs, outputs) of `u W`, constant scales after it included.

    A kernel (out, in, k, ...) becomes ((in k ...), out).
    """
    node = model.proto.graph.node[linear.operation]
    W = _wide(model, linear.weight)
    if node.op_type == "Conv" or (node.op_type == "Gemm" and _is_transposed(node)):
        W = W.reshape(len(W), -1).T
    for index in linear.after:
        if model.graph.nodes[index].op == "Mul":
            W = W * _scale(model, index)
    return W


def offset(model: OnnxModel, linear: Linear, width: int) -> Weights:
    """The b (outputs,) of `u W + b`, zero where the operation has no bias."""
    b = np.zeros(width)
    if linear.bias is not None and linear.bias_node is None:
        b = b + _wide(model, linear.bias).reshape(-1)
    for index in linear.after:
        if index == linear.bias_node and linear.bias is not None:
            b = b + _wide(model, linear.bias).reshape(-1)
        elif model.graph.nodes[index].op == "Mul":
            b = b * _scale(model, index)
    return b


def as_weight(model: OnnxModel, linear: Linear, W: Weights) -> Weights:
    """W (inputs, outputs) in the layout and type of the stored weight, scales not divided out."""
    node = model.proto.graph.node[linear.operation]
    stored = constant(model, linear.weight)
    if node.op_type == "Conv" or (node.op_type == "Gemm" and _is_transposed(node)):
        W = W.T
    return np.ascontiguousarray(W.reshape(stored.shape).astype(stored.dtype))


def views_after(model: OnnxModel, linear: Linear) -> list[Node]:
    """The nodes between the operation and the sum that only change the layout."""
    nodes = [model.graph.nodes[index] for index in linear.after]
    return [node for node in nodes if node.op in VIEWS]


def _is_transposed(node: onnx.NodeProto) -> bool:
    return any(a.name == "transB" and a.i == 1 for a in node.attribute)


def _scale(model: OnnxModel, index: int) -> Weights:
    return _wide(model, _scale_name(model, index)).reshape(-1)


def _scale_name(model: OnnxModel, index: int) -> str:
    return next(n for n in model.graph.nodes[index].inputs if n in model.graph.constants)


def _wide(model: OnnxModel, name: str) -> Weights:
    """The numbers of a constant in float64; NaN among them is no reason to warn."""
    with np.errstate(invalid="ignore"):
        return constant(model, name).astype(np.float64)


def constant(model: OnnxModel, name: str) -> Weights:
    """The numbers of a constant, external data read from the model's folder."""
    for tensor in model.proto.graph.initializer:
        if tensor.name == name:
            return numbers(model, tensor)
    (attribute,) = model.proto.graph.node[model.graph.producer[name].index].attribute
    value = onnx.helper.get_attribute_value(attribute)
    is_tensor = isinstance(value, onnx.TensorProto)
    return onnx.numpy_helper.to_array(value) if is_tensor else np.array(value)
