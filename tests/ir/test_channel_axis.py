"""Which axis holds the channels of a stream, however exporters lay it out.

TensorFlow's networks have their channels last and convolutions that want them first: between the
two stand Transposes, before and behind every operation or moved out of the stream.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest

from blockfold.ir.blocks import anatomy
from blockfold.ir.channels import channel_axis
from blockfold.ir.cuts import find_chains
from blockfold.ir.onnx_file import read
from blockfold.ir.spans import Refusal, prove
from blockfold.tests.networks import FLOAT, LOGITS, Net, compare, labelled, run, samples
from blockfold.tools import api

LENGTH, D = 5, 6
LAST = [0, 2, 1]
"""The order that swaps tokens and channels, its own inverse."""


def axis_of(model: onnx.ModelProto, value: str) -> int:
    return channel_axis(read(model).graph, value, None)


def decomposed_norm(net: Net, x: str, mean: str = "ReduceMean") -> str:
    """Less the mean over the last axis, over the root of the mean square."""
    options: dict[str, Any] = {"axes": [-1]} if mean == "ReduceMean" else {}
    centred = net.node("Sub", x, net.node(mean, x, **options))
    square = net.node(mean, net.node("Mul", centred, centred), **options)
    return net.node("Div", centred, net.node("Sqrt", square))


def channels_first_tokens(affine: int | None = None) -> onnx.ModelProto:
    """x (batch, d, length): every MLP between two Transposes."""
    net = Net()
    h = "x"
    for i in range(3):
        net.scope = f"/blocks.{i}"
        inside = net.node("Transpose", h, perm=LAST)
        made = net.affine(inside, D) if i == affine else net.mlp(inside, D)
        h = net.node("Add", h, net.node("Transpose", made, perm=LAST), out=f"h{i}")
    net.head(h, D, axes=(2,))
    return net.model({"x": (FLOAT, ("batch", D, LENGTH))}, LOGITS)


def channels_last_maps(affine: int | None = None) -> onnx.ModelProto:
    """x (batch, 4, 4, d): every convolution between two Transposes."""
    net = Net()
    h = "x"
    for i in range(3):
        net.scope = f"/blocks.{i}"
        y = net.node("Transpose", h, perm=[0, 3, 1, 2])
        if i == affine:
            y = net.conv(net.conv(y, D, 3 * D, kernel=1), 3 * D, D, kernel=1)
        else:
            y = net.conv(net.node("Relu", net.conv(y, D, 2 * D)), 2 * D, D)
        h = net.node("Add", h, net.node("Transpose", y, perm=[0, 2, 3, 1]), out=f"h{i}")
    net.head(h, D, axes=(1, 2))
    return net.model({"x": (FLOAT, ("batch", 4, 4, D))}, LOGITS)


def tokens_normalised(mean: str) -> onnx.ModelProto:
    """x (batch, length, d), norms spelled out; the mean may be that of a pooling."""
    net = Net()
    h = "x"
    for i in range(3):
        net.scope = f"/blocks.{i}"
        h = net.node("Add", h, net.mlp(decomposed_norm(net, h, mean), D), out=f"h{i}")
    net.head(h, D)
    return net.model({"x": (FLOAT, ("batch", LENGTH, D))}, LOGITS)


def mixer() -> onnx.ModelProto:
    """MLPs over tokens and over channels in turns: the first sees the tokens as channels."""
    net = Net()
    h = "x"
    for i in range(2):
        net.scope = f"/blocks.{i}"
        turned = net.node("Transpose", decomposed_norm(net, h), perm=LAST)
        mixed = net.node("Transpose", net.mlp(turned, LENGTH), perm=LAST)
        h = net.node("Add", h, mixed, out=f"m{i}")
        h = net.node("Add", h, net.mlp(decomposed_norm(net, h), D), out=f"h{i}")
    net.head(h, D)
    return net.model({"x": (FLOAT, ("batch", LENGTH, D))}, LOGITS)


@pytest.mark.parametrize(
    ("model", "values", "axis"),
    [
        (channels_first_tokens(), ("x", "h0", "h1", "h2"), 1),
        (channels_last_maps(), ("x", "h0", "h1", "h2"), -1),
        (tokens_normalised("ReduceMean"), ("x", "h0", "h2"), -1),
        (tokens_normalised("GlobalAveragePool"), ("x", "h0", "h2"), -1),
        (mixer(), ("x", "m0", "h0", "m1", "h1"), -1),
    ],
    ids=["tokens, channels first", "maps, channels last", "norm", "norm by pooling", "mixer"],
)
def test_the_nearest_who_has_a_say_tells(
    model: onnx.ModelProto, values: tuple[str, ...], axis: int
) -> None:
    assert {value: axis_of(model, value) for value in values} == dict.fromkeys(values, axis)


@pytest.mark.parametrize("perm", [[0, 7, 1], [2, 2, 2], [-1, 0, 1], []])
def test_an_order_that_is_none_tells_nothing(perm: list[int]) -> None:
    """A model may say so all the same; onnxruntime refuses it later, in words."""
    model = channels_first_tokens()
    for node in model.graph.node:
        if node.op_type == "Transpose":
            node.attribute[0].ints[:] = perm
    assert all(node.permutation is None for node in read(model).graph.nodes)


def test_an_order_of_other_axes_is_not_looked_through() -> None:
    """x (batch, d) becomes (1, batch, d) by a sum, which is then turned; so does its reverse."""
    net = Net()
    turned = net.node("Transpose", "x", perm=[1, 0])
    wide = net.node("Add", turned, net.constant(np.zeros((1, 1, 1), np.float32)))
    net.node("Conv", net.node("Transpose", wide, perm=[0, 2, 1], out="y"), net.weight(2, D, 1))
    net.node("ReduceMax", net.node("Identity", "y"), out="logits", axes=[1], keepdims=0)
    model = net.model({"x": (FLOAT, ("batch", D))}, {"logits": (FLOAT, (1, D))})
    assert axis_of(model, "x") == -1
    assert axis_of(model, "y") == 1


def test_ends_with_channels_on_different_axes_are_no_stream() -> None:
    """As many tokens as channels: the shapes agree by chance."""
    net = Net()
    first = net.node("Transpose", net.mlp(net.node("Transpose", "x", perm=LAST), D), perm=LAST)
    h = net.node("Add", "x", first, out="h0")
    turned = net.node("Transpose", h, perm=LAST)
    h = net.node("Add", turned, net.mlp(turned, D), out="h1")
    h = net.node("Add", h, net.mlp(h, D), out="h2")
    net.head(h, D)
    model = net.model({"x": (FLOAT, ("batch", D, D))}, LOGITS)
    graph = read(model).graph
    stream = anatomy(graph, find_chains(graph)[0])
    at = {cut.first: i for i, cut in enumerate(stream.chain.cuts)}
    shapes = {name: [(2, D, D)] for cut in stream.chain.cuts for name in cut.values}
    found = prove(graph, stream, at["x"], at["h2"], shapes)
    assert isinstance(found, Refusal)
    assert found.reason == "its ends have their channels on different axes"
    assert not isinstance(prove(graph, stream, at["h1"], at["h2"], shapes), Refusal)


@pytest.mark.parametrize("made", [channels_first_tokens, channels_last_maps])
def test_a_planted_block_is_replaced_in_that_layout(
    made: Callable[[int | None], onnx.ModelProto],
) -> None:
    model = made(1)
    data = labelled(model, 320)
    result = api.optimize(model, data, max_drop=0.05, threads=1, provider="cpu", survey=False)
    (decision,) = result.plan.decisions
    assert (decision.exit, decision.surrogate) == ("h1", "affine")
    assert decision.predicted_error < 1e-5
    fresh = samples(model, 40, seed=5)
    compare(run(model, fresh), run(result.model, fresh), atol=0, rtol=1e-4)
    assert not np.array_equal(model.SerializeToString(), result.model.SerializeToString())
