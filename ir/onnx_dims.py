"""Where every length comes from: symbolic dimensions of an ONNX graph, traced to its inputs.

A dimension is a number or a Length, "axis 1 of input_ids". Names that exporters give to dimensions
prove nothing (one stream may carry four of them), so each length is followed through the operators
instead, and through the shape arithmetic that exporters write (Shape, Gather, Concat, Reshape).
What no rule explains becomes a Length of the value itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import prod

import onnx

from .graph import Graph, Kind, Node
from .lengths import Dim, Dims, Equalities, Length
from .onnx_file import OnnxModel
from .onnx_shapes import (
    MOST_NUMBERS,
    NUMBERS,
    SHAPES,
    Call,
    nothing,
    same,
)


class Lengths:
    """The dimensions of all values of a graph, and the content of its small integer tensors."""

    def __init__(self, model: OnnxModel) -> None:
        self._graph: Graph = model.graph
        self._protos = model.proto.graph.node
        self._shapes: dict[str, Dims | None] = {}
        self._numbers: dict[str, tuple[Dim | None, ...]] = {}
        made = (*self._graph.inputs, *(n for node in self._graph.nodes for n in node.outputs))
        self._equal = Equalities({name: place for place, name in enumerate(made)})
        for tensor in model.proto.graph.initializer:
            self._read(tensor.name, tensor)
        for name in (*self._graph.constants, *self._graph.inputs):
            self._shapes[name] = self._stated(name)
        for node in self._graph.nodes:
            self._infer(node)

    def shape(self, name: str) -> Dims | None:
        """The dimensions of a value, None where not even their count is known.

        What is known to be equal is written alike.
        """
        shape = self._shapes.get(name)
        return None if shape is None else tuple(map(self._equal.of, shape))

    def equate(self, dims: Iterable[Dim]) -> None:
        """Take these to be equal, for a reason that no single node shows."""
        self._equal.unite(dims)

    def alike(self, length: Length) -> list[Length]:
        """The lengths equal to it, itself included: inputs' first, then as values are made."""
        return self._equal.alike(length)

    def given_by(self, node: Node) -> Dims | None:
        """The lengths that a Shape node gives, None where they are not known in number."""
        numbers = self._numbers.get(node.outputs[0]) if node.op == "Shape" else None
        dims = tuple(self._equal.of(dim) for dim in numbers or () if dim is not None)
        return dims if numbers is not None and len(dims) == len(numbers) else None

    def _infer(self, node: Node) -> None:
        """Shapes of the node's outputs, and its numbers if it is shape arithmetic."""
        for name in node.outputs:
            self._shapes[name] = self._stated(name)
        if not node.outputs or not node.outputs[0]:
            return
        if node.op == "Constant":
            for attribute in self._protos[node.index].attribute:
                if attribute.name == "value":
                    self._read(node.outputs[0], attribute.t)
                elif attribute.name == "value_int":
                    self._numbers[node.outputs[0]] = (attribute.i,)
                elif attribute.name == "value_ints":
                    self._numbers[node.outputs[0]] = tuple(attribute.ints)
        call = Call(node, self._attributes(node), self._shapes, self._numbers, self._equal)
        numbers = NUMBERS.get(node.op, nothing)(call)
        if numbers is not None and len(numbers) <= MOST_NUMBERS:
            self._numbers[node.outputs[0]] = numbers
        rule = SHAPES.get(node.op) or (same if node.kind is Kind.NORM else nothing)
        found = rule(call)
        stated = self._shapes[node.outputs[0]]
        if found is not None and (stated is None or len(stated) == len(found)):
            self._shapes[node.outputs[0]] = tuple(
                a if isinstance(a, int) else b for a, b in zip(stated or found, found, strict=True)
            )
        elif node.op == "Split" and call.shape(0) is not None:
            self._split(call)

    def _split(self, call: Call) -> None:
        before, axis = call.shape(0) or (), call.attribute("axis", 0)
        for name in call.node.outputs:
            stated = self._shapes.get(name)
            if stated is not None and len(stated) == len(before):
                self._shapes[name] = tuple(
                    own if i == axis % len(before) else dim
                    for i, (own, dim) in enumerate(zip(stated, before, strict=True))
                )

    def _stated(self, name: str) -> Dims | None:
        """What the file states, with a Length of the value itself for each axis it leaves open."""
        shape = self._graph.value(name).shape
        if shape is None:
            return None
        return tuple(d if isinstance(d, int) else Length(name, i) for i, d in enumerate(shape))

    def _read(self, name: str, tensor: onnx.TensorProto) -> None:
        is_integer = tensor.data_type in (onnx.TensorProto.INT64, onnx.TensorProto.INT32)
        is_here = tensor.data_location != onnx.TensorProto.EXTERNAL
        is_list = len(tensor.dims) < 2 and prod(tensor.dims) <= MOST_NUMBERS
        if is_integer and is_here and is_list:
            self._numbers[name] = tuple(map(int, onnx.numpy_helper.to_array(tensor).reshape(-1)))

    def _attributes(self, node: Node) -> Mapping[str, int | Sequence[int]]:
        kinds = onnx.AttributeProto
        return {
            a.name: a.i if a.type == kinds.INT else tuple(a.ints)
            for a in self._protos[node.index].attribute
            if a.type in (kinds.INT, kinds.INTS)
        }
