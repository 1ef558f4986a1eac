"""Outputs in the way: inside a block, at a cut, of other heads, of a cache, of whole numbers."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

import numpy as np
import onnx
import pytest

from blockfold.ir.onnx_file import read
from blockfold.ir.spans import Span
from blockfold.passes.pipeline import ALL_PASSES, rewrite
from blockfold.passes.replacement import Replacement
from blockfold.tests.adversaries import TOKENS_IO, D, block, blocks, finish, ints, layer
from blockfold.tests.networks import FLOAT, INT64, Dims, Net, compare, run, samples
from blockfold.tests.replacing import (
    asked,
    assert_named_and_ordered_at_will,
    by_hand,
    firsts,
    random_map,
    ranges,
    refused,
    replaced,
    streams,
)

HALF = D // 2


def with_outputs(
    model: onnx.ModelProto, outputs: Mapping[str, tuple[int, Dims]]
) -> onnx.ModelProto:
    """The model with further outputs."""
    for name, (kind, dims) in outputs.items():
        model.graph.output.append(onnx.helper.make_tensor_value_info(name, kind, dims))
    onnx.checker.check_model(model, full_check=True)
    return model


def middle(kind: str) -> onnx.ModelProto:
    """Three blocks; the second makes an output: its inner value, or the largest of its places."""
    net = Net()
    h = blocks(net, "x", 1)
    net.scope = "/blocks.1"
    inner = net.node("Relu", net.linear(net.norm(h, D), D, 2 * D), out="inner")
    h = net.node("Add", h, net.linear(inner, 2 * D, D), out="h1")
    net.scope = "/told"
    net.node("ArgMax", "inner", axis=-1, keepdims=0, out="best")
    model = finish(net, blocks(net, h, 1, 2))
    if kind == "inner":
        return with_outputs(model, {"inner": (FLOAT, ("batch", "seq", 2 * D))})
    return with_outputs(model, {"best": (INT64, ("batch", "seq"))})


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("inner", "the graph output 'inner' is made inside it"),
        ("best", "ArgMax node '/told/ArgMax_14' outside it still reads 'inner'"),
    ],
)
def test_an_output_made_inside_a_block_binds_it(kind: str, reason: str) -> None:
    model = middle(kind)
    (stream,) = streams(model)[1]
    assert firsts(stream.chain) == ["x", "h0", "h1", "h2", "y"]
    assert len(ranges(stream)) == 3
    for ends in (("h0", "h1"), ("x", "h1"), ("h0", "h2")):
        for data in (False, True):
            said = refused(model, *ends, data=data)
            assert said.reason == reason
            assert said.node.startswith("Relu node '/blocks.1/Relu")
    replaced(model, "x", "h0")
    replaced(model, "h1", "h2")


def test_an_output_at_a_cut_binds_only_what_runs_over_it() -> None:
    net = Net()
    model = finish(net, blocks(net, "x", 4))
    with_outputs(model, {"h1": TOKENS_IO})
    (stream,) = streams(model)[1]
    assert ranges(stream) == [("x", "h0"), ("h0", "h1"), ("h1", "h2"), ("h2", "h3")]
    replaced(model, "h0", "h1")
    replaced(model, "h1", "h3")
    for ends in (("h0", "h2"), ("x", "h3")):
        assert refused(model, *ends).reason == "the graph output 'h1' is made inside it"


def test_a_normed_output_at_a_cut_binds_what_runs_over_it() -> None:
    net = Net()
    h = "x"
    for i in range(3):
        net.scope = f"/blocks.{i}"
        h = net.norm(net.node("Add", h, net.mlp(h, D), out=f"h{i}"), D, out=f"n{i}")
    model = with_outputs(finish(net, h), {"n1": TOKENS_IO})
    assert replaced(model, "h0", "h1").entry == "n0"
    assert replaced(model, "h1", "h2").entry == "n1"
    assert "LayerNormalization" in refused(model, "h0", "h2").reason


def test_every_state_an_output_leaves_single_blocks() -> None:
    net = Net()
    model = with_outputs(finish(net, blocks(net, "x", 3)), {f"h{i}": TOKENS_IO for i in range(3)})
    (stream,) = streams(model)[1]
    assert len(ranges(stream)) == 3
    for ends in ranges(stream):
        replaced(model, *ends)
    assert "'h0' is made inside" in refused(model, "x", "h1").reason


def two_heads(
    common: int = 2, first: int = 2, second: int = 3, *, early: bool = False
) -> onnx.ModelProto:
    """Common blocks, then blocks of each of two outputs; or the second leaves before the last."""
    net = Net()
    h = blocks(net, "x", common)
    a, b = h, f"h{common - 2}" if early else h
    for i in range(first):
        a = block(net, a, f"first.{i}", f"a{i}")
    for i in range(second):
        b = block(net, b, f"second.{i}", f"b{i}")
    net.scope = "/boxes"
    net.node("MatMul", net.norm(b, D), net.weight(D, 4), out="boxes")
    return with_outputs(finish(net, a), {"boxes": (FLOAT, ("batch", "seq", 4))})


@pytest.mark.parametrize("early", [False, True])
@pytest.mark.parametrize(("first", "second"), [(2, 3), (3, 2), (0, 2), (2, 0), (0, 0)])
def test_every_block_of_two_heads_is_found(first: int, second: int, early: bool) -> None:
    model = two_heads(3, first, second, early=early)
    found = [pair for stream in streams(model)[1] for pair in ranges(stream)]
    common = ["x", "h0", "h1", "h2"]
    wanted = list(pairwise(common))
    for letter, count, start in (("a", first, "h2"), ("b", second, "h1" if early else "h2")):
        stream = [start, *(f"{letter}{i}" for i in range(count))]
        wanted += pairwise(stream)
    assert sorted(found) == sorted(wanted)


def test_spans_of_two_heads() -> None:
    model = two_heads()
    for ends in (("x", "h0"), ("h1", "a0"), ("h1", "b0"), ("b0", "b2"), ("a0", "a1")):
        replaced(model, *ends)
    early = two_heads(2, 3, 2, early=True)
    replaced(early, "x", "h0")
    replaced(early, "h0", "b0")
    assert refused(early, "x", "h1").reason.endswith("outside it still reads 'h0'")
    replaced(early, "h0", "h1")


def test_spans_on_both_sides_of_a_branching_touch_or_both_hold() -> None:
    """One ends where a head leaves, the other is that head's first: a drop and a map."""
    model = two_heads()
    first, *others = (asked(model, *ends) for ends in (("h0", "h1"), ("h1", "a0"), ("h1", "b0")))
    assert isinstance(first, Span)
    for second in others:
        assert isinstance(second, Span)
        if not first.touches(second):
            replacements = [
                Replacement(first, None, 0.0),
                Replacement(second, random_map(D), 0.0),
            ]
            made = rewrite(read(model), replacements, {}, ALL_PASSES).model.proto
            wanted = by_hand(by_hand(model, first, None), second, random_map(D))
            feeds = samples(model, 2)
            compare(run(wanted, feeds), run(made, feeds), atol=0, rtol=1e-5)


