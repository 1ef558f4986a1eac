"""Bodies of If, Loop and Scan that read the stream: inside a block, at a cut, at an exit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from blockfold.tests.adversaries import (
    D,
    Inputs,
    block,
    blocks,
    finish,
    scalar,
)
from blockfold.tests.networks import FLOAT, INT64, Net, run, samples
from blockfold.tests.replacing import (
    assert_named_and_ordered_at_will,
    firsts,
    ranges,
    refused,
    replaced,
    streams,
)

ANY = (FLOAT, ("b", "s", D))


def body(nodes: Sequence[onnx.NodeProto], inputs: Inputs, outputs: Inputs) -> onnx.GraphProto:
    feeds, made = (
        [helper.make_tensor_value_info(value, kind, dims) for value, (kind, dims) in named.items()]
        for named in (inputs, outputs)
    )
    return helper.make_graph(list(nodes), "body", feeds, made)


def choose(
    net: Net,
    condition: str,
    then: Sequence[onnx.NodeProto],
    other: Sequence[onnx.NodeProto],
    out: str,
) -> str:
    """An If whose bodies make the last output of their last nodes."""
    branches = {
        f"{name}_branch": body(nodes, {}, {nodes[-1].output[0]: ANY})
        for name, nodes in (("then", then), ("else", other))
    }
    return net.node("If", condition, out=out, **branches)


def large(net: Net, x: str) -> str:
    """Whether the largest number of x is over 1000: not for any sample here."""
    most = net.node("ReduceMax", x, keepdims=0)
    return net.node("Greater", most, net.constant(scalar(1000)))


def inside() -> onnx.ModelProto:
    """The second block's branch is an If, whose inner If alone reads a value and a weight."""
    net = Net()
    h = blocks(net, "x", 1)
    net.scope = "/blocks.1"
    net.node("Relu", net.linear(net.norm(h, D), D, D), out="inner")
    condition, weight = large(net, "inner"), net.weight(D, D)
    deep = body([helper.make_node("MatMul", ["inner", weight], ["deep"])], {}, {"deep": ANY})
    flat = body([helper.make_node("Neg", ["inner"], ["flat"])], {}, {"flat": ANY})
    nested = helper.make_node("If", [condition], ["own"], then_branch=flat, else_branch=deep)
    plain = helper.make_node("Abs", [h], ["own"])
    chosen = choose(net, condition, [plain], [nested], "chosen")
    h = net.node("Add", h, chosen, out="h1")
    return finish(net, blocks(net, h, 1, 2))


def test_an_if_inside_a_block_goes_with_it_and_with_its_weights() -> None:
    model = inside()
    (stream,) = streams(model)[1]
    assert firsts(stream.chain) == ["x", "h0", "h1", "h2", "y"]
    assert ranges(stream) == [("x", "h0"), ("h0", "h1"), ("h1", "h2")]
    replaced(model, "h0", "h1")
    replaced(model, "x", "h2")
    replaced(model, "x", "h0")  # what the bodies read stays


def at_a_cut(*, reads: str = "h1") -> onnx.ModelProto:
    """Two blocks, an If that captures the stream (or a value of the second block), two blocks."""
    net = Net()
    h = blocks(net, "x", 1)
    net.scope = "/blocks.1"
    inner = net.node("Relu", net.linear(net.norm(h, D), D, D), out="inner")
    h = net.node("Add", h, net.linear(inner, D, D), out="h1")
    net.scope = "/choice"
    negative = [helper.make_node("Neg", ["h1"], ["negative"])]
    plain = [helper.make_node("Add", ["h1", reads], ["plain"])]
    h = choose(net, large(net, "x"), negative, plain, "chosen")
    return finish(net, blocks(net, h, 2, 2))


def test_an_if_at_a_cut_captures_the_exit_by_its_name() -> None:
    model = at_a_cut()
    (stream,) = streams(model)[1]
    assert firsts(stream.chain) == ["x", "h0", "h1", "chosen", "h2", "h3", "y"]
    for ends in (("h0", "h1"), ("x", "h1"), ("chosen", "h3")):
        replaced(model, *ends)
    assert refused(model, "h1", "chosen").reason.startswith("no residual sum joins its ends")
    replaced(model, "h1", "chosen", data=True)
    replaced(model, "h0", "h2", data=True)


@pytest.mark.parametrize("reads", ["inner", "h0"], ids=["inner value", "entry"])
def test_what_a_body_captures_is_a_path_round_the_exit(reads: str) -> None:
    model = at_a_cut(reads=reads)
    (stream,) = streams(model)[1]
    assert firsts(stream.chain) == ["x", "h0", "chosen", "h2", "h3", "y"]
    replaced(model, "x", "h0")
    replaced(model, "h0", "chosen", data=True)


