"""What ONNX's checker lets pass and no model may have: see the functions."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from graphlib import CycleError, TopologicalSorter

import onnx

from .errors import BadInput, Unsupported
from .onnx_view import BITS_BELOW_A_BYTE, stored_bytes

MOST_CALLED_NODES = 200_000
"""Nodes that the calls of a model's own functions may stand for."""


CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""Characters that a terminal obeys; tabs and line ends are let through."""


def nodes_in(nodes: Sequence[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """These nodes and those of their bodies (If, Loop, Scan)."""
    for node in nodes:
        yield node
        for attribute in node.attribute:
            for body in (attribute.g, *attribute.graphs):
                yield from nodes_in(body.node)


def require_finite_functions(proto: onnx.ModelProto, name: str) -> None:
    """Unsupported where the model's functions call themselves or stand for too many nodes."""
    calls = {(f.domain, f.name): _called(f.node) for f in proto.functions}
    sizes: dict[tuple[str, str], int] = {}
    try:
        order = list(TopologicalSorter(calls).static_order())
    except CycleError as error:
        raise Unsupported(f"{name}: its function {error.args[1][0][1]!r} calls itself") from error
    for function in order:
        called = calls.get(function, Counter())
        sizes[function] = 1 + sum(count * sizes[inner] for inner, count in called.items())
    total = sum(sizes.get(f, 1) * count for f, count in _called(proto.graph.node).items())
    if calls and total > MOST_CALLED_NODES:
        raise Unsupported(
            f"{name}: calls of its own functions stand for more than {MOST_CALLED_NODES:,} nodes; "
            "export it without functions"
        )


def _called(nodes: Sequence[onnx.NodeProto]) -> Counter[tuple[str, str]]:
    """How often each operator or function is called, bodies included."""
    return Counter((node.domain, node.op_type) for node in nodes_in(nodes))


def require_whole(proto: onnx.ModelProto, name: str) -> None:
    """BadInput where a tensor lacks numbers, lies where it may not, or an attribute is open.

    Only weights of the main graph may lie in another file. Names that would steer a terminal are
    refused, too.
    """
    tensors = ((True, tensor) for tensor in proto.graph.initializer)
    for may_lie_outside, tensor in (*tensors, *((False, t) for t in _inner_tensors(proto))):
        is_outside = tensor.data_location == onnx.TensorProto.EXTERNAL
        if (is_outside or tensor.external_data) and not may_lie_outside:
            raise BadInput(
                f"{name}: tensor {tensor.name!r}, a literal or inside a body, lies in another "
                "file; save it within the model"
            )
        if not is_outside and tensor.data_type and not _is_complete(tensor):
            raise BadInput(
                f"{name}: tensor {tensor.name!r} holds more or fewer numbers than it says; "
                "export or copy the model again"
            )
    for node in nodes_in(proto.graph.node):
        scopes = (entry.value for entry in node.metadata_props)
        names = (node.name, node.op_type, node.domain, *node.input, *node.output, *scopes)
        steering = next((text for text in names if CONTROL.search(text)), None)
        if steering is not None:
            raise BadInput(f"{name}: name {steering[:80]!r} holds control characters; rename it")
        if any(attribute.ref_attr_name for attribute in node.attribute):
            raise BadInput(
                f"{name}: {node.op_type} node {node.name!r} refers to an attribute of a function "
                "that it is not part of; export the model again"
            )


def _is_complete(tensor: onnx.TensorProto) -> bool:
    """Whether a tensor within the file has the numbers that its dimensions ask for."""
    if tensor.HasField("segment"):
        return False
    if tensor.HasField("raw_data"):
        return len(tensor.raw_data) == stored_bytes(tensor)
    kind = onnx.TensorProto.DataType.Name(tensor.data_type)
    held = len(getattr(tensor, onnx.helper.tensor_dtype_to_field(tensor.data_type)))
    elements = math.prod(tensor.dims)
    if kind in BITS_BELOW_A_BYTE:
        return held == -(-elements * BITS_BELOW_A_BYTE[kind] // 8)
    return held == elements * (2 if kind.startswith("COMPLEX") else 1)


def _inner_tensors(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every tensor but the main graph's initializers: literals, weights of bodies, sparse ones."""
    graphs = [proto.graph]
    functions = (node for function in proto.functions for node in function.node)
    for node in nodes_in([*proto.graph.node, *functions]):
        for attribute in node.attribute:
            sparse = (attribute.sparse_tensor, *attribute.sparse_tensors)
            yield from (attribute.t, *attribute.tensors)
            yield from (part for one in sparse for part in (one.values, one.indices))
            bodies = (attribute.g, *attribute.graphs)
            yield from (tensor for body in bodies for tensor in body.initializer)
            graphs += bodies
    for graph in graphs:
        for one in graph.sparse_initializer:
            yield from (one.values, one.indices)