def test_a_head_sees_only_what_is_replaced_before_it() -> None:
    model = two_heads()
    span = replaced(model, "b0", "b1")
    feeds = samples(model, 2)
    other = by_hand(model, span, random_map(D))
    before, after = run(model, feeds), run(other, feeds)
    assert (before["y"] == after["y"]).all()
    assert not np.allclose(before["boxes"], after["boxes"], atol=1e-2)


def test_only_whole_numbers_come_out() -> None:
    net = Net()
    net.node("ArgMax", blocks(net, "x", 2), axis=-1, keepdims=0, out="y")
    model = net.model({"x": TOKENS_IO}, {"y": (INT64, ("batch", "seq"))})
    assert streams(model)[1] == []


def test_whole_numbers_beside_a_floating_output_are_no_obstacle() -> None:
    """They are made after the last block, from the output itself."""
    net = Net()
    model = finish(net, blocks(net, "x", 2))
    model.graph.node.append(onnx.helper.make_node("ArgMax", ["y"], ["best"], axis=-1, keepdims=0))
    with_outputs(model, {"best": (INT64, ("batch", "seq"))})
    (stream,) = streams(model)[1]
    assert ranges(stream) == [("x", "h0"), ("h0", "h1")]
    replaced(model, "h0", "h1")


def test_the_same_value_twice_and_an_input_as_output() -> None:
    net = Net()
    h = blocks(net, "x", 2)
    net.node("Identity", "x", out="same")
    net.node("Identity", h, out="again")
    model = finish(net, h)
    with_outputs(model, {"same": TOKENS_IO, "again": TOKENS_IO})
    (stream,) = streams(model)[1]
    assert firsts(stream.chain) == ["x", "h0", "h1", "y"]
    replaced(model, "h0", "h1")
    replaced(model, "x", "h1")


