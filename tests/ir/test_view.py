"""The dataflow view of an ONNX graph: derivatives, captured values, constants, scopes."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from blockfold.ir.graph import Kind, Node
from blockfold.ir.onnx_file import read
from blockfold.ir.onnx_view import SCOPES_KEY, view
from blockfold.tests.networks import captured_stream, residual_mlp, save_external


def node_of(op: str, inputs: int, outputs: int = 1, **attributes: Any) -> Node:
    """One node as the view shows it; its types need not fit."""
    names = [f"i{k}" for k in range(inputs)], [f"o{k}" for k in range(outputs)]
    proto = helper.make_node(op, *names, name=op, **attributes)
    ends = [[helper.make_tensor_value_info(n, 1, None) for n in side] for side in names]
    graph = helper.make_graph([proto], "one", ends[0], ends[1])
    return view(helper.make_model(graph)).nodes[0]


@pytest.mark.parametrize(
    ("op", "derivative"),
    [
        ("MatMul", (True, True)),
        ("Add", (True, True)),
        ("Shape", (False,)),
        ("Size", (False,)),
        ("Gather", (True, False)),
        ("GatherElements", (True, False)),
        ("Where", (False, True, True)),
        ("Greater", (False, False)),
        ("Equal", (False, False)),
        ("Not", (False,)),
        ("ArgMax", (False,)),
        ("NonZero", (False,)),
        ("Range", (False, False, False)),
        ("ConstantOfShape", (False,)),
        ("Reshape", (True, False)),
        ("Expand", (True, False)),
        ("Slice", (True, False, False, False)),
        ("ScatterND", (True, False, True)),
        ("ReduceMean", (True, False)),
        ("NotAnOperatorAnyoneKnows", (True, True)),
    ],
)
def test_where_a_derivative_passes(op: str, derivative: tuple[bool, ...]) -> None:
    node = node_of(op, len(derivative))
    assert node.derivative == derivative
    assert node.smooth == (("o0",) if any(derivative) else ())


@pytest.mark.parametrize(
    ("kind", "passes"),
    [
        (TensorProto.FLOAT, True),
        (TensorProto.FLOAT16, True),
        (TensorProto.BFLOAT16, True),
        (TensorProto.DOUBLE, True),
        (TensorProto.INT64, False),
        (TensorProto.INT32, False),
        (TensorProto.UINT8, False),
        (TensorProto.INT4, False),
        (TensorProto.BOOL, False),
        (TensorProto.STRING, False),
    ],
)
def test_a_cast_passes_a_derivative_to_floats_only(kind: int, passes: bool) -> None:
    node = node_of("Cast", 1, to=kind)
    assert node.derivative == (passes,)
    assert node.smooth == (("o0",) if passes else ())


@pytest.mark.parametrize(("op", "smooth"), [("TopK", 1), ("MaxPool", 1), ("Dropout", 1)])
def test_indices_and_masks_beside_an_output_are_not_smooth(op: str, smooth: int) -> None:
    node = node_of(op, 2, outputs=2)
    assert node.smooth == ("o0",)[:smooth]
    assert node_of("Split", 2, outputs=2).smooth == ("o0", "o1")


@pytest.mark.parametrize(
    ("op", "kind", "axis"),
    [
        ("Relu", Kind.POINTWISE, None),
        ("Add", Kind.ADD, None),
        ("LayerNormalization", Kind.NORM, -1),
        ("BatchNormalization", Kind.NORM, 1),
        ("Transpose", Kind.PERMUTE, None),
        ("ReduceMean", Kind.REDUCE, None),
        ("Gather", Kind.LOOKUP, None),
        ("Shape", Kind.SHAPE, None),
        ("Conv", Kind.OTHER, 1),
        ("MatMul", Kind.OTHER, -1),
        ("Softmax", Kind.OTHER, None),
    ],
)
def test_kinds_and_channel_axes(op: str, kind: Kind, axis: int | None) -> None:
    node = node_of(op, 2)
    assert (node.kind, node.channel_axis) == (kind, axis)


def test_what_the_bodies_of_an_if_read_are_inputs_too() -> None:
    graph = read(captured_stream()).graph
    (choice,) = (node for node in graph.nodes if node.op == "If")
    assert choice.inputs[1:] == ("h1",)
    assert choice.derivative[1:] == (True,)
    assert choice in graph.consumers["h1"]


def test_names_that_a_body_defines_itself_are_not_captured() -> None:
    """Its inputs, weights and earlier results hide outer values; a body inside a body counts."""
    value = helper.make_tensor_value_info("r", 1, None)
    inner_if = helper.make_node(
        "If",
        ["flag"],
        ["r"],
        then_branch=helper.make_graph(
            [helper.make_node("Add", ["deep", "own"], ["r"])], "t", [], [value]
        ),
        else_branch=helper.make_graph([helper.make_node("Neg", ["own"], ["r"])], "e", [], [value]),
    )
    weight = numpy_helper.from_array(np.zeros(1, np.float32), "weight")
    body = helper.make_graph(
        [helper.make_node("Mul", ["arg", "weight"], ["own"]), inner_if],
        "body",
        [helper.make_tensor_value_info("arg", 1, None)],
        [value],
        [weight],
    )
    node = node_of("Loop", 1, body=body)
    assert node.inputs == ("i0", "deep", "flag")


def test_weights_and_literals_are_constants() -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    nodes = [
        helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(array)),
        helper.make_node("Constant", [], ["ints"], value_ints=[1, 2, 3]),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    ends = [[helper.make_tensor_value_info(n, 1, ("n", 2))] for n in "xy"]
    weight = numpy_helper.from_array(np.ones((2, 2), np.float16), "w")
    graph = view(helper.make_model(helper.make_graph(nodes, "g", ends[0], ends[1], [weight])))
    assert set(graph.constants) == {"c", "ints", "w"}
    c, w = graph.constants["c"], graph.constants["w"]
    assert (c.dtype, c.shape, c.elements, c.size_bytes) == ("float32", (2, 3), 6, 24)
    assert (w.dtype, w.elements, w.size_bytes) == ("float16", 4, 8)
    assert graph.constants["ints"].elements == 3
    assert graph.inputs == ("x",)
    assert graph.parameters_stored == 13


def test_a_weight_that_is_also_listed_as_input_is_no_input() -> None:
    model = residual_mlp(1)
    weight = model.graph.initializer[0]
    model.graph.input.append(
        helper.make_tensor_value_info(weight.name, weight.data_type, weight.dims)
    )
    assert view(model).inputs == ("x",)


def test_shapes_are_completed_by_inference() -> None:
    graph = read(residual_mlp(1, d=8)).graph
    assert graph.value("h0").dtype == "float32"
    assert graph.value("h0").shape == ("batch", 12, 8)
    assert graph.value("no such value").shape is None


def test_external_weights_count_the_bytes_of_their_file(tmp_path: Any) -> None:
    model = residual_mlp(1)
    path = save_external(model, tmp_path)
    inline, external = read(model).graph, read(path).graph
    assert {n: c.size_bytes for n, c in external.constants.items()} == {
        n: c.size_bytes for n, c in inline.constants.items()
    }
    assert external.values == inline.values or external.constants.keys() == inline.constants.keys()


@pytest.mark.parametrize(
    ("name", "metadata", "scope"),
    [
        ("/blocks.0/attn/MatMul", None, ("blocks.0", "attn")),
        ("/MatMul", None, ()),
        ("MatMul_3", None, ()),
        ("node", "['', 'layers.0', 'layers.0.mlp', 'linear_3']", ("layers.0", "layers.0.mlp")),
        ("/a/b/MatMul", "['encoder', 'add']", ("encoder",)),
        ("node", "not a list", ()),
        ("node", "['unfinished", ()),
        ("node", "[]", ()),
        ("node", "__import__('os').getcwd()", ()),
    ],
)
def test_scopes_that_exporters_leave(
    name: str, metadata: str | None, scope: tuple[str, ...]
) -> None:
    proto = helper.make_node("Relu", ["x"], ["y"], name=name)
    if metadata is not None:
        proto.metadata_props.add(key=SCOPES_KEY, value=metadata)
    ends = [[helper.make_tensor_value_info(n, 1, ("n", 2))] for n in "xy"]
    model = helper.make_model(helper.make_graph([proto], "g", ends[0], ends[1]))
    assert view(model).nodes[0].scope == scope


@pytest.mark.parametrize("text", ["7", "None", "{1: 2}"])
def test_odd_scope_metadata_is_no_scope(text: str) -> None:
    proto = helper.make_node("Relu", ["x"], ["y"], name="n")
    proto.metadata_props.add(key=SCOPES_KEY, value=text)
    ends = [[helper.make_tensor_value_info(n, 1, ("n", 2))] for n in "xy"]
    model = onnx.helper.make_model(helper.make_graph([proto], "g", ends[0], ends[1]))
    assert view(model).nodes[0].scope == ()
