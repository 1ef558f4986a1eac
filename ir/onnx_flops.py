"""Floating-point operations of a model at given input shapes."""

from __future__ import annotations

import math
from collections.abc import Mapping

import onnx

from .onnx_file import OnnxModel
from .onnx_view import inferred_shapes

COUNTED = frozenset({"MatMul", "Gemm", "Conv", "FusedMatMul", "FusedConv"})


def flops(model: OnnxModel, shapes: Mapping[str, tuple[int, ...]]) -> int | None:
    """Two per multiply-add of matrix products and convolutions; None where a shape is unknown.

    `shapes` gives the dimensions of every input. Other operators count as nothing.
    """
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    for value in proto.graph.input:
        if value.name in shapes:
            for dim, length in zip(
                value.type.tensor_type.shape.dim, shapes[value.name], strict=True
            ):
                dim.dim_value = length
    del proto.graph.value_info[:]
    for value in proto.graph.output:
        value.type.tensor_type.ClearField("shape")
    known = inferred_shapes(proto)
    total = 0
    for node in model.graph.nodes:
        if node.op in COUNTED:
            count = _multiply_adds(
                node.op,
                [known.get(name) for name in (*node.inputs, *node.outputs)],
                len(node.inputs),
                model.proto.graph.node[node.index],
            )
            if count is None:
                return None
            total += 2 * count
    return total


def _multiply_adds(
    op: str,
    dims: list[tuple[int, ...] | None],
    inputs: int,
    proto: onnx.NodeProto,
) -> int | None:
    first, second, made = dims[0], dims[1], dims[inputs]
    if first is None or second is None or made is None:
        return None
    if op in ("Conv", "FusedConv"):
        return math.prod(made) * math.prod(second[1:])
    if op == "Gemm":
        transposed = any(a.name == "transA" and a.i for a in proto.attribute)
        return math.prod(made) * first[0 if transposed else 1]
    return math.prod(made) * first[-1]
