"""Clean up: drop the nodes and weights that no output needs any more.

    before   Shape(x) -> Reshape's lengths,  x = MatMul(...) read by that Shape alone
    after    Shape(y) with y a living value of the same shape; the MatMul is gone

What only a Shape or Size still asks for is not worth computing: it is asked of a living value
instead, where one is proved to have the same shape.
"""

from __future__ import annotations

from typing import ClassVar

from ..ir.graph import Constant, Graph, Kind, Node, Shape
from ..ir.onnx_door import Delta, apply
from ..ir.onnx_file import OnnxModel
from .base import Pass, PassError, PassResult

SAME_SHAPE = frozenset({Kind.POINTWISE, Kind.NORM})


class Cleanup(Pass):
    """Remove everything that is not reached from the outputs, lengths not counted as reaching."""

    name: ClassVar[str] = "cleanup"

    def run(self, model: OnnxModel) -> PassResult:
        graph = model.graph
        delta = Delta()
        alive = graph.needed_by(graph.outputs)
        while zombies := _zombies(graph, alive):
            alive |= graph.needed_by(zombies)
        for index in alive:
            node = graph.nodes[index]
            if node.kind is Kind.SHAPE and not _is_alive(graph, node.inputs[0], alive):
                twin = _living_twin(graph, node.inputs[0], alive)
                delta.renamed_inputs[index] = {node.inputs[0]: twin or node.inputs[0]}
        delta.removed = {node.index for node in graph.nodes} - alive
        read = {name for index in alive for name in graph.nodes[index].inputs}
        kept = read | set(graph.outputs) | {value.name for value in model.proto.graph.input}
        delta.dropped = {t.name for t in model.proto.graph.initializer} - kept
        changes = [f"removed {graph.nodes[index]}" for index in sorted(delta.removed)]
        changes += [f"dropped weight {name!r}" for name in sorted(delta.dropped)]
        changes += [f"rewrote {graph.nodes[index]}" for index in sorted(delta.renamed_inputs)]
        return PassResult(apply(model, delta), tuple(changes))

    def ensures(self, before: OnnxModel, result: PassResult) -> None:
        graph = result.model.graph
        read = {name for node in graph.nodes for name in node.inputs} | set(graph.outputs)
        feeds = {value.name for value in result.model.proto.graph.input}
        for tensor in result.model.proto.graph.initializer:
            if tensor.name not in read and tensor.name not in feeds:
                raise PassError(f"weight {tensor.name!r} is read by nothing")


def _zombies(graph: Graph, alive: set[int]) -> set[str]:
    """Values of which only a length is asked, and no living value is proved to have the same."""
    asked = (graph.nodes[index] for index in alive)
    names = {node.inputs[0] for node in asked if node.kind is Kind.SHAPE}
    return {
        name
        for name in names
        if not _is_alive(graph, name, alive) and _living_twin(graph, name, alive) is None
    }


def _is_alive(graph: Graph, name: str, alive: set[int]) -> bool:
    maker = graph.producer.get(name)
    return maker is None or maker.index in alive


def _living_twin(graph: Graph, name: str, alive: set[int]) -> str | None:
    """A value that is computed anyway and provably has the same shape as `name`."""
    while not _is_alive(graph, name, alive):
        maker = graph.producer[name]
        source = _shape_source(graph, maker)
        if source is None:
            return None
        name = source
    return name


def _shape_source(graph: Graph, node: Node) -> str | None:
    """The one input whose shape the node's output has, if that is certain."""
    if node.kind not in SAME_SHAPE and node.op not in ("Cast", "Identity", "Softmax", "Add"):
        return None
    flowing = [name for name in node.inputs if name and name not in graph.constants]
    if len(flowing) != 1:
        return None
    dims = graph.value(flowing[0]).shape or ()
    for name in node.inputs:
        if name in graph.constants and not _broadcasts_into(graph.constants[name], dims):
            return None
    return flowing[0]


def _broadcasts_into(constant: Constant, dims: Shape) -> bool:
    """Whether an operation with the constant surely leaves the dimensions as they are."""
    own = constant.shape or ()
    if constant.elements == 1:
        return len(own) <= max(1, len(dims))
    return len(own) <= len(dims) and all(
        a in (1, b) for a, b in zip(reversed(own), reversed(dims), strict=False)
    )
