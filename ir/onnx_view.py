"""Reading an ONNX graph into the dataflow view, by way of onnx-graphsurgeon.

Weights are never loaded here: graphsurgeon's tensors are lazy, and only names, types and
dimensions are asked of them.
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Iterator, Mapping
from functools import cached_property

import onnx
import onnx_graphsurgeon as gs

from .graph import Constant, Graph, Kind, Node, Shape, Value
from .onnx_inference import infer_shapes
from .onnx_ops import (
    BLOCKED_DOMAIN,
    CHANNEL_AXIS,
    DATA_INPUTS,
    DOMAINS,
    INTEGER_TYPES,
    KINDS,
    LOOKUP_INPUTS,
    NO_DERIVATIVE,
    SHAPES,
    SMOOTH_OUTPUTS,
    STAND_INS,
)

BITS_BELOW_A_BYTE = {"INT4": 4, "UINT4": 4, "FLOAT4E2M1": 4, "INT2": 2, "UINT2": 2}
SCOPES_KEY = "pkg.torch.onnx.name_scopes"
BLOCKED = "blocks of channels (NCHWc)"
"""The dtype of feature maps in onnxruntime's own layout, which no standard operator can read."""

ANY_SHAPE = "blockfold/any shape"
"""An input of the graph on which types are inferred: a shape about which nothing is known."""


def view(model: onnx.ModelProto) -> Graph:
    """The dataflow view of the model's main graph; functions and bodies stay opaque nodes."""
    surgeon = gs.import_onnx(model)
    constants = {tensor.name: _constant(tensor) for tensor in model.graph.initializer}
    nodes = []
    for index, (node, proto) in enumerate(zip(surgeon.nodes, model.graph.node, strict=True)):
        nodes.append(_node(index, node, proto))
        constants.update(_literal(proto))
    return Graph(
        nodes=tuple(nodes),
        values=_Values(model, constants),
        inputs=tuple(value.name for value in inputs_of(model)),
        outputs=tuple(value.name for value in model.graph.output),
        constants=constants,
    )


def inputs_of(model: onnx.ModelProto) -> tuple[Value, ...]:
    """What must be fed, as the file states it: weights among the inputs are not."""
    weights = {tensor.name for tensor in model.graph.initializer}
    return tuple(_value(info) for info in model.graph.input if info.name not in weights)


def _node(index: int, node: gs.Node, proto: onnx.NodeProto) -> Node:
    op = _op(proto)
    outputs = tuple(proto.output)
    if op in NO_DERIVATIVE or (op == "Cast" and node.attrs.get("to") in INTEGER_TYPES):
        smooth: tuple[str, ...] = ()
    else:
        carrying = SMOOTH_OUTPUTS.get(op, range(len(outputs)))
        smooth = tuple(name for i, name in enumerate(outputs) if name and i in carrying)
    count = len(proto.input)
    first = [i for i in LOOKUP_INPUTS.get(op, ()) if i < count]
    order = [*first, *(i for i in range(count) if i not in first)]
    data = DATA_INPUTS.get(op, range(count))
    outer = sorted(captured(proto))
    inputs = (*(proto.input[i] for i in order), *outer)
    passes = (*(i in data for i in order), *(True for _ in outer))
    return Node(
        index=index,
        name=proto.name,
        op=op,
        kind=KINDS.get(op, Kind.OTHER),
        inputs=inputs,
        outputs=outputs,
        derivative=tuple(
            bool(smooth) and bool(name) and passed
            for name, passed in zip(inputs, passes, strict=True)
        ),
        smooth=smooth,
        channel_axis=_channel_axis(op, node),
        permutation=_permutation(op, node),
        scope=_scope(proto),
    )


def _op(proto: onnx.NodeProto) -> str:
    """The operator's name, with its domain where that is none the tables speak of."""
    return proto.op_type if proto.domain in DOMAINS else f"{proto.domain}.{proto.op_type}"


