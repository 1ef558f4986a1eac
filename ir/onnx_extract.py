"""Cut a piece out of an ONNX graph, from values given to values wanted, as a model of its own."""

from __future__ import annotations

from collections.abc import Iterable

import onnx

from .onnx_file import OnnxModel
from .onnx_view import elem_type


def extract(model: OnnxModel, given: Iterable[str], wanted: Iterable[str]) -> OnnxModel:
    """The nodes that `wanted` need when `given` are at hand, with `given` as inputs.

    Inputs of the whole model that the piece still reads stay inputs. Its outputs are `wanted`, in
    order. Weights are copied, those in external data only by reference.
    """
    graph, whole = model.graph, model.proto.graph
    at_hand, outputs = frozenset(given), list(dict.fromkeys(wanted))
    needed = graph.needed_by(outputs, at_hand, lengths=True)
    read = {name for index in needed for name in graph.nodes[index].inputs} | set(outputs)
    proto = onnx.ModelProto()
    proto.ir_version = model.proto.ir_version
    proto.opset_import.extend(model.proto.opset_import)
    proto.functions.extend(model.proto.functions)
    piece = proto.graph
    piece.name = whole.name
    piece.node.extend(whole.node[index] for index in sorted(needed))
    piece.initializer.extend(t for t in whole.initializer if t.name in read)
    piece.sparse_initializer.extend(whole.sparse_initializer)
    held = {tensor.name for tensor in piece.initializer}
    piece.input.extend(v for v in whole.input if v.name in read - held - at_hand)
    for name in sorted(at_hand & read):
        code = elem_type(graph.value(name).dtype or "float32")
        piece.input.append(onnx.helper.make_tensor_value_info(name, code, None))
    piece.output.extend(onnx.ValueInfoProto(name=name) for name in outputs)
    return OnnxModel(proto, model.folder, stamps=model.stamps)
