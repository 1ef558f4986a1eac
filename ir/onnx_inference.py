"""ONNX's inference of shapes, spared the nodes that a few bytes of file could drown it with.

Inference follows lists of lengths through Concat and ranks through Gather, and both may double from
node to node; a Slice asks for as many numbers as the shape of its starts says there are. Bounds of
both are kept here, and a node that passes them is left out, with the hint it would have given.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import onnx

from .onnx_shapes import LONGEST_RANK

MOST_NUMBERS = 1024
"""In a list of lengths; no network needs so many."""

WHOLE = frozenset({onnx.TensorProto.INT64, onnx.TensorProto.INT32})
LISTING = frozenset("Reshape Expand ConstantOfShape".split())
"""The last input says how many axes the output has."""

KEEPING = frozenset("Cast CastLike Identity Squeeze Unsqueeze Slice Gather Where Reshape".split())
KEEPING |= frozenset("Add Sub Mul Div Mod Min Max Neg Abs Sign Floor Ceil".split())
"""What gives no more numbers than it takes, where they are a list of lengths."""

ERRORS = (onnx.shape_inference.InferenceError, RuntimeError, ValueError, TypeError)
"""What inference raises where a model contradicts itself."""


def infer_shapes(model: onnx.ModelProto) -> onnx.GraphProto:
    """The graph with the types that inference finds; empty where the model contradicts itself.

    `model` is the caller's to lose: nodes are taken out of it. Calls of functions are not looked
    into: these may call each other at will.
    """
    bounds = Bounds(model.graph)
    known = [node for node in model.graph.node if bounds.take(node)]
    del model.graph.node[:]
    model.graph.node.extend(known)
    try:
        return onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    except ERRORS:
        return onnx.GraphProto()


class Bounds:
    """Bounds of what inference would find: the rank of each value, and how many numbers are in
    those that are lists of lengths.
    """

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._ranks: dict[str, int] = {}
        self._counts: dict[str, int] = {}
        self._add_stated(graph)

    def take(self, node: onnx.NodeProto) -> bool:
        """Whether inference may see a node, those before it having been asked about."""
        if node.op_type == "Constant":
            for attribute in node.attribute:
                dims = attribute.t.dims if attribute.HasField("t") else [len(attribute.ints) or 1]
                self._state(node.output[0], dims, attribute.t.data_type in (0, *WHOLE))
            return True
        rank, count = self._rank(node), self._count(node)
        is_bounded = max(rank, 0) <= LONGEST_RANK and (count or 0) <= MOST_NUMBERS
        if node.op_type == "Slice":
            is_bounded &= all(name in self._counts for name in node.input[1:] if name)
        for attribute in node.attribute:
            for body in (attribute.g, *attribute.graphs):
                self._add_stated(body)
                taken = [self.take(inner) for inner in body.node]
                is_bounded &= all(taken)
        for name in node.output:
            self._ranks[name] = min(rank, LONGEST_RANK)
            if count is not None and is_bounded:
                self._counts[name] = count
        return is_bounded

    def _add_stated(self, graph: onnx.GraphProto) -> None:
        for value in graph.input:
            tensor = value.type.tensor_type
            dims = [dim.dim_value for dim in tensor.shape.dim]  # 0 where open: nothing to follow
            self._state(value.name, dims, tensor.elem_type in WHOLE)
        for weight in graph.initializer:
            self._state(weight.name, weight.dims, weight.data_type in WHOLE)

    def _state(self, name: str, dims: Sequence[int], is_whole: bool) -> None:
        self._ranks[name] = len(dims)
        if is_whole and len(dims) < 2 and math.prod(dims) <= MOST_NUMBERS:
            self._counts[name] = math.prod(dims)

    def _rank(self, node: onnx.NodeProto) -> int:
        ranks = [self._ranks.get(name, 0) for name in node.input if name]
        if not ranks:
            return len(next((a.ints for a in node.attribute if a.name == "shape"), ()))
        match node.op_type:
            case "Shape" | "Size":
                return 1
            case "Gather" | "GatherND" if len(ranks) > 1:
                return ranks[0] + ranks[1] - 1
            case "Unsqueeze":
                return ranks[0] + self._axes(node, 1)
            case "Squeeze":
                return ranks[0] - self._axes(node, 0)
            case op if op in LISTING:
                return self._counts.get(node.input[-1], ranks[0])
            case "OneHot" | "Loop" | "Scan" | "ConcatFromSequence":
                return max(ranks) + 1
        return max(ranks)

    def _axes(self, node: onnx.NodeProto, default: int) -> int:
        """How many axes are named, by an attribute or an input."""
        named = next((len(a.ints) for a in node.attribute if a.name == "axes"), None)
        if named is not None or len(node.input) < 2:
            return default if named is None else named
        return self._counts.get(node.input[1], default)

    def _count(self, node: onnx.NodeProto) -> int | None:
        """How many numbers are in the output where it is a list of lengths, else None."""
        given = [name for name in node.input if name]
        if node.op_type == "Shape":
            return self._ranks.get(node.input[0], LONGEST_RANK) if given else None
        if node.op_type == "Size":
            return 1
        counts = [self._counts[name] for name in given if name in self._counts]
        if not counts or given[0] not in self._counts:
            return None
        if node.op_type == "Concat":
            return sum(counts) if len(counts) == len(given) else None
        if node.op_type == "Gather":
            return self._counts.get(node.input[1]) if len(given) > 1 else None
        return max(counts) if node.op_type in KEEPING else None
