"""What the view says of operators that optimisers fuse, one at a time."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from blockfold.ir.blocks import anatomy
from blockfold.ir.cuts import find_chains
from blockfold.ir.graph import Kind, Node
from blockfold.ir.onnx_file import read
from blockfold.ir.onnx_unfuse import unfuse
from blockfold.ir.onnx_view import BLOCKED, view
from blockfold.ir.spans import Span, prove
from blockfold.tests.fused_decoder import assembled, by_hand
from blockfold.tests.networks import FLOAT, Net
from blockfold.tests.spellings import (
    BLOCKS,
    CLASSES,
    HEADS,
    MICROSOFT,
    SIZES,
    Spelling,
)


def one(op: str, inputs: int, outputs: int = 1, domain: str = MICROSOFT, **attributes: Any) -> Node:
    names = [f"i{k}" for k in range(inputs)], [f"o{k}" for k in range(outputs)]
    proto = helper.make_node(op, *names, name=op, domain=domain, **attributes)
    ends = [[helper.make_tensor_value_info(name, FLOAT, None) for name in side] for side in names]
    graph = helper.make_graph([proto], "one", ends[0], ends[1])
    return view(helper.make_model(graph)).nodes[0]


@pytest.mark.parametrize(
    ("op", "kind", "axis"),
    [
        ("SkipLayerNormalization", Kind.ADD, -1),
        ("SkipSimplifiedLayerNormalization", Kind.ADD, -1),
        ("SimplifiedLayerNormalization", Kind.NORM, -1),
        ("BiasGelu", Kind.POINTWISE, -1),
        ("FastGelu", Kind.POINTWISE, None),
        ("QuickGelu", Kind.POINTWISE, None),
        ("QLinearAdd", Kind.ADD, None),
        ("FusedMatMul", Kind.OTHER, -1),
        ("FusedGemm", Kind.OTHER, -1),
        ("MatMulNBits", Kind.OTHER, -1),
        ("GroupQueryAttention", Kind.OTHER, -1),
        ("FusedConv", Kind.OTHER, 1),
        ("NhwcFusedConv", Kind.OTHER, -1),
        ("NhwcMaxPool", Kind.OTHER, -1),
        ("BiasSplitGelu", Kind.OTHER, -1),
        ("RotaryEmbedding", Kind.OTHER, None),
        ("NotAnOperatorAnyoneKnows", Kind.OTHER, None),
    ],
)
def test_kinds_of_fused_operators(op: str, kind: Kind, axis: int | None) -> None:
    node = one(op, 5)
    assert (node.op, node.kind, node.channel_axis) == (op, kind, axis)


@pytest.mark.parametrize(
    ("op", "last", "axis"),
    [
        ("GroupNorm", None, -1),
        ("GroupNorm", 0, 1),
        ("SkipGroupNorm", 1, -1),
        ("QLinearConv", None, 1),
        ("QLinearConv", 1, -1),
        ("QLinearGlobalAveragePool", 0, 1),
        ("FastGelu", 1, None),
    ],
)
def test_an_attribute_may_move_the_channels(op: str, last: int | None, axis: int | None) -> None:
    attributes: dict[str, Any] = {} if last is None else {"channels_last": last}
    assert one(op, 3, **attributes).channel_axis == axis


@pytest.mark.parametrize("op", ["Relu", "Add", "Range", "Shape", "Gather", "BiasGelu", "Cast"])
@pytest.mark.parametrize("domain", ["my.operators", "com.microsoft.nchwc", "pkg.torch.aten"])
def test_what_another_domain_means_by_a_name_is_not_known(op: str, domain: str) -> None:
    node = one(op, 2, domain=domain, to=TensorProto.INT64)
    assert (node.op, node.kind, node.channel_axis) == (f"{domain}.{op}", Kind.OTHER, None)
    assert (node.derivative, node.smooth) == ((True, True), ("o0",))
    known = one(op, 2, domain="ai.onnx", to=TensorProto.INT64)
    assert known.op == op
    assert known.kind is not Kind.OTHER or op == "Range"


def test_a_fused_embedding_is_a_source_and_its_mask_flows_beside_the_stream() -> None:
    """Every attention reads the mask's index, made by the node that makes the embedding."""
    node = one("EmbedLayerNormalization", 9, 3)
    assert node.inputs[:3] == ("i2", "i0", "i1")
    assert node.derivative == (True, False, False, True, True, False, False, False, False)
    assert node.smooth == ("o0", "o2")
    d, net = 8, Net(2, gain=1.0)
    tables = [net.weight(30, d), net.weight(16, d)]
    inputs = ["ids", "", *tables, "", net.bias(d), net.bias(d), "mask"]
    index = {"domain": MICROSOFT}
    normed = net.node("EmbedLayerNormalization", *inputs, out="embedded", **index)
    net.nodes[-1].output.append("masked")
    for i in range(BLOCKS):
        net.scope = f"/layer.{i}"
        merged = (net.weight(d, 3 * d), net.bias(3 * d), "masked")
        mixed = net.node("Attention", normed, *merged, num_heads=HEADS, **index)
        branch = net.node("MatMul", mixed, net.weight(d, d))
        rows = [net.bias(d) for _ in range(3)]
        normed = net.node("SkipLayerNormalization", branch, normed, *rows, out=f"a{i}", **index)
        branch = net.node("MatMul", normed, net.weight(d, 2 * d))
        wide = net.node("BiasGelu", branch, net.bias(2 * d), **index)
        branch = net.node("MatMul", wide, net.weight(2 * d, d))
        rows = [net.bias(d) for _ in range(3)]
        normed = net.node("SkipLayerNormalization", branch, normed, *rows, out=f"h{i}", **index)
    net.scope = "/head"
    first = net.node("Gather", normed, net.constant(np.array(0)), axis=1)
    net.node("Gemm", first, net.weight(d, CLASSES), net.bias(CLASSES), out="logits")
    dims = ("batch", "seq")
    model = assembled(net, {"ids": dims, "mask": dims}, kind=TensorProto.INT32)
    rng = np.random.default_rng(0)
    batches = [
        {"ids": rng.integers(0, 30, size).astype(np.int32), "mask": np.ones(size, np.int32)}
        for size in SIZES
    ]
    raw = read(model)
    (chain,) = find_chains(raw.graph)
    stream = anatomy(raw.graph, chain)
    assert (chain.source, [b.name for b in stream.blocks]) == (
        "embedded",
        [f"layer.{i}" for i in range(BLOCKS)],
    )
    fused = prove(raw.graph, stream, stream.blocks[1].start, stream.blocks[1].stop)
    assert isinstance(fused, Span)  # the sum is recognised inside the fused norm
    assert (fused.entry, fused.exit, fused.side_inputs) == ("h0", "h1", ("masked",))
    spelling = Spelling(model, batches)
    span = spelling.span(1)
    assert (span.entry, span.exit, span.side_inputs) == ("h0", "h1/sum", ("masked",))
    inside = replace(span, exit="h1")
    here = spelling.replaced(inside, 3)
    spelling.model = raw
    there = spelling.replaced(fused, 3)
    for a, b in zip(here, there, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)


