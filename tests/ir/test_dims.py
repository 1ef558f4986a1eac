"""Lengths against what onnxruntime makes: whatever is claimed is true at every size."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from blockfold.ir.lengths import Dims, Length
from blockfold.ir.onnx_dims import Lengths
from blockfold.ir.onnx_file import read
from blockfold.tests.networks import FLOAT, INT64, Arrays, Net, run
from blockfold.tests.shapes import SIZES, Shapes, feeds

Build = Callable[[Net], str]


def values(model: onnx.ModelProto, names: Sequence[str]) -> list[Arrays]:
    """All values of a model at every size."""
    outputs = {value.name for value in model.graph.output}
    taps = [name for name in names if name not in outputs]
    return [{**feeds(size), **run(model, feeds(size), taps)} for size in SIZES]


def true_length(dim: int | Length, made: Arrays) -> int:
    return dim if isinstance(dim, int) else int(made[dim.value].shape[dim.axis])


def claims(lengths: Lengths, names: Sequence[str]) -> Iterator[tuple[str, int, int | Length]]:
    for name in names:
        for axis, dim in enumerate(lengths.shape(name) or ()):
            yield name, axis, dim


def assert_true(model: onnx.ModelProto) -> tuple[int, int]:
    """All that is said of the model's lengths is true; how many were traced, and how many not."""
    names = [name for node in model.graph.node for name in node.output]
    made = values(model, names)
    lengths = Lengths(read(model))
    for name in names:
        shape = lengths.shape(name)
        assert shape is None or {len(shape)} == {array[name].ndim for array in made}, name
    for name, axis, dim in claims(lengths, names):
        for array in made:
            assert true_length(dim, array) == array[name].shape[axis], (name, axis, dim)
    for node in read(model).graph.nodes:
        given = lengths.given_by(node)
        for array in made if given is not None else ():
            said = [true_length(dim, array) for dim in given or ()]
            assert said == array[node.outputs[0]].tolist(), node
    traced = [
        isinstance(d, int) or d.value in ("x", "z", "ids") for *_, d in claims(lengths, names)
    ]
    unknown = sum(lengths.shape(name) is None for name in names)
    return sum(traced), len(traced) - sum(traced) + unknown


@pytest.mark.parametrize("opset", [11, 13, 17, 21])
def test_random_graphs_have_the_lengths_that_are_claimed(opset: int) -> None:
    traced = untraced = 0
    for seed in range(30):
        model = Shapes(seed, opset).model(16)
        onnx.checker.check_model(model, full_check=True)
        found = assert_true(model)
        traced, untraced = traced + found[0], untraced + found[1]
    assert traced > 1500
    assert traced > 4 * untraced


