"""What a graph needs to run, and what its values depend on."""

from __future__ import annotations

from blockfold.ir.graph import Graph, Value
from blockfold.ir.onnx_file import read
from blockfold.tests.networks import FLOAT, Net, masked_encoder, residual_mlp, shared_mask


def ops(graph: Graph, indices: set[int]) -> list[str]:
    return sorted(graph.nodes[index].op for index in indices)


def measured() -> Graph:
    """`used` reads the length of `costly`, a product no one reads for its numbers."""
    net = Net()
    net.node("MatMul", "x", net.weight(4, 4), out="costly")
    net.node("Shape", "costly", out="dims")
    net.node("Reshape", "x", "dims", out="used")
    io = {"x": (FLOAT, ("batch", 4))}
    return read(net.model(io, {"used": (FLOAT, ("batch", 4))})).graph


def test_a_length_is_no_reason_to_compute_the_numbers() -> None:
    graph = measured()
    assert ops(graph, graph.needed_by(["used"])) == ["Reshape", "Shape"]
    assert ops(graph, graph.needed_by(["used", "costly"])) == ["MatMul", "Reshape", "Shape"]


def test_what_is_given_need_not_be_made() -> None:
    graph = read(residual_mlp(3)).graph
    alive = graph.needed_by(graph.outputs, given=frozenset({"h1"}))
    assert {graph.nodes[index].scope[0] for index in alive} == {"blocks.2", "head"}
    assert graph.needed_by(graph.outputs) == set(range(len(graph.nodes)))


def test_lengths_of_inputs_do_not_depend_on_their_values() -> None:
    graph = measured()
    assert "dims" not in graph.input_dependent
    assert {"costly", "used"} <= graph.input_dependent
    positions = read(masked_encoder()).graph
    made = {node.op: node.outputs[0] for node in positions.nodes if node.op == "Range"}
    assert made["Range"] not in positions.input_dependent


def test_a_derivative_stops_at_comparisons_and_lengths() -> None:
    graph = read(shared_mask()).graph
    reached = graph.descendants(["x"])
    assert {"h0", "logits"} <= reached
    assert reached.isdisjoint({"gate", "causal", "dims"})
    assert "x" in graph.ancestors(["logits"])
    assert graph.ancestors(["logits"]) >= {"gate", "causal"}


def test_parameters_are_counted_once_however_often_they_are_read() -> None:
    net = Net()
    weight = net.weight(4, 4)
    net.node("MatMul", net.node("MatMul", "x", weight), weight, out="y")
    io = (FLOAT, ("batch", 4))
    graph = read(net.model({"x": io}, {"y": io})).graph
    assert graph.parameters(range(2)) == 16


def test_static_dimensions_agree_unless_two_numbers_differ() -> None:
    shapes: dict[str, tuple[int | str | None, ...] | None] = {
        "a": ("batch", 4),
        "b": ("rows", 4),
        "c": ("batch", 5),
        "d": ("batch", 4, 1),
        "e": (2, 4),
        "u": None,
    }
    values = {name: Value(name, "float32", shape) for name, shape in shapes.items()}
    graph = Graph((), values, (), (), {})
    assert graph.static_dims_agree("a", "b")
    assert graph.static_dims_agree("a", "e")
    assert graph.static_dims_agree("a", "u")
    assert not graph.static_dims_agree("a", "c")
    assert not graph.static_dims_agree("a", "d")


def test_whole_numbers_and_unknown_types_are_told_apart() -> None:
    assert Value("x", "bfloat16").is_float
    assert Value("x", "int64").is_known_not_float
    assert not Value("x").is_float
    assert not Value("x").is_known_not_float