# Types and shapes behind operators that ONNX does not know.


@pytest.mark.parametrize(
    ("op", "like", "inputs", "outputs", "has_shape"),
    [
        ("SkipLayerNormalization", 0, 5, (0, 3), True),
        ("SkipSimplifiedLayerNormalization", 0, 4, (0, 3), True),
        ("SimplifiedLayerNormalization", 0, 2, (0,), True),
        ("BiasGelu", 0, 2, (0,), True),
        ("FastGelu", 0, 2, (0,), True),
        ("QuickGelu", 0, 1, (0,), True),
        ("FusedMatMul", 0, 2, (0,), False),
        ("MatMulNBits", 0, 4, (0,), False),
        ("MatMulIntegerToFloat", 2, 7, (0,), False),
        ("MultiHeadAttention", 0, 3, (0, 1, 2), False),
        ("GroupQueryAttention", 0, 7, (0, 1, 2), False),
        ("QAttention", 3, 9, (0,), False),
        ("NhwcFusedConv", 0, 3, (0,), False),
    ],
)
@pytest.mark.parametrize("kind", [TensorProto.FLOAT16, TensorProto.BFLOAT16])
def test_types_are_known_behind_fused_operators(
    op: str, like: int, inputs: int, outputs: tuple[int, ...], has_shape: bool, kind: int
) -> None:
    """A map in the wrong dtype is no map: the stream of a half-precision file is half precision."""
    domain = "" if op == "SimplifiedLayerNormalization" else MICROSOFT
    names = [f"i{k}" for k in range(inputs)]
    made = [f"o{k}" if k in outputs else "" for k in range(max(outputs) + 1)]
    fused = helper.make_node(op, names, made, domain=domain)
    after = [helper.make_node("Relu", [f"o{k}"], [f"r{k}"]) for k in outputs]
    kinds = [kind if k == like else TensorProto.INT8 for k in range(inputs)]
    if has_shape:
        kinds = [kind] * inputs
    shapes = [("b", 3, 8), ("b", 3, 8) if op.startswith("Skip") else (8,), *[(8,)] * inputs]
    ends = [
        helper.make_tensor_value_info(n, k, s)
        for n, k, s in zip(names, kinds, shapes, strict=False)
    ]
    last = [helper.make_tensor_value_info(f"r{k}", TensorProto.UNDEFINED, None) for k in outputs]
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(MICROSOFT, 1)]
    graph = helper.make_graph([fused, *after], "typed", ends, last)
    found = view(helper.make_model(graph, opset_imports=opsets))
    dtype = "float16" if kind == TensorProto.FLOAT16 else "bfloat16"
    for k in outputs:
        for name in (f"o{k}", f"r{k}"):
            assert found.value(name).dtype == dtype
            assert found.value(name).shape == (("b", 3, 8) if has_shape else None)


