"""Floating-point operations of a model, counted on shapes it really took."""

from __future__ import annotations

import math

from ..ir.graph import Node
from ..ir.onnx_file import OnnxModel
from .runtime import Feeds, Runner, Runtime

COUNTED = frozenset(
    "MatMul Gemm Conv FusedMatMul FusedGemm GemmFastGelu FusedConv MatMulNBits MatMulBnb4"
    " MatMulInteger ConvInteger".split()
)


def flops(model: OnnxModel, runtime: Runtime, feeds: Feeds) -> int:
    """Two per multiply-add of matrix products and convolutions; other operators count nothing.

    The model runs once on `feeds`: shape inference knows too little of what exporters write.
    """
    graph = model.graph
    counted = [node for node in graph.nodes if node.op in COUNTED]
    flowing = {name for node in counted for name in (*node.inputs[:2], node.outputs[0])}
    taps = sorted(name for name in flowing if name in graph.producer or name in graph.inputs)
    found = Runner(model, runtime, taps)(feeds)
    shapes = {name: tuple(array.shape) for name, array in found.items()}
    shapes |= {c.name: tuple(int(d or 0) for d in c.shape or ()) for c in graph.constants.values()}
    return sum(2 * _multiply_adds(node, shapes, model) for node in counted)


def _multiply_adds(node: Node, shapes: dict[str, tuple[int, ...]], model: OnnxModel) -> int:
    first, second, made = (shapes[name] for name in (*node.inputs[:2], node.outputs[0]))
    if node.op in ("Conv", "FusedConv", "ConvInteger"):
        return math.prod(made) * math.prod(second[1:])
    attributes = model.proto.graph.node[node.index].attribute
    transposed = any(a.name == "transA" and a.i for a in attributes)
    return math.prod(made) * first[-2 if transposed else -1]
