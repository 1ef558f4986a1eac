"""Operators that optimisers fuse: what the view says of them, and sums that hide inside."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from blockfold.ir.blocks import anatomy
from blockfold.ir.cuts import find_chains
from blockfold.ir.graph import Kind, Node
from blockfold.ir.onnx_file import OnnxModel, read
from blockfold.ir.onnx_unfuse import fuse, unfuse
from blockfold.ir.onnx_view import BLOCKED, view
from blockfold.ir.spans import Span, prove
from blockfold.passes.pipeline import ALL_PASSES, rewrite
from blockfold.passes.replacement import Replacement
from blockfold.tests.networks import FLOAT, Arrays, Net
from blockfold.tests.spellings import (
    BLOCKS,
    CLASSES,
    HEADS,
    MICROSOFT,
    OPTIMISERS,
    SIZES,
    Spelling,
    any_map,
    copy,
    exported,
    fused_for,
    worst_difference,
)

TOLERANCE = 1e-5


# The same decoder written by hand with the operators of three generations.


def by_hand(spelling: str, d: int = 8) -> onnx.ModelProto:
    """x (batch, seq, d) -> causal pre-norm blocks -> logits, with the same weights each time.

    "plain" spells everything out, "standard" has the operators of opset 23, "runtime" those that
    onnxruntime fuses: SkipLayerNormalization gives the stream as its fourth output.
    """
    net = Net(3, gain=1.0)
    head_dims = net.constant(np.array([0, 0, HEADS, d // HEADS]))

    def number(value: float) -> str:
        return net.constant(np.array(value, np.float32))

    def gain_and_shift() -> tuple[str, str]:
        return net.constant((net.rng.random(d) + 0.5).astype(np.float32)), net.bias(d)

    def norm(x: str, gain: str, shift: str) -> str:
        if spelling != "plain":
            return net.node("LayerNormalization", x, gain, shift, axis=-1, epsilon=1e-5)
        centred = net.node("Sub", x, net.node("ReduceMean", x, axes=[-1]))
        variance = net.node("ReduceMean", net.node("Mul", centred, centred), axes=[-1])
        spread = net.node("Sqrt", net.node("Add", variance, number(1e-5)))
        return net.node("Add", net.node("Mul", net.node("Div", centred, spread), gain), shift)

    def attention(query: str, key: str, value: str) -> str:
        inputs = (query, key, value)
        if spelling == "standard":
            return net.node(
                "Attention", *inputs, is_causal=1, q_num_heads=HEADS, kv_num_heads=HEADS
            )
        if spelling == "runtime":
            return net.node(
                "MultiHeadAttention", *inputs, num_heads=HEADS, unidirectional=1, domain=MICROSOFT
            )
        split = [net.node("Reshape", x, head_dims) for x in inputs]
        q, k, v = (net.node("Transpose", x, perm=[0, 2, 1, 3]) for x in split)
        products = net.node("MatMul", q, net.node("Transpose", k, perm=[0, 1, 3, 2]))
        length = net.node("Gather", net.node("Shape", "x"), net.constant(np.array([1])))
        square = net.node("Concat", length, length, axis=0)
        never = numpy_helper.from_array(np.array([-1e9], np.float32))
        filled = net.node("ConstantOfShape", square, value=never)
        causal = net.node("Trilu", filled, net.constant(np.array(1)), upper=1)
        scores = net.node("Add", net.node("Div", products, number((d / HEADS) ** 0.5)), causal)
        mixed = net.node("MatMul", net.node("Softmax", scores, axis=-1), v)
        together = net.node("Transpose", mixed, perm=[0, 2, 1, 3])
        return net.node("Reshape", together, net.constant(np.array([0, 0, d])))

    def gelu(x: str, bias: str) -> str:
        if spelling == "runtime":
            return net.node("BiasGelu", x, bias, domain=MICROSOFT)
        x = net.node("Add", x, bias)
        if spelling == "standard":
            return net.node("Gelu", x)
        share = net.node("Add", net.node("Erf", net.node("Div", x, number(2**0.5))), number(1))
        return net.node("Mul", net.node("Mul", x, share), number(0.5))

    def add_and_norm(stream: str, branch: str, name: str) -> str:
        bias, (gain, shift) = net.bias(d), gain_and_shift()
        if spelling != "runtime":
            total = net.node("Add", stream, net.node("Add", branch, bias), out=name)
            return norm(total, gain, shift)
        made = net.node(
            "SkipLayerNormalization", stream, branch, gain, shift, bias, domain=MICROSOFT
        )
        net.nodes[-1].output.extend(["", "", name])
        net.nodes[-1].attribute.append(helper.make_attribute("epsilon", 1e-5))
        return made

    stream, normed = "x", norm("x", *gain_and_shift())
    for i in range(BLOCKS):
        net.scope = f"/blocks.{i}"
        mixed = attention(*(net.linear(normed, d, d) for _ in range(3)))
        normed = add_and_norm(stream, net.node("MatMul", mixed, net.weight(d, d)), f"a{i}")
        wide = gelu(net.node("MatMul", normed, net.weight(d, 2 * d)), net.bias(2 * d))
        normed = add_and_norm(f"a{i}", net.node("MatMul", wide, net.weight(2 * d, d)), f"h{i}")
        stream = f"h{i}"
    net.scope = "/head"
    first = net.node("Gather", normed, net.constant(np.array(0)), axis=1)
    net.node("Gemm", first, net.weight(d, CLASSES), net.bias(CLASSES), out="logits")
    return assembled(net, {"x": ("batch", "seq", d)}, opset=23 if spelling == "standard" else 17)


def assembled(
    net: Net, inputs: Mapping[str, tuple[Any, ...]], *, opset: int = 17, kind: int = FLOAT
) -> onnx.ModelProto:
    """A model of the net's nodes, onnxruntime's operators among them, with output `logits`."""
    ends = [helper.make_tensor_value_info(name, kind, dims) for name, dims in inputs.items()]
    logits = helper.make_tensor_value_info("logits", FLOAT, ("batch", CLASSES))
    graph = helper.make_graph(net.nodes, "by hand", ends, [logits], net.initializers)
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid(MICROSOFT, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def two_batches(seed: int = 5) -> list[Arrays]:
    rng = np.random.default_rng(seed)
    return [{"x": rng.standard_normal((b, n, 8)).astype(np.float32)} for b, n in SIZES]


@pytest.mark.parametrize("spelling", ["standard", "runtime"])
def test_operators_of_three_generations_are_one_network(spelling: str) -> None:
    plain, other = (Spelling(by_hand(name), two_batches()) for name in ("plain", spelling))
    assert plain.blocks == other.blocks == BLOCKS
    assert worst_difference(plain, other) <= TOLERANCE
    span, twin = other.span(1), plain.span(1)
    assert (span.entry, span.exit) == (twin.entry, twin.exit) == ("h0", "h1")


@pytest.mark.parametrize("optimiser", OPTIMISERS)
def test_optimising_fused_operators_changes_nothing(optimiser: str) -> None:
    plain = Spelling(by_hand("plain"), two_batches())
    other = Spelling(OPTIMISERS[optimiser](by_hand("runtime")), two_batches())
    assert other.blocks == BLOCKS
    assert worst_difference(plain, other) <= TOLERANCE


# Fused residual sums.


def test_a_fused_sum_hides_the_stream_until_it_is_taken_apart() -> None:
    """The stream leaves by the fourth output, its norm by the first: no one value carries both."""
    fused = read(by_hand("runtime"))
    (chain,) = find_chains(fused.graph)
    assert len(anatomy(fused.graph, chain).blocks) < BLOCKS
    (chain,) = find_chains(unfuse(fused).graph)
    inner = [cut.first for cut in chain.cuts[1:-2]]
    assert inner == ["a0", "h0", "a1", "h1", "a2", "h2"]


def test_taking_apart_and_putting_together_changes_no_node() -> None:
    fused = read(by_hand("runtime"))
    apart = unfuse(fused)
    assert not {"SkipLayerNormalization"} & {node.op for node in apart.graph.nodes}
    assert fuse(fused, apart).proto == fused.proto
    plain = read(by_hand("plain"))
    assert unfuse(plain) is plain
    assert fuse(plain, plain) is plain


def test_only_the_operators_at_a_replacement_stay_apart() -> None:
    """At the entry the norm is gone, at the exit the sum is a map now; one lay inside."""
    spelling = Spelling(by_hand("runtime"), two_batches())
    span = spelling.span(1)
    solution = any_map(np.eye(8), np.ones(8))
    cut = rewrite(spelling.model, [Replacement(span, solution, 0.0)], {}, ALL_PASSES).model
    whole = fuse(read(by_hand("runtime")), cut)
    ops = [node.op for node in whole.graph.nodes]
    assert ops.count("SkipLayerNormalization") == 2 * BLOCKS - 3
    assert ops.count("LayerNormalization") == 1 + 1
    assert (ops.count("MatMul"), ops.count("MultiHeadAttention")) == (6 * (BLOCKS - 1) + 1, 2)
    for a, b in zip(spelling.run(cut), spelling.run(whole), strict=True):
        np.testing.assert_allclose(a["logits"], b["logits"], rtol=0, atol=1e-5)


def test_a_sum_that_is_newly_read_becomes_an_output() -> None:
    fused = read(fused_for("gpt2")(exported("post-norm")))
    apart = unfuse(fused)
    (total,) = [
        n.outputs[0] for n in apart.graph.nodes if n.name.endswith("SkipLayerNorm_AddBias_0_sum")
    ]
    proto = copy(apart.proto)
    proto.graph.output.append(helper.make_tensor_value_info(total, FLOAT, None))
    (whole,) = [
        node
        for node in fuse(fused, OnnxModel(proto, apart.folder)).proto.graph.node
        if total in node.output
    ]
    assert whole.op_type == "SkipLayerNormalization"
    assert list(whole.output[1:]) == ["", "", total]


def _nodes(model: onnx.ModelProto, role: str) -> list[onnx.NodeProto]:
    """The parts of that role, in the order of the graph."""
    return [node for node in model.graph.node if node.name.endswith(f"_{role}")]


def _read_the_biased_branch(model: onnx.ModelProto) -> None:
    (biased,) = _nodes(model, "bias")[0].output
    model.graph.output.append(helper.make_tensor_value_info(biased, FLOAT, None))


def _norm_another_value(model: onnx.ModelProto) -> None:
    _nodes(model, "norm")[0].input[0] = "x"


def _leave_the_bias_out(model: onnx.ModelProto) -> None:
    total, biased = _nodes(model, "sum")[0], _nodes(model, "bias")[0]
    total.input[1] = biased.input[0]


def _put_another_sum(model: onnx.ModelProto) -> None:
    _nodes(model, "sum")[0].name = "blockfold/add"


@pytest.mark.parametrize(
    "edit", [_read_the_biased_branch, _norm_another_value, _leave_the_bias_out, _put_another_sum]
)
def test_parts_that_are_not_as_they_were_stay_apart(
    edit: Callable[[onnx.ModelProto], None],
) -> None:
    fused = read(by_hand("runtime"))
    proto = copy(unfuse(fused).proto)
    edit(proto)
    edited = OnnxModel(proto, Path())
    whole = fuse(fused, edited)
    count = [node.op for node in whole.graph.nodes].count("SkipLayerNormalization")
    assert count == 2 * BLOCKS - 1
    spelling = Spelling(by_hand("plain"), two_batches())
    for a, b in zip(spelling.run(edited), spelling.run(whole), strict=True):
        np.testing.assert_allclose(a["logits"], b["logits"], rtol=0, atol=1e-5)


def test_parts_bear_names_that_no_other_node_has() -> None:
    """onnxruntime loads no model in which two nodes have one name."""
    model = by_hand("runtime")
    (skip,) = [node for node in model.graph.node if "a0" in node.output]
    model.graph.node[0].name, model.graph.node[1].name = f"{skip.name}_sum", f"{skip.name}_norm"
    spelling = Spelling(model, two_batches())
    names = [node.name for node in spelling.model.graph.nodes]
    assert len(set(names)) == len(names)
    assert f"{skip.name}_sum_" in names
    assert fuse(read(model), spelling.model).proto == model


@pytest.mark.parametrize("activation", ["Relu", ""])
def test_a_sum_inside_a_convolution_is_found(activation: str) -> None:
    """FusedConv adds its fourth input: the residual sum of onnxruntime's CUDA provider."""
    net, stream = Net(1), "x"
    for i in range(BLOCKS):
        net.scope = f"/blocks.{i}"
        branch = net.node("Relu", net.conv(stream, 4, 4))
        inputs = (branch, net.weight(4, 4, 3, 3), net.bias(4), stream)
        stream = net.node("FusedConv", *inputs, out=f"h{i}", domain=MICROSOFT, pads=[1] * 4)
        if activation:
            net.nodes[-1].attribute.append(helper.make_attribute("activation", activation))
    net.head(stream, 4, axes=(2, 3))
    rng = np.random.default_rng(0)
    batches = [{"x": rng.standard_normal((2, 4, 5, 5)).astype(np.float32)}]
    model = assembled(net, {"x": ("batch", 4, 5, 5)})
    spelling = Spelling(model, batches)
    assert spelling.blocks == BLOCKS
    span = spelling.span(1)
    assert span.exit == ("h1/sum" if activation else "h1")
    raw = read(model)
    assert fuse(raw, spelling.model).proto == raw.proto
    for a, b in zip(spelling.run(raw), spelling.run(spelling.model), strict=True):
        np.testing.assert_allclose(a["logits"], b["logits"], rtol=0, atol=1e-5)
    assert raw.graph.value("h1").shape == ("batch", 4, 5, 5)


def test_other_activations_and_training_outputs_stay_fused() -> None:
    tanh = helper.make_node("FusedConv", list("xwbz"), ["y"], domain=MICROSOFT, activation="Tanh")
    mean = ["y", "mean", "deviation", "sum"]
    norm = helper.make_node("SkipLayerNormalization", list("xbg"), mean, domain=MICROSOFT)
    alone = helper.make_node("FusedConv", list("xwb"), ["y"], domain=MICROSOFT)
    for node in (tanh, norm, alone):
        ends = [helper.make_tensor_value_info(name, FLOAT, None) for name in node.input]
        made = [helper.make_tensor_value_info(name, FLOAT, None) for name in node.output]
        opsets = [helper.make_opsetid("", 17), helper.make_opsetid(MICROSOFT, 1)]
        graph = helper.make_graph([node], "one", ends, made)
        model = OnnxModel(helper.make_model(graph, opset_imports=opsets), Path())
        assert unfuse(model) is model


# What the view says of single operators.


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