def _channel_axis(op: str, node: gs.Node) -> int | None:
    """The operator's own axis of channels; some say by an attribute where they have them."""
    axis = CHANNEL_AXIS.get(op)
    if axis is not None and "channels_last" in node.attrs:
        return -1 if node.attrs["channels_last"] else 1
    return axis


def _permutation(op: str, node: gs.Node) -> tuple[int, ...] | None:
    """How a Transpose that says so orders the axes."""
    order = tuple(node.attrs.get("perm", ())) if op == "Transpose" else ()
    return order if order and sorted(order) == list(range(len(order))) else None


def captured(proto: onnx.NodeProto) -> set[str]:
    """Outer values that the bodies of an If, Loop or Scan read."""
    found: set[str] = set()
    for attribute in proto.attribute:
        for body in [attribute.g, *attribute.graphs]:
            own = {v.name for v in body.input} | {t.name for t in body.initializer}
            for inner in body.node:
                reads = {name for name in inner.input if name} | captured(inner)
                found |= reads - own
                own.update(inner.output)
            found |= {v.name for v in body.output} - own
    return found


def _scope(proto: onnx.NodeProto) -> tuple[str, ...]:
    """Module path the exporter left, outermost first: dynamo's metadata or TorchScript's name."""
    for entry in proto.metadata_props:
        if entry.key == SCOPES_KEY:
            try:
                path = ast.literal_eval(entry.value)
            except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
                return ()  # the last two: brackets within brackets
            return tuple(str(part) for part in path[:-1] if part) if isinstance(path, list) else ()
    if proto.name.startswith("/"):
        return tuple(part for part in re.split(r"/+", proto.name)[1:-1] if part)
    return ()


class _Values(Mapping[str, Value]):
    """Types and shapes the file states; where it is silent, what ONNX's own inference finds.

    Inference takes longer than all other reading, so it runs when it is first needed.
    """

    def __init__(self, model: onnx.ModelProto, constants: Mapping[str, Constant]) -> None:
        graph = model.graph
        infos = (*graph.value_info, *graph.input, *graph.output)
        self._stated = {info.name: _value(info) for info in infos} | dict(constants)
        self._blocked = _blocked(graph)
        self._model = model

    @cached_property
    def _inferred(self) -> dict[str, Value]:
        # what is not found is a missing hint, no fact: observed shapes decide where there is data
        full = infer_shapes(_without_weights(self._model))
        return {info.name: _value(info) for info in (*full.value_info, *full.output)}

    def __getitem__(self, name: str) -> Value:
        found = self._stated.get(name)
        if found is None or found.shape is None or found.dtype is None:
            found = self._inferred.get(name) or found
        if name in self._blocked:
            return Value(name, BLOCKED, found.shape if found else None)
        if found is None:
            raise KeyError(name)
        return found

    def __iter__(self) -> Iterator[str]:
        return iter({**self._inferred, **self._stated})

    def __len__(self) -> int:
        return len({**self._inferred, **self._stated})


