"""Spans: proved objects where one map can stand in, refusals with reason and node elsewhere."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest

from blockfold.ir.blocks import Anatomy, anatomy
from blockfold.ir.cuts import find_chains
from blockfold.ir.graph import Graph
from blockfold.ir.onnx_file import read
from blockfold.ir.spans import Refusal, Span, prove, span_name
from blockfold.tests.networks import (
    FLOAT,
    LOGITS,
    TOKENS,
    Net,
    built,
    inner_output,
    masked_encoder,
    residual_cnn,
    residual_mlp,
    run,
    samples,
    shared_mask,
    two_streams,
)

Observed = dict[str, list[tuple[int, ...]]]


def streams(model: onnx.ModelProto) -> tuple[Graph, Anatomy]:
    graph = read(model).graph
    return graph, anatomy(graph, find_chains(graph)[0])


def observed(model: onnx.ModelProto, stream: Anatomy) -> Observed:
    """Shapes of every cut value on batches of one and of two samples of another length."""
    names = [value for cut in stream.chain.cuts for value in cut.values]
    found: Observed = {name: [] for name in names}
    for rows, length in ((1, 5), (2, 7)):
        feeds = samples(model, rows, length=length)
        taps = [name for name in names if name not in feeds and name not in LOGITS]
        values = {**feeds, **run(model, feeds, taps)}
        for name in names:
            found[name].append(values[name].shape)
    return found


def span(model: onnx.ModelProto, start: int, stop: int, *, data: bool = False) -> Span:
    graph, stream = streams(model)
    proved = prove(graph, stream, start, stop, observed(model, stream) if data else None)
    assert isinstance(proved, Span), proved
    return proved


def refusal(model: onnx.ModelProto, start: int, stop: int, *, data: bool = False) -> Refusal:
    graph, stream = streams(model)
    proved = prove(graph, stream, start, stop, observed(model, stream) if data else None)
    assert isinstance(proved, Refusal), proved
    return proved


@pytest.mark.parametrize("data", [False, True])
def test_a_residual_block_is_a_span(data: bool) -> None:
    model = residual_mlp(3)
    found = span(model, 1, 2, data=data)
    assert (found.entry, found.exit, found.name) == ("h0", "h1", "blocks.1")
    assert (found.channel_axis, found.rank, found.dtype) == (-1, 3, "float32")
    assert (found.stream, found.start, found.stop, found.blocks) == ("x", 1, 2, 1.0)
    assert found.side_inputs == ()
    scopes = [node.name.split("/")[1] for node in model.graph.node]
    assert found.removed == {at for at, scope in enumerate(scopes) if scope == "blocks.1"}


def test_a_run_of_blocks_is_a_span() -> None:
    found = span(residual_mlp(4), 0, 3)
    assert (found.entry, found.exit, found.name) == ("x", "h2", "blocks.0 .. blocks.2")
    assert found.blocks == 3


def test_feature_maps_have_their_channels_on_axis_1_and_keep_the_activation() -> None:
    found = span(residual_cnn(), 2, 3)
    assert (found.entry, found.exit, found.channel_axis, found.rank) == ("h0", "z1", 1, 4)


def test_a_post_norm_span_ends_before_its_norm() -> None:
    found = span(masked_encoder(), 0, 2)
    assert (found.entry, found.exit, found.channel_axis) == ("n0", "m0", -1)
    assert found.blocks == 1
    assert span(masked_encoder(), 0, 1).name == "layer.0 (1/2)"


def test_values_that_flow_in_from_beside_are_listed() -> None:
    assert span(two_streams(), 3, 4).side_inputs == ("c1",)
    assert span(two_streams(), 0, 1).side_inputs == ()


def test_a_mask_and_a_length_made_inside_do_not_bind_the_span() -> None:
    found = span(shared_mask(), 0, 1)
    graph, _ = streams(shared_mask())
    kept = {node.op for node in graph.nodes if node.index not in found.removed}
    assert {"Shape", "Trilu", "Greater", "Slice"} <= kept
    removed = [node for node in graph.nodes if node.index in found.removed]
    assert {node.scope for node in removed} == {("blocks.0",)}
    assert "normed" in {name for node in removed for name in node.outputs}


def second_head() -> onnx.ModelProto:
    """A block whose inner value feeds another output by a matrix outside the block."""
    net = Net()
    inner = net.node("Relu", net.linear("x", 4, 8), out="inner")
    h = net.node("Add", "x", net.linear(inner, 8, 4), out="h0")
    net.scope = "/auxiliary"
    net.node("MatMul", inner, net.weight(8, 3), out="aux")
    net.head(h, 4)
    outputs = {**LOGITS, "aux": (FLOAT, ("batch", TOKENS, 3))}
    return net.model({"x": (FLOAT, ("batch", TOKENS, 4))}, outputs)


ESCAPES: dict[str, tuple[Callable[[], onnx.ModelProto], int, str, str]] = {
    "graph output": (
        inner_output,
        1,
        "the graph output 'inner' is made inside it",
        "/blocks.1/Relu",
    ),
    "mask": (
        lambda: shared_mask(gated_by="norm"),
        0,
        "Slice node '/blocks.0/Slice_6' outside it still reads 'normed'",
        "/blocks.0/LayerNormalization",
    ),
    "head": (
        second_head,
        0,
        "MatMul node '/auxiliary/MatMul_6' outside it still reads 'inner'",
        "/Relu",
    ),
}
"""Models, the unit from which a value escapes, the reason, and the node that makes the value."""


@pytest.mark.parametrize("case", ESCAPES)
def test_refused_where_a_value_escapes(case: str) -> None:
    build, unit, _, _ = ESCAPES[case]
    found = refusal(build(), unit, unit + 1)
    assert (found.start, found.stop) == (unit, unit + 1)
    refusal(build(), 0, 2)
    if unit:
        span(build(), unit - 1, unit)


@pytest.mark.parametrize("case", ESCAPES)
def test_a_refusal_names_what_escapes_and_who_makes_it(case: str) -> None:
    build, unit, reason, node = ESCAPES[case]
    found = refusal(build(), unit, unit + 1)
    assert found.reason == reason
    assert repr(node)[:-1] in found.node


def test_an_exit_that_is_a_graph_output_is_no_obstacle() -> None:
    net = Net()
    net.node("Add", "x", net.mlp("x", 4), out="y")
    io = (FLOAT, ("batch", TOKENS, 4))
    assert span(net.model({"x": io}, {"y": io}), 0, 1).exit == "y"


def test_maps_that_a_block_makes_smaller_are_a_span_of_strides_seen_on_data() -> None:
    model = residual_cnn((4, 6), 2, downsampling=True)
    _, stream = streams(model)
    names = [cut.first for cut in stream.chain.cuts]
    before, after = names.index("z1"), names.index("z2")
    assert "shape" in refusal(model, before, after).reason
    found = span(model, before, after, data=True)
    assert (found.strides, found.entry_width, found.width, found.entry) == ((2, 2), 4, 6, "h1")
    assert span(model, names.index("z0"), before, data=True).strides == ()


@pytest.mark.parametrize("data", [False, True])
def test_refused_where_shapes_differ(data: bool) -> None:
    """A convolution of stride 2 by itself is no block, and no map of it would be less."""
    _, stream = streams(residual_cnn((4, 6), 2))
    assert stream.chain.cuts[3].first == "z1"
    found = refusal(residual_cnn((4, 6), 2), 3, 4, data=data)
    assert "shape" in found.reason
    assert found.node.startswith("Conv node '/stem1/")
    assert "(batch, 12, 8)" in refusal(residual_mlp(), 4, 5).reason


def test_refused_where_the_data_shows_other_shapes_than_the_file_can_tell() -> None:
    """Each call of this net rolls up another axis; no file says so, symbolic names do not prove."""
    net = Net()
    mixed = net.node("Relu", net.node("MatMul", "x", net.weight(4, 4)))
    turned = net.node("Transpose", mixed, perm=[1, 0, 2])
    net.node("MatMul", turned, net.weight(4, 4), out="y")
    model = net.model({"x": (FLOAT, ("a", "b", 4))}, {"y": (FLOAT, ("c", "d", 4))})
    found = refusal(model, 0, 2, data=True)
    assert "on the data" in found.reason
    assert found.node.startswith("MatMul")


def test_refused_where_dtypes_differ() -> None:
    net = Net()
    one = net.node("MatMul", "x", net.weight(4, 4))
    wide = net.node("Cast", one, to=onnx.TensorProto.DOUBLE)
    net.node("MatMul", wide, net.constant(np.eye(4) * 2), out="y")
    double = onnx.TensorProto.DOUBLE
    io = {"x": (FLOAT, ("batch", 4))}
    found = refusal(net.model(io, {"y": (double, ("batch", 4))}), 0, 2)
    assert found.reason == "its ends differ in dtype: float32 and float64"
    assert found.node.startswith("MatMul node '/MatMul_2'")


def test_without_data_only_a_residual_sum_proves_equal_shapes() -> None:
    net = Net()
    for i in range(2):
        net.node("Relu", net.linear(f"h{i}", 4, 4), out=f"h{i + 1}")
    io = (FLOAT, ("batch", TOKENS, 4))
    model = net.model({"h0": io}, {"h2": io})
    assert refusal(model, 0, 1).reason.startswith("no residual sum joins its ends")
    assert span(model, 0, 1, data=True).entry == "h0"


def test_a_value_without_a_channel_axis_is_no_stream() -> None:
    graph, stream = streams(residual_mlp())
    flat: Observed = {v: [(3,), (5,)] for cut in stream.chain.cuts for v in cut.values}
    proved = prove(graph, stream, 0, 1, flat)
    assert isinstance(proved, Refusal)
    assert proved.reason == "its ends have no channel axis"


def test_spans_that_share_a_cut_touch() -> None:
    model = residual_mlp(4)
    first, second, last, whole = (span(model, *ends) for ends in ((0, 1), (1, 2), (3, 4), (0, 4)))
    assert first.touches(second)
    assert second.touches(first)
    assert whole.touches(last)
    assert not first.touches(last)
    other = span(two_streams(), 0, 1)
    assert not first.touches(Span(**{**vars(other), "stream": "context"}))


def test_names_tell_blocks_or_their_parts() -> None:
    _, stream = streams(built("masked_encoder"))
    assert span_name(stream, 0, 2) == "layer.0"
    assert span_name(stream, 0, 4) == "layer.0 .. layer.1"
    assert span_name(stream, 1, 3) == "layer.0 (2/2) .. layer.1 (1/2)"
    assert span_name(stream, 5, 6) == "pooler"
