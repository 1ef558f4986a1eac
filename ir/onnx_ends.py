"""Ends that NumPy can hold: bfloat16 is fed and fetched as float32, which holds all of it.

    before   x (bfloat16) -> [model] -> y (bfloat16)
    after    x/float32 -> Cast -> x -> [model] -> y -> Cast -> y/float32

onnxruntime's Python interface neither takes nor gives bfloat16 arrays.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx
from onnx import TensorProto, helper

from .onnx_file import OnnxModel

NARROW = TensorProto.BFLOAT16


def with_numpy_ends(model: OnnxModel) -> tuple[OnnxModel, Mapping[str, str]]:
    """The model between Casts, and the new names of the inputs and outputs that got one.

    Weights in external data stay where they are. The same model where nothing is bfloat16.
    """
    if not _speaks_bfloat16(model.proto):
        return model, {}
    graph = model.graph
    renamed = {
        name: f"{name}/float32"
        for name in (*graph.inputs, *graph.outputs)
        if graph.value(name).dtype == "bfloat16"
    }
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    for value in (*proto.graph.input, *proto.graph.output):
        if value.name in renamed:
            value.name = renamed[value.name]
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    before, after = (
        [name for name in dict.fromkeys(names) if name in renamed]
        for names in (graph.inputs, graph.outputs)
    )
    nodes = [helper.make_node("Cast", [renamed[n]], [n], to=NARROW) for n in before]
    nodes += model.proto.graph.node
    nodes += [
        helper.make_node("Cast", [n], [renamed[n]], to=TensorProto.FLOAT)
        for n in after
        if n not in before
    ]
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    return OnnxModel(proto, model.folder, stamps=model.stamps), renamed


def _speaks_bfloat16(proto: onnx.ModelProto) -> bool:
    """Whether anything of that type can arise: from weights, inputs or Casts."""
    graph = proto.graph
    return (
        any(tensor.data_type == NARROW for tensor in graph.initializer)
        or any(value.type.tensor_type.elem_type == NARROW for value in graph.input)
        or any(a.name == "to" and a.i == NARROW for node in graph.node for a in node.attribute)
    )