def test_a_span_of_a_half_precision_file_is_half_precision() -> None:
    model = by_hand("runtime")
    for value in [*model.graph.input, *model.graph.output]:
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if array.dtype == np.float32:
            tensor.CopyFrom(numpy_helper.from_array(array.astype(np.float16), tensor.name))
    graph = unfuse(read(model)).graph
    stream = anatomy(graph, find_chains(graph)[0])
    spans = [prove(graph, stream, block.start, block.stop) for block in stream.blocks]
    assert [span.dtype for span in spans if isinstance(span, Span)] == ["float16"] * BLOCKS


def test_blocks_of_channels_end_where_they_are_put_in_order() -> None:
    """Standard operators in between keep the blocked layout; only a ReorderOutput undoes it."""
    blocked = {"domain": "com.microsoft.nchwc"}
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], **blocked),
        helper.make_node("Add", ["a", "a"], ["b"]),
        helper.make_node("Shape", ["b"], ["dims"]),
        helper.make_node("ReorderOutput", ["b"], ["y"], channels=8, **blocked),
        helper.make_node("Relu", ["y"], ["z"]),
    ]
    ends = [helper.make_tensor_value_info(name, FLOAT, ("n", 8, 4, 4)) for name in "xwz"]
    graph = view(helper.make_model(helper.make_graph(nodes, "blocked", ends[:2], ends[2:])))
    dtypes = {name: graph.value(name).dtype for name in ("x", "a", "b", "dims", "y", "z")}
    assert dtypes == {
        "x": "float32",
        "a": BLOCKED,
        "b": BLOCKED,
        "dims": "int64",
        "y": "float32",
        "z": "float32",
    }