def test_a_condition_told_by_an_inner_value_binds_the_block() -> None:
    """No derivative passes the comparison, so the cut is there; the value it needs stays."""
    net = Net()
    h = blocks(net, "x", 1)
    net.scope = "/blocks.1"
    inner = net.node("Relu", net.linear(net.norm(h, D), D, D), out="inner")
    net.node("Add", h, net.linear(inner, D, D), out="h1")
    net.scope = "/choice"
    negative = [helper.make_node("Neg", ["h1"], ["negative"])]
    plain = [helper.make_node("Identity", ["h1"], ["plain"])]
    h = choose(net, net.node("Identity", large(net, inner)), negative, plain, "chosen")
    model = finish(net, blocks(net, h, 2, 2))
    assert "h1" in firsts(streams(model)[1][0].chain)
    said = refused(model, "h0", "h1")
    assert said.reason.startswith("ReduceMax node '/choice/ReduceMax")
    assert said.reason.endswith("outside it still reads 'inner'")
    replaced(model, "h1", "h2", data=True)


def looped(times: int = 3) -> onnx.ModelProto:
    """One block before and after a Loop that runs a map of the stream, and captures a cut."""
    net = Net()
    h = blocks(net, "x", 2)
    net.scope = "/loop"
    weight = net.weight(D, D)
    step = body(
        [
            helper.make_node("MatMul", ["state", weight], ["mapped"]),
            helper.make_node("Tanh", ["mapped"], ["bent"]),
            helper.make_node("Add", ["bent", h], ["next"]),
            helper.make_node("Identity", ["go"], ["going"]),
        ],
        {"at": (INT64, ()), "go": (TensorProto.BOOL, ()), "state": ANY},
        {"going": (TensorProto.BOOL, ()), "next": ANY},
    )
    count, go = net.constant(np.array(times)), net.constant(np.array(True))
    h = net.node("Loop", count, go, h, out="looped", body=step)
    return finish(net, blocks(net, h, 2, 2))


def test_a_loop_is_a_unit() -> None:
    model = looped()
    (stream,) = streams(model)[1]
    assert firsts(stream.chain) == ["x", "h0", "h1", "looped", "h2", "h3", "y"]
    replaced(model, "h0", "h1")
    replaced(model, "looped", "h2", data=True)
    assert refused(model, "h1", "looped").reason.startswith("no residual sum joins its ends")
    span = replaced(model, "h1", "looped", data=True)
    assert len(span.removed) == 1
    replaced(model, "x", "h3", data=True)


def scanned(where: str) -> onnx.ModelProto:
    """A block whose branch is a Scan over tokens, that captures its inner value or an older cut."""
    net = Net()
    h = blocks(net, "x", 2)
    net.scope = "/blocks.2"
    inner = net.linear(net.norm(h, D), D, D)
    seen = inner if where == "inside" else "h0"
    whole = net.node("ReduceMean", seen, axes=[1], keepdims=0, out="whole")
    start = net.node("Mul", whole, net.constant(scalar(0)))
    row = (FLOAT, ("b", D))
    step = body(
        [
            helper.make_node("Add", ["sum", "token"], ["more"]),
            helper.make_node("Sub", ["more", "whole"], ["rest"]),
            helper.make_node("Tanh", ["rest"], ["next"]),
            helper.make_node("Identity", ["next"], ["made"]),
        ],
        {"sum": row, "token": row},
        {"next": row, "made": row},
    )
    made = ["last_state", "scanned"]
    axes: dict[str, Any] = {"scan_input_axes": [1], "scan_output_axes": [1]}
    scan = helper.make_node(
        "Scan", [start, inner], made, f"{net.scope}/Scan", body=step, num_scan_inputs=1, **axes
    )
    net.nodes.append(scan)
    h = net.node("Add", h, "scanned", out="h2")
    return finish(net, block(net, h, "blocks.3", "h3"))


def test_a_scan_inside_a_block_goes_with_it() -> None:
    model = scanned("inside")
    (stream,) = streams(model)[1]
    assert ranges(stream) == [("x", "h0"), ("h0", "h1"), ("h1", "h2"), ("h2", "h3")]
    replaced(model, "h1", "h2")
    replaced(model, "h0", "h3")


def test_a_scan_that_captures_an_older_cut_is_a_path_round_the_blocks_between() -> None:
    model = scanned("older")
    (stream,) = streams(model)[1]
    assert firsts(stream.chain) == ["x", "h0", "h2", "h3", "y"]
    replaced(model, "x", "h0")
    replaced(model, "h0", "h2")


@pytest.mark.parametrize(
    "model",
    [inside(), at_a_cut(), looped(), scanned("inside"), scanned("older")],
    ids=["inside", "at a cut", "loop", "scan", "older"],
)
def test_names_and_order_of_nodes_change_nothing(model: onnx.ModelProto) -> None:
    assert_named_and_ordered_at_will(model)


def test_all_bodies_are_run() -> None:
    """The networks compute what their bodies say, so that the comparisons above see them."""
    feeds = samples(looped(), 2)
    once, more = (run(looped(times), feeds, ["h1", "looped"]) for times in (1, 3))
    assert not np.allclose(once["looped"], more["looped"])
    values = run(at_a_cut(), feeds, ["h1", "chosen"])
    assert np.array_equal(values["chosen"], 2 * values["h1"])