def _without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with the bytes of large weights left out, so that inference copies little."""
    light = onnx.ModelProto()
    light.ir_version = model.ir_version
    light.opset_import.extend(model.opset_import)
    light.graph.name = "light"  # its own may be no text, and is of no account
    versions = {o.domain.replace("ai.onnx", ""): o.version for o in model.opset_import}
    for node in model.graph.node:
        light.graph.node.extend(_stand_ins(node, versions))
    light.graph.input.append(
        onnx.helper.make_tensor_value_info(ANY_SHAPE, onnx.TensorProto.INT64, [None])
    )
    light.graph.input.extend(model.graph.input)
    light.graph.output.extend(model.graph.output)
    light.graph.value_info.extend(model.graph.value_info)
    known = {value.name for value in model.graph.input}
    for tensor in model.graph.initializer:
        if math.prod(tensor.dims) <= 1024 and tensor.data_location != onnx.TensorProto.EXTERNAL:
            light.graph.initializer.append(tensor)
        elif tensor.name not in known:
            info = onnx.helper.make_tensor_value_info(
                tensor.name, tensor.data_type, list(tensor.dims)
            )
            light.graph.input.append(info)
    return light


def _stand_ins(node: onnx.NodeProto, versions: Mapping[str, int]) -> list[onnx.NodeProto]:
    """The node itself, or standard ones that give the same types where ONNX does not know it."""
    known = STAND_INS.get(_op(node))
    domain = "" if node.domain == "ai.onnx" else node.domain
    if known is None or onnx.defs.has(node.op_type, versions.get(domain, 1), domain):
        return [node]
    kept = onnx.defs.get_schema(known.op).attributes
    attributes = [a for a in node.attribute if a.name in kept]
    inputs = [node.input[i] for i in known.inputs if i < len(node.input)]
    if known.op == "Expand":
        inputs.append(ANY_SHAPE)
    made = [node.output[i] for i in known.outputs if i < len(node.output) and node.output[i]]
    return [
        onnx.NodeProto(op_type=known.op, input=inputs, output=[name], attribute=attributes)
        for name in made
    ]


def _blocked(graph: onnx.GraphProto) -> set[str]:
    """Values that onnxruntime keeps in blocks of channels."""
    found: set[str] = set()
    for node in graph.node:
        if node.domain == BLOCKED_DOMAIN:
            if node.op_type != "ReorderOutput":
                found.update(node.output)
        elif node.op_type not in SHAPES and not found.isdisjoint(node.input):
            found.update(node.output)
    return found


def _value(info: onnx.ValueInfoProto) -> Value:
    if not info.type.HasField("tensor_type"):
        return Value(info.name)
    tensor = info.type.tensor_type
    shape: Shape | None = None
    if tensor.HasField("shape"):
        shape = tuple(
            dim.dim_value if dim.HasField("dim_value") else (dim.dim_param or None)
            for dim in tensor.shape.dim
        )
    return Value(info.name, dtype_name(tensor.elem_type), shape)


def dtype_name(elem_type: int) -> str | None:
    """NumPy's name of a TensorProto.DataType code, e.g. 1 -> "float32", 16 -> "bfloat16"."""
    if elem_type in (onnx.TensorProto.UNDEFINED, onnx.TensorProto.STRING):
        return None
    return str(onnx.helper.tensor_dtype_to_np_dtype(elem_type))


def elem_type(dtype: str) -> int:
    """The TensorProto.DataType code of a floating dtype by NumPy's name."""
    names = {"float32": "FLOAT", "float64": "DOUBLE"}
    return onnx.TensorProto.DataType.Value(names.get(dtype, dtype.upper()))


def _constant(tensor: onnx.TensorProto) -> Constant:
    elements = math.prod(tensor.dims)
    return Constant(
        name=tensor.name,
        dtype=dtype_name(tensor.data_type),
        shape=tuple(tensor.dims),
        elements=elements,
        size_bytes=tensor_bytes(tensor),
    )


def tensor_bytes(tensor: onnx.TensorProto) -> int:
    """Bytes the tensor takes in its file, external data included."""
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        for entry in tensor.external_data:
            if entry.key == "length":
                return int(entry.value)
        return stored_bytes(tensor)
    return len(tensor.raw_data) or tensor.ByteSize()


def stored_bytes(tensor: onnx.TensorProto) -> int:
    """Bytes that the tensor's elements take as raw data; types below a byte are packed."""
    elements = math.prod(tensor.dims)
    bits = BITS_BELOW_A_BYTE.get(onnx.TensorProto.DataType.Name(tensor.data_type))
    if bits is None:
        bits = 8 * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    return -(-elements * bits // 8)


def _literal(proto: onnx.NodeProto) -> dict[str, Constant]:
    """A Constant node's output as a constant; other nodes give none."""
    if proto.op_type != "Constant":
        return {}
    name = proto.output[0]
    for attribute in proto.attribute:
        if attribute.name == "value":
            tensor = onnx.TensorProto()
            tensor.CopyFrom(attribute.t)
            tensor.name = name
            return {name: _constant(tensor)}
    count = max((len(a.floats) + len(a.ints) + len(a.strings) for a in proto.attribute), default=0)
    return {name: Constant(name, elements=max(count, 1), size_bytes=proto.ByteSize())}
