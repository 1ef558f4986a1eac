"""The one door through which an ONNX graph is changed.

The original ModelProto is kept and a DELTA is applied to a copy: nodes removed, added and rewired,
initializers added and dropped, inputs and outputs dropped, metadata set. What the delta does not
name is copied as it is, so nothing that a reader might not understand (annotations, functions, odd
weight types) can be lost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, MutableSequence, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import onnx
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.exporters.onnx_exporter import OnnxExporter

from .onnx_file import OnnxModel

Item = TypeVar("Item")

FIRST_IR_WITH_NODE_METADATA = 10


@dataclass
class Delta:
    """Changes to make, by node index of the original graph. An empty Delta changes no byte."""

    removed: set[int] = field(default_factory=set)
    inserted: dict[int, list[onnx.NodeProto]] = field(default_factory=dict)
    renamed_inputs: dict[int, dict[str, str]] = field(default_factory=dict)
    renamed_outputs: dict[int, dict[str, str]] = field(default_factory=dict)
    added: list[onnx.TensorProto] = field(default_factory=list)
    dropped: set[str] = field(default_factory=set)
    dropped_inputs: set[str] = field(default_factory=set)
    dropped_outputs: set[str] = field(default_factory=set)
    metadata: dict[str, str] = field(default_factory=dict)

    @property
    def is_empty(self) -> bool:
        nodes = (self.removed, self.inserted, self.renamed_inputs, self.renamed_outputs)
        others = (self.added, self.dropped, self.dropped_inputs, self.dropped_outputs)
        return not any((*nodes, *others, self.metadata))


def insert(
    model: OnnxModel,
    delta: Delta,
    exit_: str,
    nodes: Sequence[gs.Node],
    metadata: Mapping[str, str],
) -> None:
    """Let `nodes`, the last of which makes a value called `exit_`, take the place of its maker.

    Readers of `exit_` stay as they are, byte for byte. The old maker is removed; where it makes
    other values too, it stays and only this output is renamed.
    """
    _make_unique(model, delta, exit_, nodes)
    maker = model.graph.producer[exit_]
    if len(maker.outputs) == 1:
        delta.removed.add(maker.index)
    else:
        delta.renamed_outputs.setdefault(maker.index, {})[exit_] = f"{exit_}/replaced"
    protos = delta.inserted.setdefault(maker.index, [])
    for node in nodes:
        proto = OnnxExporter.export_node(node)
        if model.proto.ir_version >= FIRST_IR_WITH_NODE_METADATA:
            for key, value in metadata.items():
                proto.metadata_props.add(key=key, value=value)
        protos.append(proto)
        for tensor in node.inputs:
            if isinstance(tensor, gs.Constant):
                delta.added.append(onnx.numpy_helper.from_array(tensor.values, tensor.name))


def _make_unique(model: OnnxModel, delta: Delta, exit_: str, nodes: Sequence[gs.Node]) -> None:
    """Number the names of new nodes and values that are taken: a model may be edited twice."""
    taken = {node.name for node in model.graph.nodes} | set(model.graph.producer)
    taken |= {tensor.name for tensor in (*model.proto.graph.initializer, *delta.added)}
    taken |= {proto.name for protos in delta.inserted.values() for proto in protos}
    tensors = {id(t): t for node in nodes for t in (*node.inputs, *node.outputs)}
    made = {id(t) for node in nodes for t in node.outputs}
    for item in (*nodes, *tensors.values()):
        is_new = isinstance(item, gs.Node | gs.Constant) or (
            id(item) in made and item.name != exit_
        )
        if is_new:
            name, number = item.name, 2
            while item.name in taken:
                item.name = f"{name} {number}"
                number += 1
            taken.add(item.name)


def rewire(model: OnnxModel, delta: Delta, old: str, new: str) -> None:
    """Let every node of the main graph that reads `old` read `new`.

    The caller makes sure that `old` is no graph output and that no body captures it.
    """
    for node in model.graph.consumers.get(old, ()):
        delta.renamed_inputs.setdefault(node.index, {})[old] = new


def is_captured(model: OnnxModel, name: str) -> bool:
    """Whether the body of an If, Loop or Scan reads the value."""
    return any(
        name in node.inputs[len(model.proto.graph.node[node.index].input) :]
        for node in model.graph.consumers.get(name, ())
    )


def apply(model: OnnxModel, delta: Delta) -> OnnxModel:
    """The model with the delta made. The original is not touched."""
    if delta.is_empty:
        return model
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    graph = proto.graph
    del graph.node[:]
    graph.node.extend(_nodes(model.proto.graph.node, delta))
    _keep(graph.input, lambda value: value.name not in delta.dropped_inputs)
    _keep(graph.output, lambda value: value.name not in delta.dropped_outputs)
    _keep(graph.initializer, lambda tensor: tensor.name not in delta.dropped)
    graph.initializer.extend(delta.added)
    known = _names(graph)
    _keep(graph.value_info, lambda info: info.name in known)
    _keep(graph.quantization_annotation, lambda note: note.tensor_name in known)
    _keep(proto.metadata_props, lambda entry: entry.key not in delta.metadata)
    for key, value in delta.metadata.items():
        proto.metadata_props.add(key=key, value=value)
    return OnnxModel(proto, model.folder, stamps=model.stamps)


def _nodes(old: Sequence[onnx.NodeProto], delta: Delta) -> Iterable[onnx.NodeProto]:
    for index, node in enumerate(old):
        yield from delta.inserted.get(index, ())
        if index in delta.removed:
            continue
        inputs, outputs = delta.renamed_inputs.get(index), delta.renamed_outputs.get(index)
        if inputs or outputs:
            changed = onnx.NodeProto()
            changed.CopyFrom(node)
            changed.input[:] = [(inputs or {}).get(name, name) for name in node.input]
            changed.output[:] = [(outputs or {}).get(name, name) for name in node.output]
            yield changed
        else:
            yield node


def _names(graph: onnx.GraphProto) -> set[str]:
    """Every value the graph still speaks of."""
    names = {tensor.name for tensor in graph.initializer} | {value.name for value in graph.input}
    for node in graph.node:
        names.update(node.output)
    return names


def _keep(items: MutableSequence[Item], wanted: Callable[[Item], bool]) -> None:
    for index in reversed(range(len(items))):
        if not wanted(items[index]):
            del items[index]
