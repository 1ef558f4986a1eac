"""Lengths of values that are gone: asked of living ones, and nothing is computed for a length."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from blockfold.ir.onnx_diff import diff
from blockfold.ir.onnx_file import read
from blockfold.ir.spans import Span
from blockfold.passes.cleanup import Cleanup
from blockfold.passes.pipeline import ALL_PASSES, rewrite
from blockfold.passes.replacement import Replacement
from blockfold.tests.adversaries import TOKENS_IO, D, blocks, ints, scalar
from blockfold.tests.networks import FLOAT, INT64, Net, compare, run, samples
from blockfold.tests.replacing import (
    SIZES,
    Sizes,
    asked,
    by_hand,
    firsts,
    random_map,
    reordered,
    replaced,
    streams,
)

HEADS = 2
Measure = Callable[[Net, str, int], str]
"""Makes a value in the first block, from its norm, and gives a length of it as one whole number."""


def finish(net: Net, h: str, opset: int) -> onnx.ModelProto:
    net.scope = "/head"
    net.node("MatMul", h, net.weight(D, 3), out="y")
    return net.model({"x": TOKENS_IO}, {"y": (FLOAT, ("batch", "length", 3))}, opset=opset, ir=10)


def mapped(net: Net, h: str) -> str:
    """A branch of a block, without operations that are missing in old operator sets."""
    return net.linear(net.node("Tanh", net.linear(h, D, 2 * D)), 2 * D, D)


def measured(measure: Measure, opset: int = 17) -> onnx.ModelProto:
    """Three blocks; the later two divide their branch by a length that the first one measures."""
    net = Net()
    net.scope = "/blocks.0"
    inner = net.node("MatMul", "x", net.weight(D, D), out="inner")
    count = net.node("Cast", measure(net, inner, opset), to=FLOAT, out="count")
    h = net.node("Add", "x", net.linear(net.node("Tanh", inner), D, D), out="h0")
    for i in (1, 2):
        net.scope = f"/blocks.{i}"
        h = net.node("Add", h, net.node("Div", mapped(net, h), count), out=f"h{i}")
    return finish(net, h, opset)


def pick(net: Net, dims: str, axis: int) -> str:
    return net.node("Gather", dims, net.constant(np.array(axis)), axis=0)


def of_product(net: Net, inner: str, _: int) -> str:
    product = net.node("MatMul", inner, net.weight(D, 5))
    return pick(net, net.node("Shape", product), 1)


def of_heads(net: Net, inner: str, _: int) -> str:
    """Of scores (batch, heads, seq, seq), the last axis: it is the length of the keys."""
    heads = net.node("Reshape", inner, net.constant(ints(0, 0, HEADS, D // HEADS)))
    query = net.node("Transpose", heads, perm=[0, 2, 1, 3])
    key = net.node("Transpose", heads, perm=[0, 2, 3, 1])
    return pick(net, net.node("Shape", net.node("MatMul", query, key)), 3)


def of_merged(net: Net, inner: str, _: int) -> str:
    """Through a Reshape whose target was itself put together from lengths of another dead value."""
    product = net.node("MatMul", inner, net.weight(D, D))
    parts = [net.node("Gather", net.node("Shape", product), net.constant(ints(i))) for i in (0, 1)]
    target = net.node("Concat", *parts, net.constant(ints(HEADS, -1)), axis=0)
    return pick(net, net.node("Shape", net.node("Reshape", inner, target)), 1)


def of_part(net: Net, inner: str, opset: int) -> str:
    """By a Shape that says from where to where."""
    product = net.node("MatMul", inner, net.weight(D, 5))
    bounds: dict[str, Any] = {"start": -2, "end": -1} if opset >= 15 else {}
    dims = net.node("Shape", product, **bounds)
    return pick(net, dims, 0 if bounds else 1)


def of_reduced(net: Net, inner: str, _: int) -> str:
    wide = net.node("Transpose", net.node("Softmax", inner, axis=-1), perm=[1, 0, 2])
    return pick(net, net.node("Shape", wide), 0)


def of_channels(net: Net, inner: str, _: int) -> str:
    """A length that is a plain number."""
    return pick(net, net.node("Shape", net.node("Sigmoid", inner)), 2)


MEASURES: dict[str, Measure] = {
    measure.__name__: measure
    for measure in (of_product, of_heads, of_merged, of_part, of_reduced, of_channels)
}


def shapes(model: onnx.ModelProto) -> set[str]:
    """What the Shape nodes of a model ask."""
    return {node.input[0] for node in model.graph.node if node.op_type == "Shape"}


def rewritten(model: onnx.ModelProto, sizes: Sizes = SIZES) -> onnx.ModelProto:
    """The model with its first block replaced by a random map; it computes the same as by hand."""
    span = asked(model, "x", "h0")
    assert isinstance(span, Span), span
    solution = random_map(D)
    made = rewrite(read(model), [Replacement(span, solution, 0.0)], {}, ALL_PASSES).model.proto
    for rows, length in sizes:
        feeds = samples(model, rows, length=length)
        compare(run(by_hand(model, span, solution), feeds), run(made, feeds), atol=0, rtol=1e-5)
    return made


@pytest.mark.parametrize("opset", [11, 13, 17, 21])
@pytest.mark.parametrize("name", MEASURES)
def test_what_only_a_length_is_asked_of_is_not_computed(name: str, opset: int) -> None:
    model = measured(MEASURES[name], opset)
    span = replaced(model, "x", "h0")  # all that the first block makes is gone
    assert span.side_inputs == ()
    made = rewritten(model)
    assert shapes(made) <= {"x"}
    assert not [node for node in made.graph.node if node.name.startswith("/blocks.0/MatMul")]


@pytest.mark.parametrize("name", MEASURES)
@pytest.mark.parametrize("seed", range(3))
def test_a_length_is_never_asked_of_a_value_that_is_made_later(name: str, seed: int) -> None:
    model = reordered(measured(MEASURES[name]), seed)
    made = rewritten(model)
    known = {value.name for value in made.graph.input} | {w.name for w in made.graph.initializer}
    for node in made.graph.node:
        assert known.issuperset(node.input), node.name
        known.update(node.output)


@pytest.mark.parametrize("name", MEASURES)
def test_only_the_asking_is_rewritten(name: str) -> None:
    """What is made of the length stays as it is, byte for byte, and so does all behind it."""
    model = measured(MEASURES[name])
    made = rewritten(model)
    found = diff(model, made)
    asking = {node.output[0] for node in model.graph.node if node.op_type == "Shape"}
    changed = {label[1] for label in found.changed if label[0] == "node"}
    assert changed <= asking | {"h0"}
    assert "count" in {name for node in made.graph.node for name in node.output}


def position_bias(opset: int = 17) -> onnx.ModelProto:
    """As in T5: the first layer makes a bias of places from the shape of its scores, all add it."""
    net = Net()
    h, bias = "x", ""
    for i in range(3):
        net.scope = f"/layers.{i}"
        query, key, value = (net.linear(h, D, D) for _ in range(3))
        scores = net.node("MatMul", query, net.node("Transpose", key, perm=[0, 2, 1]))
        if not bias:
            ends = [pick(net, net.node("Shape", scores), axis) for axis in (1, 2)]
            limits = net.constant(np.array(0)), net.constant(np.array(1))
            rows, columns = (net.node("Range", limits[0], end, limits[1]) for end in ends)
            rows = net.node("Unsqueeze", rows, net.constant(ints(1)))
            apart = net.node("Sub", columns, rows)
            near = net.node("Min", net.node("Abs", apart), net.constant(np.array(3)))
            table = net.constant(net.rng.standard_normal(4).astype(np.float32), "table")
            bias = net.node("Gather", table, near, out="bias")
        mixed = net.node("Softmax", net.node("Add", scores, bias), axis=-1)
        h = net.node("Add", h, net.linear(net.node("MatMul", mixed, value), D, D), out=f"h{i}")
    return finish(net, h, opset)


@pytest.mark.parametrize("opset", [13, 17, 21])
def test_a_bias_of_places_outlives_the_layer_that_made_it(opset: int) -> None:
    model = position_bias(opset)
    replaced(model, "x", "h0")
    made = rewritten(model)
    assert shapes(made) == {"x"}
    names = {name for node in made.graph.node for name in node.output}
    assert "bias" in names
    assert "table" in {tensor.name for tensor in made.graph.initializer}
    first = [node for node in made.graph.node if node.name.startswith("/layers.0/")]
    assert not {"MatMul", "Softmax", "Transpose"} & {node.op_type for node in first}
    old = {node.output[0]: node for node in model.graph.node}
    arithmetic = [
        node for node in first if node.op_type in ("Range", "Sub", "Abs", "Min", "Gather")
    ]
    kept = [node for node in arithmetic if node.output[0] in old]
    assert [node for node in kept if node != old[node.output[0]]] == []
    assert len([node for node in kept if node.op_type == "Range"]) == 2


def test_a_layer_with_the_bias_of_another_goes_without_it() -> None:
    assert replaced(position_bias(), "h0", "h1").side_inputs == ()
    replaced(position_bias(), "x", "h2")


def doubled(net: Net, inner: str, _: int) -> str:
    """A length that is no input's: twice as many tokens."""
    return pick(net, net.node("Shape", net.node("Concat", inner, inner, axis=1, out="two")), 1)


