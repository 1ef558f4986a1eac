"""Clean up: drop the nodes and weights that no output needs any more.

    before   Shape(x) -> Reshape's lengths,  x = MatMul(...) read by that Shape alone
    after    Gather(Shape(y), axes) with y a living value; the MatMul is gone

What only a Shape still asks for is not worth computing: its lengths are asked of living values
instead, wherever they can be traced to some. Index arithmetic is left as it is: it costs nothing.
So it is with inputs that are to be dropped (caches of a removed block).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from ..ir.graph import Graph, Kind, Node
from ..ir.lengths import Dim, Dims, Length
from ..ir.onnx_dims import Lengths
from ..ir.onnx_door import Delta, apply, insert
from ..ir.onnx_file import OnnxModel
from .base import Pass, PassError, PassResult


class Cleanup(Pass):
    """Remove everything that is not reached from the outputs, lengths not counted as reaching."""

    name: ClassVar[str] = "cleanup"

    def __init__(
        self, unwanted: Collection[str] = (), alike: Sequence[Sequence[Length]] = ()
    ) -> None:
        """`unwanted` inputs are asked for no length that others have; `alike` lengths are equal."""
        self.unwanted, self.alike = frozenset(unwanted), tuple(alike)

    def run(self, model: OnnxModel) -> PassResult:
        graph = model.graph
        delta = Delta()
        alive, rewritten = _alive(model, self.unwanted, self.alike)
        for index, dims in rewritten.items():
            _ask_elsewhere(model, delta, graph.nodes[index], dims)
        delta.removed |= {node.index for node in graph.nodes} - alive
        read = {n for index in alive - set(rewritten) for n in graph.nodes[index].inputs}
        kept = read | set(graph.outputs) | {value.name for value in model.proto.graph.input}
        delta.dropped = {t.name for t in model.proto.graph.initializer} - kept
        dead = sorted({node.index for node in graph.nodes} - alive)
        changes = [f"removed {graph.nodes[index]}" for index in dead]
        changes += [f"dropped weight {name!r}" for name in sorted(delta.dropped)]
        changes += [f"rewrote {graph.nodes[index]}" for index in sorted(rewritten)]
        return PassResult(apply(model, delta), tuple(changes))

    def ensures(self, before: OnnxModel, result: PassResult) -> None:
        graph = result.model.graph
        read = {name for node in graph.nodes for name in node.inputs} | set(graph.outputs)
        feeds = {value.name for value in result.model.proto.graph.input}
        for tensor in result.model.proto.graph.initializer:
            if tensor.name not in read and tensor.name not in feeds:
                raise PassError(f"weight {tensor.name!r} is read by nothing")


def _alive(
    model: OnnxModel, unwanted: Collection[str], alike: Sequence[Sequence[Length]]
) -> tuple[set[int], dict[int, Dims]]:
    """Nodes to keep, and for each Shape among them whose value is dead: the lengths it gives."""
    graph = model.graph
    alive = graph.needed_by(graph.outputs)
    gone = set(unwanted)
    lengths: Lengths | None = None
    while True:
        rewritten: dict[int, Dims] = {}
        zombies: set[str] = set()
        for node in (graph.nodes[index] for index in sorted(alive)):
            asked = node.inputs[0] if node.kind is Kind.SHAPE else ""
            if asked and (asked in gone or not _lives(graph, asked, alive)):
                if lengths is None:
                    lengths = Lengths(model)
                    for equal in alike:
                        lengths.equate(equal)
                dims = _traced(graph, lengths, node, alive, gone)
                if dims is None:
                    zombies.add(asked)
                else:
                    rewritten[node.index] = dims
        if not zombies:
            return alive, rewritten
        alive |= graph.needed_by(zombies)
        gone -= zombies


def _traced(
    graph: Graph, lengths: Lengths, node: Node, alive: set[int], gone: Collection[str]
) -> Dims | None:
    """The lengths that a Shape gives, if all can be had from living values made before it."""
    asked = node.inputs[0]
    dims = lengths.given_by(node)
    if dims is None or (asked not in gone and _is_arithmetic(graph, asked, alive)):
        return None

    def is_at_hand(length: Length) -> bool:
        maker = graph.producer.get(length.value)
        is_earlier = maker is None or maker.index < node.index
        return is_earlier and length.value not in gone and _lives(graph, length.value, alive)

    had = [
        dim if isinstance(dim, int) else next(filter(is_at_hand, lengths.alike(dim)), None)
        for dim in dims
    ]
    found = tuple(dim for dim in had if dim is not None)
    return found if len(found) == len(dims) else None


def _is_arithmetic(graph: Graph, name: str, alive: set[int]) -> bool:
    """Whether only whole numbers would have to be computed for the value."""
    fresh = (graph.nodes[index] for index in graph.needed_by([name]) - alive)
    return all(graph.value(made).is_known_not_float for node in fresh for made in node.outputs)


def _lives(graph: Graph, name: str, alive: set[int]) -> bool:
    maker = graph.producer.get(name)
    return maker is None or maker.index in alive


def _ask_elsewhere(model: OnnxModel, delta: Delta, node: Node, dims: Dims) -> None:
    """Let the lengths that a Shape gives be put together from those of living values."""
    runs = _runs(dims)
    nodes: list[gs.Node] = []
    parts: list[gs.Variable | gs.Constant] = []
    for number, run in enumerate(runs or [[]]):
        name = f"{node.outputs[0]}/length {number}"
        if run and isinstance(run[0], Length):
            nodes += _shape_of(run[0], len(run), name)
            parts += nodes[-1].outputs
        else:
            parts.append(gs.Constant(name, np.array(run, np.int64)))
    exit_ = gs.Variable(node.outputs[0])
    if len(parts) == len(nodes) // 2 == 1:
        nodes[-1].outputs = [exit_]
    else:
        label = f"{node.name}/lengths"
        nodes.append(gs.Node("Concat", label, {"axis": 0}, inputs=parts, outputs=[exit_]))
    insert(model, delta, node.outputs[0], nodes, {})


def _runs(dims: Sequence[Dim]) -> list[list[Dim]]:
    """Stretches of neighbouring axes of one value, and stretches of numbers."""
    runs: list[list[Dim]] = []
    for dim in dims:
        last = runs[-1][-1] if runs else None
        if isinstance(dim, int):
            goes_on = isinstance(last, int)
        else:
            goes_on = last == Length(dim.value, dim.axis - 1)
        if goes_on:
            runs[-1].append(dim)
        else:
            runs.append([dim])
    return runs


def _shape_of(first: Length, count: int, name: str) -> list[gs.Node]:
    """Nodes that give `count` lengths of a value from one axis on."""
    whole, part = gs.Variable(f"{name}/shape"), gs.Variable(name)
    axes = gs.Constant(f"{name}/axes", np.arange(first.axis, first.axis + count, dtype=np.int64))
    return [
        gs.Node("Shape", f"{name}/Shape", inputs=[gs.Variable(first.value)], outputs=[whole]),
        gs.Node("Gather", f"{name}/Gather", inputs=[whole, axes], outputs=[part]),
    ]