def without_inference(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise onnx.shape_inference.InferenceError("not for this model")

    monkeypatch.setattr(onnx.shape_inference, "infer_shapes", fail)


@pytest.mark.parametrize("opset", [11, 21])
def test_they_are_true_where_the_file_and_inference_say_nothing(
    opset: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_inference(monkeypatch)
    traced = sum(assert_true(Shapes(seed, opset).model(16))[0] for seed in range(30, 50))
    assert traced > 300


def test_the_comparison_with_the_truth_can_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Shapes(1, 17).model(16)
    assert_true(model)
    right = Lengths.shape

    def wrong(self: Lengths, name: str) -> Dims | None:
        return tuple(reversed(right(self, name) or ())) or None

    monkeypatch.setattr(Lengths, "shape", wrong)
    with pytest.raises(AssertionError):
        assert_true(model)


def made_by(build: Build, opset: int = 17) -> tuple[onnx.ModelProto, str]:
    """A model of x (batch, n, 4), z (batch, m, 4) and ids (batch, n), and the last value built.

    Its output is that value's count of elements, so that the file states nothing of its shape.
    """
    net = Net()
    last = build(net)
    net.node("Size", last, out="size")
    io = {"x": (FLOAT, ("batch", "n", 4)), "z": (FLOAT, ("batch", "m", 4))}
    sources = [
        helper.make_tensor_value_info(name, kind, dims)
        for name, (kind, dims) in {**io, "ids": (INT64, ("batch", "n"))}.items()
    ]
    result = helper.make_tensor_value_info("size", INT64, ())
    graph = helper.make_graph(net.nodes, "made", sources, [result], net.initializers)
    opsets = [helper.make_opsetid("", opset)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10), last


def dims_of(build: Build, opset: int = 17) -> Dims | None:
    """What is said of the last value built, which is also proved to be true."""
    model, last = made_by(build, opset)
    assert_true(model)
    return Lengths(read(model)).shape(last)


def ints(net: Net, *numbers: int) -> str:
    return net.constant(np.array(numbers, np.int64))


B, N, M = Length("x", 0), Length("x", 1), Length("z", 1)


def part(net: Net, x: str, axis: int) -> str:
    return net.node("Gather", net.node("Shape", x), ints(net, axis), axis=0)


def by_arithmetic(net: Net) -> str:
    target = net.node("Concat", part(net, "x", 0), ints(net, -1, 2, 2), axis=0)
    return net.node("Reshape", "x", target)


def heads_and_back(net: Net) -> str:
    """What attention does: split, turn, product, turn back, merge."""
    heads = net.node("Reshape", "x", ints(net, 0, 0, 2, 2))
    turned = net.node("Transpose", heads, perm=[0, 2, 1, 3])
    other = net.node("Transpose", heads, perm=[0, 2, 3, 1])
    mixed = net.node("MatMul", net.node("MatMul", turned, other), turned)
    back = net.node("Transpose", mixed, perm=[0, 2, 1, 3])
    return net.node("Reshape", back, ints(net, 0, 0, -1))


def merged_heads(net: Net) -> str:
    """Heads and tokens as one axis, and the lengths of the input again."""
    heads = net.node("Reshape", "x", ints(net, 0, 0, 2, 2))
    turned = net.node("Transpose", heads, perm=[0, 2, 1, 3])
    one = net.node("Reshape", turned, ints(net, 0, -1, 2))
    target = net.node("Concat", part(net, "x", 0), part(net, "x", 1), ints(net, 4), axis=0)
    return net.node("Reshape", one, target)


TRACED: dict[str, tuple[Build, Dims]] = {
    "0 copies": (lambda net: net.node("Reshape", "x", ints(net, 0, 0, 2, 2)), (B, N, 2, 2)),
    "-1 of a number": (lambda net: net.node("Reshape", "x", ints(net, 0, 0, -1, 2)), (B, N, 2, 2)),
    "-1 of a length": (lambda net: net.node("Reshape", "x", ints(net, 0, -1, 4)), (B, N, 4)),
    "-1 by arithmetic": (by_arithmetic, (B, N, 2, 2)),
    "attention": (heads_and_back, (B, N, 4)),
    "merged heads": (merged_heads, (B, N, 4)),
    "by another's shape": (
        lambda net: net.node(
            "Reshape", net.node("Reshape", "x", ints(net, -1)), net.node("Shape", "x")
        ),
        (B, N, 4),
    ),
    "negative axes": (
        lambda net: net.node("ReduceMean", "x", axes=[-1, -3], keepdims=1),
        (1, N, 1),
    ),
    "negative axis of a gather": (
        lambda net: net.node("Gather", "x", ints(net, 0, 1, 2), axis=-1),
        (B, N, 3),
    ),
    "one picked by a scalar": (
        lambda net: net.node("Gather", "x", net.constant(np.array(0)), axis=-2),
        (B, 4),
    ),
    "a table looked up": (
        lambda net: net.node("Gather", net.weight(9, 3), "ids"),
        (Length("ids", 0), Length("ids", 1), 3),
    ),
    "a reversed transposition": (lambda net: net.node("Transpose", "x"), (4, N, B)),
    "a length spread": (
        lambda net: net.node(
            "Expand",
            net.weight(1, 1),
            net.node("Concat", part(net, "x", 1), part(net, "z", 1), axis=0),
        ),
        (N, M),
    ),
    "a scalar": (lambda net: net.node("ReduceMean", "x", keepdims=0), ()),
    "a scalar made wide": (
        lambda net: net.node("Unsqueeze", net.node("ReduceMax", "x", keepdims=0), ints(net, 0, -1)),
        (1, 1),
    ),
    "a scalar added": (
        lambda net: net.node("Add", "x", net.node("ReduceMean", "x", keepdims=0)),
        (B, N, 4),
    ),
    "a mean taken off": (
        lambda net: net.node("Sub", "x", net.node("ReduceMean", "x", axes=[1])),
        (B, N, 4),
    ),
}


@pytest.mark.parametrize("case", TRACED)
def test_what_is_traced_to_the_inputs(case: str) -> None:
    build, wanted = TRACED[case]
    assert dims_of(build) == wanted


@pytest.mark.parametrize(
    "build",
    [
        lambda net: net.node("Add", "x", "z"),
        lambda net: net.node("Where", net.node("Greater", "x", "z"), "x", "z"),
        lambda net: net.node("Sum", "z", "x", "z"),
        lambda net: net.node("Expand", "x", net.node("Shape", "z")),
    ],
    ids=["Add", "Where", "Sum", "Expand"],
)
def test_of_two_lengths_that_may_be_one_neither_is_claimed(build: Build) -> None:
    """At the sizes here the sum is as long as x once, as long as z once."""
    model, last = made_by(build)
    shape = Lengths(read(model)).shape(last)
    assert shape is not None
    assert shape[1] not in (N, Length("z", 1))
    assert shape[2] == 4
    assert_true(model)


def test_a_batch_is_not_claimed_for_a_product_of_two_stacks() -> None:
    def build(net: Net) -> str:
        return net.node("MatMul", "x", net.node("Transpose", "z", perm=[0, 2, 1]))

    model, last = made_by(build)
    assert_true(model)
    shape = Lengths(read(model)).shape(last)
    assert shape is not None
    assert shape[0] not in (B, Length("z", 0))


@pytest.mark.parametrize(
    "wanted", [(-1, 4), (-1, 2), (0, -1), (-1,), (4, -1, 1)], ids=lambda wanted: str(wanted)
)
def test_a_product_of_lengths_is_a_length_of_its_own(wanted: tuple[int, ...]) -> None:
    model, last = made_by(lambda net: net.node("Reshape", "x", ints(net, *wanted)))
    assert_true(model)
    shape = Lengths(read(model)).shape(last)
    assert shape is not None
    axis = wanted.index(-1)
    assert shape[axis] == Length(last, axis)


def test_a_length_is_not_divided_by_one_that_it_does_not_hold() -> None:
    """Rows and tokens as one axis, then rows taken out of it again: what is left is unknown."""

    def build(net: Net) -> str:
        flat = net.node("Reshape", "x", ints(net, -1, 4))
        target = net.node("Concat", part(net, "x", 0), ints(net, -1, 4), axis=0)
        return net.node("Reshape", flat, target)

    model, last = made_by(build)
    assert_true(model)
    assert Lengths(read(model)).shape(last) == (B, Length(last, 1), 4)


def table(net: Net, *rows: Sequence[int]) -> str:
    return net.constant(np.array(rows, np.int64))


def row_of_a_table(net: Net) -> str:
    return net.node("Gather", table(net, [0, -1], [1, 2]), net.constant(np.array(0)))


def slice_of_a_table(net: Net) -> str:
    bounds = [ints(net, n) for n in (0, 1, 0)]
    return net.node(
        "Squeeze", net.node("Slice", table(net, [0, -1], [1, 2]), *bounds), ints(net, 0)
    )


def joined_tables(net: Net) -> str:
    both = net.node("Concat", table(net, [0], [1]), table(net, [-1], [2]), axis=1)
    return net.node("Gather", both, net.constant(np.array(0)))


@pytest.mark.parametrize(
    "target",
    (row_of_a_table, slice_of_a_table, joined_tables),
)
def test_rows_of_integer_tables_are_not_taken_for_lists(
    target: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_inference(monkeypatch)
    dims_of(lambda net: net.node("Reshape", "x", target(net)))


@pytest.mark.parametrize("keepdims", [0, 1])
@pytest.mark.parametrize("inferred", [True, False])
@pytest.mark.parametrize("empty_is_none", [0, 1])
def test_a_reduction_over_an_empty_list_of_axes(
    empty_is_none: int,
    inferred: bool,
    keepdims: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is one over all axes, or none, as an attribute says."""
    if not inferred:
        without_inference(monkeypatch)
    more: dict[str, Any] = {"keepdims": keepdims, "noop_with_empty_axes": empty_is_none}
    dims_of(lambda net: net.node("ReduceSum", "x", ints(net), **more))


def test_an_empty_list_in_a_literal_is_empty() -> None:
    def build(net: Net) -> str:
        net.nodes.append(helper.make_node("Constant", [], ["none"]))
        net.nodes[-1].attribute.add(name="value_ints", type=onnx.AttributeProto.INTS)
        return net.node("ReduceSum", "x", "none", keepdims=1, noop_with_empty_axes=1)

    dims_of(build)


@pytest.mark.parametrize(
    ("bounds", "wanted"),
    [
        ({}, (B, N, 4)),
        ({"start": 1}, (N, 4)),
        ({"end": -1}, (B, N)),
        ({"start": -2, "end": -1}, (N,)),
        ({"start": -9, "end": 9}, (B, N, 4)),
        ({"start": 2, "end": 1}, ()),
    ],
)
def test_a_shape_gives_the_lengths_between_its_bounds(bounds: dict[str, Any], wanted: Dims) -> None:
    model, _ = made_by(lambda net: net.node("Shape", "x", **bounds))
    assert_true(model)
    source = read(model)
    assert Lengths(source).given_by(source.graph.nodes[0]) == wanted


def test_nothing_is_given_by_other_nodes_or_of_unknown_values() -> None:
    model, _ = made_by(lambda net: net.node("Shape", net.node("Squeeze", "z")))
    source = read(model)
    assert {Lengths(source).given_by(node) for node in source.graph.nodes} == {None}