def cached(count: int = 3, *, outputs: bool = True) -> onnx.ModelProto:
    """A decoder whose layers join past keys and values, two heads, with what they make now."""
    net = Net()

    def heads(x: str) -> str:
        split = net.node("Reshape", net.linear(x, D, D), net.constant(ints(0, 0, 2, HALF)))
        return net.node("Transpose", split, perm=[0, 2, 1, 3])

    h = "x"
    cache: dict[str, tuple[int, Dims]] = {}
    for i in range(count):
        net.scope = f"/layers.{i}/attention"
        normed = net.norm(h, D)
        query, now = heads(normed), [heads(normed), heads(normed)]
        parts = [f"{i}.key", f"{i}.value"]
        key, value = (
            net.node("Concat", f"past.{part}", new, axis=2, out=f"present.{part}")
            for part, new in zip(parts, now, strict=True)
        )
        cache |= dict.fromkeys(parts, (FLOAT, ("batch", 2, "length", HALF)))
        turned = net.node("Transpose", key, perm=[0, 1, 3, 2])
        scores = net.node("Softmax", net.node("MatMul", query, turned), axis=-1)
        mixed = net.node("Transpose", net.node("MatMul", scores, value), perm=[0, 2, 1, 3])
        mixed = net.node("Reshape", mixed, net.constant(ints(0, 0, -1)))
        h = net.node("Add", h, net.linear(mixed, D, D), out=f"a{i}")
        net.scope = f"/layers.{i}/mlp"
        h = net.node("Add", h, net.mlp(net.norm(h, D), D), out=f"h{i}")
    past = {f"past.{part}": io for part, io in cache.items()}
    model = finish(net, h, {**past, "x": TOKENS_IO})
    present = {f"present.{p}": (FLOAT, ("batch", 2, "all", HALF)) for p in cache}
    return with_outputs(model, present) if outputs else model


@pytest.mark.parametrize("outputs", [True, False])
def test_layers_with_a_cache_are_blocks_of_the_token_stream(outputs: bool) -> None:
    (stream,) = streams(cached(outputs=outputs))[1]
    assert (stream.chain.source, stream.chain.sink) == ("x", "y")
    cuts = [f"{part}{i}" for i in range(3) for part in ("a", "h")]
    assert firsts(stream.chain) == ["x", *cuts, "y"]
    assert ranges(stream) == [("x", "h0"), ("h0", "h1"), ("h1", "h2")]


@pytest.mark.parametrize("data", [False, True])
def test_a_layer_that_writes_to_the_cache_is_refused(data: bool) -> None:
    model = cached()
    for i, entry in enumerate(("x", "h0", "h1")):
        for exit_ in (f"a{i}", f"h{i}"):
            reason = refused(model, entry, exit_, data=data).reason
            assert reason.startswith(f"the graph output 'present.{i}.")
        replaced(model, f"a{i}", f"h{i}", data=data)


def test_a_layer_that_only_reads_the_cache_can_go() -> None:
    span = replaced(cached(outputs=False), "h0", "h1")
    assert span.side_inputs == ("past.1.key", "past.1.value")


def test_layers_whose_attention_is_an_output_are_refused() -> None:
    """As with output_attentions: the scores of the second layer come out, too."""
    net = Net()
    h = layer(net, layer(net, "x", "layer.0", "h0"), "layer.1", "h1")
    model = finish(net, h)
    scores = [node.output[0] for node in model.graph.node if node.op_type == "Softmax"]
    with_outputs(model, {scores[1]: (FLOAT, ("batch", "seq", "seq"))})
    replaced(model, "x", "h0")
    assert (
        refused(model, "h0", "h1.a").reason == f"the graph output {scores[1]!r} is made inside it"
    )
    replaced(model, "h1.a", "h1")


@pytest.mark.parametrize(
    "model",
    [two_heads(2, 3, 2, early=True), cached(2), middle("best")],
    ids=["two heads", "cached", "middle"],
)
def test_names_and_order_of_nodes_change_nothing(model: onnx.ModelProto) -> None:
    assert_named_and_ordered_at_will(model)