def test_a_length_that_cannot_be_traced_keeps_its_maker() -> None:
    model = measured(doubled)
    made = rewritten(model)
    assert {"inner", "two"} <= {name for node in made.graph.node for name in node.output}
    assert shapes(made) == {"two"}


def counted(net: Net, inner: str, _: int) -> str:
    """The count of all elements, by Size."""
    return net.node("Size", inner)


def test_a_size_keeps_what_it_counts() -> None:
    made = rewritten(measured(counted))
    assert "inner" in {name for node in made.graph.node for name in node.output}


def test_the_length_of_a_maker_that_stays_is_left_alone() -> None:
    """Two lengths, one of which cannot be traced: its maker lives, and the other may ask it."""

    def both(net: Net, inner: str, opset: int) -> str:
        return net.node("Add", doubled(net, inner, opset), of_product(net, inner, opset))

    made = rewritten(measured(both))
    assert shapes(made) <= {"x", "two", "inner"}
    assert "two" in shapes(made)


def test_whole_numbers_are_left_as_they_are() -> None:
    """The length of a row of places, which costs nothing, is still asked of that row."""

    def places(net: Net, inner: str, _: int) -> str:
        end = pick(net, net.node("Shape", inner), 1)
        limits = net.constant(np.array(0)), net.constant(np.array(1))
        row = net.node("Range", limits[0], end, limits[1], out="places")
        return pick(net, net.node("Shape", row), 0)

    made = rewritten(measured(places))
    assert shapes(made) == {"x", "places"}


