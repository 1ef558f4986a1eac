"""Residual sums that an optimiser hid inside a fused operator, made values of their own again.

    before   SkipLayerNormalization(x, branch, gamma, beta, bias) -> normed, sum
    after    Add(branch, bias) -> biased,  Add(x, biased) -> sum,  LayerNormalization(sum) -> normed

    before   FusedConv(u, W, b, x) with a Relu -> y
    after    Conv(u, W, b) -> branch,  Add(branch, x) -> sum,  Relu(sum) -> y

A stream flows through the sum. While the sum is a second output of the operator that also takes its
norm, no single value carries the stream; while it is no value at all, no map can end in front of
the norm. `unfuse` is for analysis and edits, `fuse` puts back every operator whose parts are whole.

A file that onnxruntime optimised also holds weights under names that it gives anew whenever it
optimises: with one of its own shapes in the file it cannot load an added MatMul and Add.
"""

from __future__ import annotations

import re

import onnx
from onnx import helper

from .onnx_door import Delta, apply, is_captured, rewire
from .onnx_file import OnnxModel
from .onnx_ops import SKIP_NORMS

SUM_OUTPUT = 3
"""Where a skip norm gives the sum."""

EPSILON = 1e-12
"""What skip norms add to the variance unless they say otherwise."""


RUNTIME_NAME = re.compile(r"gemm_(in|out)put_shape(_token_\d+)?")
"""Weights that onnxruntime 1.31 makes where it turns a MatMul and an Add into a Gemm."""


def unfuse(model: OnnxModel) -> OnnxModel:
    """The model with every fused residual sum taken apart; the same object where there is none.

    Weights with names that onnxruntime would give again are renamed.
    """
    delta = Delta()
    for index, parts in _taken_apart(model).items():
        delta.removed.add(index)
        delta.inserted[index] = parts
    for tensor in model.proto.graph.initializer:
        if RUNTIME_NAME.fullmatch(tensor.name) and not is_captured(model, tensor.name):
            _rename(model, delta, tensor)
    return apply(model, delta)


def _rename(model: OnnxModel, delta: Delta, tensor: onnx.TensorProto) -> None:
    renamed = onnx.TensorProto()
    renamed.CopyFrom(tensor)
    renamed.name = f"{tensor.name}/kept"
    delta.added.append(renamed)
    delta.dropped.add(tensor.name)
    rewire(model, delta, tensor.name, renamed.name)


def fuse(original: OnnxModel, model: OnnxModel) -> OnnxModel:
    """`model`, made from `unfuse(original)`, with the operators put back whose parts are whole.

    That is: all parts are there, linked as they were, and what one part makes for the next is read
    by nothing else (the sum excepted, where the operator can give it).
    """
    made = {name: i for i, node in enumerate(model.proto.graph.node) for name in node.output}
    delta = Delta()
    for index, parts in _taken_apart(original).items():
        indices = [made.get(part.output[0], -1) for part in parts]
        if -1 not in indices:
            found = [model.proto.graph.node[i] for i in indices]
            whole = _put_back(model, original.proto.graph.node[index], parts, found)
            if whole is not None:
                delta.removed.update(indices)
                delta.inserted[indices[-1]] = [whole]
    return apply(model, delta)


def _taken_apart(model: OnnxModel) -> dict[int, list[onnx.NodeProto]]:
    """The parts of every fused residual sum, by the index of its node, in order.

    They bear the name and metadata of the whole, by which blocks are named. No two nodes of a
    model may have one name.
    """
    taken = {node.name for node in model.proto.graph.node}
    found: dict[int, list[onnx.NodeProto]] = {}
    for index, node in enumerate(model.proto.graph.node):
        parts = _parts(node)
        for part in parts:
            part.name = f"{node.name or node.output[0]}_{part.name}"
            while part.name in taken:
                part.name += "_"
            taken.add(part.name)
            part.metadata_props.extend(node.metadata_props)
        if parts:
            found[index] = parts
    return found


def _parts(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """What a fused residual sum is made of, named by role; nothing for any other node."""
    if node.domain != "com.microsoft":
        return []
    if node.op_type in SKIP_NORMS:
        return _parts_of_norm(node)
    if node.op_type == "FusedConv" and len(node.input) > 3 and node.input[3]:
        return _parts_of_conv(node)
    return []


def _parts_of_norm(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    is_plain = node.op_type == "SkipLayerNormalization"
    inputs = [*node.input, *[""] * 5]
    x, branch, gamma = inputs[:3]
    beta, bias = (inputs[3], inputs[4]) if is_plain else ("", inputs[3])
    normed = node.output[0]
    given = node.output[SUM_OUTPUT] if len(node.output) > SUM_OUTPUT else ""
    if not normed or any(node.output[1:SUM_OUTPUT]):
        return []
    total = given or f"{normed}/sum"
    parts = []
    if bias:
        biased = f"{normed}/biased"
        parts.append(helper.make_node("Add", [branch, bias], [biased], "bias"))
        branch = biased
    parts.append(helper.make_node("Add", [x, branch], [total], "sum"))
    norm = helper.make_node(
        "LayerNormalization" if is_plain else "SimplifiedLayerNormalization",
        [total, gamma, beta] if beta else [total, gamma],
        [normed],
        "norm",
        axis=-1,
        epsilon=next((a.f for a in node.attribute if a.name == "epsilon"), EPSILON),
    )
    return [*parts, norm]


def _parts_of_conv(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    known = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    activation = known.get("activation", b"").decode()
    if activation not in ("", "Relu"):
        return []
    out = node.output[0]
    inputs = [name for name in node.input[:3] if name]
    conv = helper.make_node("Conv", inputs, [f"{out}/branch"], "conv")
    conv.attribute.extend(a for a in node.attribute if not a.name.startswith("activation"))
    total = f"{out}/sum" if activation else out
    add = helper.make_node("Add", [f"{out}/branch", node.input[3]], [total], "sum")
    parts = [conv, add]
    if activation:
        parts.append(helper.make_node(activation, [total], [out], "activation"))
    return parts


def _put_back(
    model: OnnxModel,
    node: onnx.NodeProto,
    parts: list[onnx.NodeProto],
    found: list[onnx.NodeProto],
) -> onnx.NodeProto | None:
    """The fused operator on what its parts now read, or None where a part is not what it was."""
    inner = {part.output[0] for part in parts[:-1]}
    renamed: dict[str, str] = {}
    for part, now in zip(parts, found, strict=True):
        if (part.op_type, part.name, len(part.input)) != (now.op_type, now.name, len(now.input)):
            return None
        for old, new in zip(part.input, now.input, strict=True):
            if (old in inner and old != new) or renamed.setdefault(old, new) != new:
                return None
    whole = onnx.NodeProto()
    whole.CopyFrom(node)
    whole.input[:] = [renamed.get(name, name) for name in node.input]
    for part in parts[:-1]:
        name = part.output[0]
        is_read = name in model.graph.outputs or len(model.graph.consumers[name]) > 1
        if is_read and node.op_type in SKIP_NORMS and name == parts[-2].output[0]:
            del whole.output[1:]
            whole.output.extend(["", "", name])
        elif is_read:
            return None
    return whole
