"""Blocks between which tokens are pooled, merged, added or turned: no span runs across.

The dimensions have names or none, so that without data only the dataflow can tell.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from blockfold.ir.spans import Refusal
from blockfold.tests.adversaries import TOKENS_IO, D, block, blocks, finish, ints
from blockfold.tests.networks import FLOAT, LOGITS, Net
from blockfold.tests.replacing import asked, firsts, ranges, refused, replaced, streams

Change = Callable[[Net, str], str]


def strided(net: Net, h: str) -> str:
    """Every second token."""
    bounds = [net.constant(ints(n)) for n in (0, 1 << 40, 1, 2)]
    return net.node("Slice", h, *bounds)


def pooled(net: Net, h: str) -> str:
    """The mean of each two neighbours."""
    pairs = net.node("Reshape", h, net.constant(ints(0, -1, 2, D)))
    return net.node("ReduceMean", pairs, axes=[2], keepdims=0)


def merged(net: Net, h: str) -> str:
    """Two neighbours side by side, then a matrix: as in a Swin Transformer."""
    pairs = net.node("Reshape", h, net.constant(ints(0, -1, 2 * D)))
    return net.node("MatMul", net.norm(pairs, 2 * D), net.weight(2 * D, D))


def with_class(net: Net, h: str) -> str:
    """A learned token in front of the others."""
    rows = net.node("Slice", net.node("Shape", h), net.constant(ints(0)), net.constant(ints(1)))
    dims = net.node("Concat", rows, net.constant(ints(1, D)), axis=0)
    token = net.node("Expand", net.weight(1, 1, D), dims)
    return net.node("Concat", token, h, axis=1)


def convolved(net: Net, h: str) -> str:
    """A convolution of stride 2 along the tokens."""
    turned = net.node("Transpose", h, perm=[0, 2, 1])
    kernel = net.weight(D, D, 2)
    half = net.node("Conv", turned, kernel, kernel_shape=[2], strides=[2])
    return net.node("Transpose", half, perm=[0, 2, 1])


def repeated(net: Net, h: str) -> str:
    """Each token twice."""
    return net.node("Tile", h, net.constant(ints(1, 2, 1)))


def windowed(net: Net, h: str) -> str:
    """Windows of two tokens as rows of the batch: the same numbers in another shape."""
    return net.node("Reshape", h, net.constant(ints(-1, 2, D)))


def turned(net: Net, h: str) -> str:
    """Tokens and rows of the batch change places."""
    return net.node("Transpose", h, perm=[1, 0, 2])


def mean_and_most(net: Net, h: str) -> str:
    """Mean and maximum over all tokens, added."""
    parts = [net.node(f"Reduce{kind}", h, axes=[1], keepdims=1) for kind in ("Mean", "Max")]
    return net.node("Add", *parts)


CHANGES: dict[str, Change] = {
    change.__name__: change
    for change in (strided, pooled, merged, with_class, convolved, repeated, windowed, turned)
}
CHANGES["mean_and_most"] = mean_and_most
JOINED = {"windowed", "turned", "mean_and_most"}
"""Changes by cheap operations alone, so that they are no unit but part of a cut."""


def changed(name: str, *, dims: tuple[Any, ...] = TOKENS_IO[1]) -> onnx.ModelProto:
    """Two blocks, a change of length, two blocks."""
    net = Net()
    h = blocks(net, "x", 2)
    net.scope = "/change"
    return finish(net, blocks(net, CHANGES[name](net, h), 2, 2), {"x": (FLOAT, dims)})


@pytest.mark.parametrize("name", CHANGES)
def test_blocks_before_and_after_are_found_and_can_go(name: str) -> None:
    model = changed(name)
    (stream,) = streams(model)[1]
    found = ranges(stream)
    assert {("x", "h0"), ("h0", "h1"), ("h2", "h3")} <= set(found)
    before = firsts(stream.chain)[firsts(stream.chain).index("h2") - 1]
    assert (before, "h2") in found
    replaced(model, "h0", "h1")
    replaced(model, before, "h2")
    replaced(model, before, "h3")


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("dims", [("batch", "seq", D), ("batch", 8, D)], ids=["named", "fixed"])
def test_no_span_runs_across_on_the_data(name: str, dims: tuple[Any, ...]) -> None:
    model = changed(name, dims=dims)
    for ends in (("x", "h2"), ("h0", "h3"), ("h1", "h2")):
        if ends == ("h1", "h2") and name in JOINED:
            continue  # one cut, whose later values have the shape of the second half
        assert "differ in shape" in refused(model, *ends, data=True, sizes=((1, 6), (2, 8))).reason


def wrong(reason: str) -> pytest.MarkDecorator:
    """What is offered today and is not proved."""
    return pytest.mark.xfail(strict=True, raises=AssertionError, reason=reason)


@pytest.mark.parametrize("name", list(CHANGES))
def test_no_span_runs_across_without_data(name: str) -> None:
    for ends in (("x", "h2"), ("h0", "h3")):
        refused(changed(name), *ends)


@pytest.mark.parametrize("name", sorted(JOINED))
def test_the_unit_after_a_cheap_change_begins_behind_it(name: str) -> None:
    model = changed(name)
    for data in (False, True):
        span = replaced(model, "h1", "h2", data=data)
        assert span.entry not in ("h1", "h0")


def sums() -> dict[str, onnx.ModelProto]:
    """A residual sum in which the stream itself is turned, or repeated by broadcasting."""
    made = {}
    net = Net()
    h = block(net, "x", "blocks.0", "h0")
    net.scope = "/blocks.1"
    branch = turned(net, net.mlp(net.norm(h, D), D))
    made["turned"] = finish(net, net.node("Add", turned(net, h), branch, out="h1"))
    net = Net()
    h = block(net, "x", "blocks.0", "h0")
    net.scope = "/blocks.1"
    places = net.node("Add", net.mlp(net.norm(h, D), D), "z")
    h = net.node("Add", h, places, out="h1")
    made["spread"] = finish(net, h, {"x": TOKENS_IO, "z": (FLOAT, ("batch", "other", D))})
    return made


@pytest.mark.parametrize(
    "name",
    [
        "turned",
        pytest.param("spread", marks=wrong("a sum is taken to keep the shape of both")),
    ],
)
def test_a_sum_that_changes_the_shape_proves_nothing(name: str) -> None:
    refused(sums()[name], "h0", "h1")


def test_a_sum_that_changes_the_shape_is_seen_on_the_data() -> None:
    model = sums()["turned"]
    assert "differ in shape on the data" in refused(model, "h0", "h1", data=True).reason


def test_feature_maps_of_unknown_shape_are_not_replaced_blindly() -> None:
    """No shape is stated for what a Loop gives: its blocks' rank is not known without data."""
    net = Net()
    step = helper.make_graph(
        [
            helper.make_node("Tanh", ["state"], ["next"]),
            helper.make_node("Identity", ["go"], ["going"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("at", onnx.TensorProto.INT64, ()),
            helper.make_tensor_value_info("go", onnx.TensorProto.BOOL, ()),
            helper.make_tensor_value_info("state", FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("going", onnx.TensorProto.BOOL, ()),
            helper.make_tensor_value_info("next", FLOAT, None),
        ],
    )
    count, go = net.constant(np.array(2)), net.constant(np.array(True))
    h = net.node("Loop", count, go, "x", out="looped", body=step)
    for i in range(2):
        branch = net.conv(net.node("Relu", net.conv(h, 4, 4)), 4, 4)
        h = net.node("Add", h, branch, out=f"h{i}")
    net.head(h, 4, axes=(2, 3))
    model = net.model({"x": (FLOAT, ("batch", 4, 5, 5))}, LOGITS)
    assert replaced(model, "h0", "h1", data=True).rank == 4
    said = asked(model, "h0", "h1")
    assert isinstance(said, Refusal) or said.rank == 4