def test_whole_numbers_told_by_a_product_are_no_reason_to_compute_it() -> None:
    def positive(net: Net, inner: str, _: int) -> str:
        product = net.node("MatMul", inner, net.weight(D, 5))
        told = net.node("Greater", product, net.constant(scalar(0)))
        return pick(net, net.node("Shape", net.node("Cast", told, to=INT64)), 1)

    replaced(measured(positive), "x", "h0")


def of_scalar(net: Net, inner: str, _: int) -> str:
    """The lengths of a scalar are none: an empty shape, of which a one is made."""
    dims = net.node("Shape", net.node("ReduceMax", inner, keepdims=0))
    one = onnx.numpy_helper.from_array(np.array([1], np.int64))
    return net.node("ConstantOfShape", dims, value=one)


def of_nothing(net: Net, inner: str, _: int) -> str:
    dims = net.node("Shape", inner, start=2, end=2)
    one = onnx.numpy_helper.from_array(np.array([1], np.int64))
    return net.node("ConstantOfShape", dims, value=one)


@pytest.mark.parametrize("measure", [of_scalar, of_nothing])
def test_no_length_at_all_can_be_asked(measure: Measure) -> None:
    replaced(measured(measure), "x", "h0")


def test_lengths_that_are_numbers_need_no_value() -> None:
    """The input's lengths are all fixed: what is asked becomes a constant."""
    model = measured(of_product)
    for value in (*model.graph.input, *model.graph.output):
        for dim, number in zip(value.type.tensor_type.shape.dim, (2, 6), strict=False):
            dim.dim_value = number
    made = rewritten(model, sizes=[(2, 6)])
    assert shapes(made) == set()


def test_a_shape_that_is_an_output_keeps_its_name() -> None:
    model = measured(of_product)
    (dims,) = (node.output[0] for node in model.graph.node if node.op_type == "Shape")
    model.graph.output.append(helper.make_tensor_value_info(dims, INT64, (3,)))
    made = rewritten(model)
    assert shapes(made) == {"x"}
    feeds = samples(model, 3, length=4)
    assert run(made, feeds)[dims].tolist() == [3, 4, 5]


def test_many_lengths_of_one_value_are_each_asked_once_more() -> None:
    def many(net: Net, inner: str, _: int) -> str:
        product = net.node("MatMul", inner, net.weight(D, 5))
        lengths = [pick(net, net.node("Shape", product), i) for i in (0, 1, 2, 1)]
        return net.node("Sum", *[net.node("Cast", one, to=FLOAT) for one in lengths])

    model = measured(many)
    replaced(model, "x", "h0")
    made = rewritten(model)
    names = [node.name for node in made.graph.node]
    assert len(names) == len(set(names))


def test_a_shape_asked_in_a_body_keeps_what_it_asks() -> None:
    """A body captures the value itself, whatever it does with it: that hides the block's end."""

    def inside(net: Net, inner: str, _: int) -> str:
        nodes = [
            helper.make_node("Shape", [inner], ["dims"]),
            helper.make_node("Gather", ["dims", net.constant(np.array(1))], ["one"]),
        ]
        made = helper.make_tensor_value_info("one", INT64, ())
        body = helper.make_graph(nodes, "body", [], [made])
        most = net.node("ReduceMax", "x", keepdims=0)
        positive = net.node("Greater", most, net.constant(scalar(0)))
        return net.node("If", positive, then_branch=body, else_branch=body)

    model = measured(inside)
    (stream,) = streams(model)[1]
    assert firsts(stream.chain) == ["x", "h2", "y"]
    replaced(model, "x", "h2")


def test_clean_up_alone_frees_what_only_a_length_was_asked_of() -> None:
    """Nothing was replaced; the file itself computes a product for its length."""
    net = Net()
    costly = net.node("MatMul", "x", net.weight(D, D))
    h = blocks(net, net.node("Reshape", "x", net.node("Shape", costly)), 1)
    model = finish(net, h, 17)
    result = Cleanup()(read(model))
    assert any(change.startswith("rewrote Shape") for change in result.changes)
    assert costly not in {name for node in result.model.proto.graph.node for name in node.output}
    for rows, length in SIZES:
        feeds = samples(model, rows, length=length)
        compare(run(model, feeds), run(result.model.proto, feeds), atol=0, rtol=0)
    assert Cleanup()(result.model).changes == ()
