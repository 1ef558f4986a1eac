"""Models made to crash, drown or escape: each was found by fuzzing or by hand, and is refused now,
or read in a moment.
"""

from __future__ import annotations

import resource
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from blockfold.ir.blocks import anatomy
from blockfold.ir.cuts import find_chains
from blockfold.ir.errors import BadInput, Unsupported
from blockfold.ir.onnx_dims import Lengths
from blockfold.ir.onnx_file import read
from blockfold.ir.onnx_inference import Bounds
from blockfold.ir.onnx_linear import linear_into, matrix
from blockfold.ir.spans import prove
from blockfold.tests.networks import BUILDERS, FLOAT, INT64, Net, built, residual_mlp, save_external

ANY = ("p", "q", "r")
SMALL_BYTES = 200 << 20


def model(
    nodes: Sequence[onnx.NodeProto],
    out: str,
    weights: Sequence[onnx.TensorProto] = (),
    **inputs: tuple[int, Sequence[int | str]],
) -> onnx.ModelProto:
    feeds = {"x": (FLOAT, ("b", 4, 8)), **inputs}
    infos = [helper.make_tensor_value_info(name, *kind) for name, kind in feeds.items()]
    made = [helper.make_tensor_value_info(out, FLOAT, ANY)]
    graph = helper.make_graph(nodes, "g", infos, made, list(weights))
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def weight(name: str, values: object) -> onnx.TensorProto:
    return numpy_helper.from_array(np.asarray(values), name)


def row(op: str, count: int, first: str, more: Callable[[str], list[str]]) -> list[onnx.NodeProto]:
    """Nodes n0, n1, ..., each of which reads the one before it as `more` says."""
    names = [first, *(f"n{i}" for i in range(count))]
    attributes: dict[str, Any] = {"axis": 0} if op == "Concat" else {}
    return [helper.make_node(op, more(a), [b], **attributes) for a, b in pairwise(names)]


def look_into(proto: onnx.ModelProto) -> None:
    """As inspect does."""
    found = read(proto)
    Lengths(found)
    for chain in find_chains(found.graph):
        stream = anatomy(found.graph, chain)
        for unit in stream.units:
            prove(found.graph, stream, unit.start, unit.stop)


def drowning() -> dict[str, onnx.ModelProto]:
    """A few kB each, which cost gigabytes or hours when they were found."""
    shape = helper.make_node("Shape", ["x"], ["s"])
    doubled = [shape, *row("Concat", 25, "s", lambda a: [a] * 8)]
    use = helper.make_node("Reshape", ["x", "n24"], ["y"])
    body = helper.make_graph([*doubled, use], "b", [], [helper.make_tensor_value_info("y", 1, ANY)])
    choice = helper.make_node("If", ["c"], ["y"], then_branch=body, else_branch=body)
    inner = row("Concat", 12, "a", lambda a: [a] * 8)
    call = [shape, helper.make_node("f", ["s"], ["t"], domain="own")]
    called = model([*call, helper.make_node("Reshape", ["x", "t"], ["y"])], "y")
    opsets = [helper.make_opsetid("", 17)]
    called.functions.append(helper.make_function("own", "f", ["a"], ["n11"], inner, opsets))
    index = helper.make_node("Cast", ["x"], ["i"], to=INT64)
    ranks = [index, *row("Gather", 30, "i", lambda a: [a, a])]
    constants = [weight(f"c{i}", [1.0]) for i in range(4000)]
    folded = row("Add", 3999, "c0", lambda a: [a, f"c{int(a[1:]) + 1}"])
    cut = helper.make_node("Slice", ["x", "l", "l", "l"], ["z"])
    return {
        "lists that double": model([*doubled, use], "y"),
        "lists that double in a body": model([choice], "y", c=(TensorProto.BOOL, ())),
        "lists that double in a function": called,
        "ranks that double": model([*ranks, helper.make_node("Cast", ["n29"], ["y"], to=1)], "y"),
        "a Slice along very many axes": model(
            [cut, helper.make_node("Relu", ["z"], ["y"])], "y", l=(INT64, (10**8,))
        ),
        "arithmetic on very many constants": model(
            [*folded, helper.make_node("Add", ["x", "n3998"], ["y"])], "y", constants
        ),
        "no opinion on channels far and wide": model(
            [
                node
                for i in range(600)
                for node in (
                    helper.make_node("Softmax", [f"h{i}" if i else "x"], [f"s{i}"]),
                    helper.make_node("Add", [f"h{i}" if i else "x", f"s{i}"], [f"h{i + 1}"]),
                )
            ],
            "h600",
        ),
        "a value read four thousand times by one node": model(
            [
                *(helper.make_node("Softmax", ["x"], [f"s{i}"]) for i in range(4000)),
                helper.make_node("Sum", [f"s{i}" for i in range(4000)], ["y"]),
            ],
            "y",
        ),
    }


@pytest.mark.parametrize("case", drowning())
def test_a_small_file_takes_little_memory(case: str) -> None:
    """And little time: each of these would outlast the tests."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    look_into(drowning()[case])
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10 < SMALL_BYTES


def test_inference_sees_all_of_sound_networks() -> None:
    for name in BUILDERS:
        bounds = Bounds(built(name).graph)
        assert all(bounds.take(node) for node in built(name).graph.node)


def calling(functions: dict[str, list[str]]) -> onnx.ModelProto:
    """A network whose Relus are calls of the first of these functions, which call others."""
    proto = residual_mlp(2, 4)
    opsets = [helper.make_opsetid(domain, 17) for domain in ("", "own")]
    for name, called in functions.items():
        names = ["a", *(f"m{i}" for i in range(len(called)))]
        nodes = [
            helper.make_node(op, [x], [y], domain="" if op == "Relu" else "own")
            for op, (x, y) in zip(called, pairwise(names), strict=True)
        ]
        made = helper.make_function("own", name, ["a"], [names[-1]], nodes, opsets)
        proto.functions.append(made)
    proto.opset_import.append(helper.make_opsetid("own", 17))
    for node in proto.graph.node:
        if node.op_type == "Relu":
            node.op_type, node.domain = next(iter(functions)), "own"
    return proto


def test_functions_that_never_end_are_refused() -> None:
    with pytest.raises(Unsupported, match="calls itself"):
        read(calling({"f": ["f"]}))
    with pytest.raises(Unsupported, match="calls itself"):
        read(calling({"f": ["g"], "g": ["Relu", "f"]}))
    doubling = {f"f{i}": [f"f{i + 1}"] * 2 for i in range(60)} | {"f60": ["Relu"]}
    with pytest.raises(Unsupported, match="stand for more than 200,000 nodes"):
        read(calling(doubling))
    assert read(calling({"f": ["g", "g"], "g": ["Relu"]})).graph.outputs == ("logits",)


Change = Callable[[onnx.TensorProto], object]


def _cut(tensor: onnx.TensorProto) -> None:
    tensor.raw_data = tensor.raw_data[:-4]


def _typed(tensor: onnx.TensorProto) -> None:
    tensor.float_data.extend([1.0] * 3)
    tensor.ClearField("raw_data")


@pytest.mark.parametrize(
    "change",
    [
        _cut,
        _typed,
        lambda tensor: tensor.segment.SetInParent(),
        lambda tensor: tensor.dims.append(2),
    ],
)
def test_weights_that_lack_numbers_are_refused(change: Change) -> None:
    proto = residual_mlp(1)
    change(proto.graph.initializer[0])
    with pytest.raises(BadInput, match="'w0' holds more or fewer numbers than it says"):
        read(proto)


def outside(name: str) -> onnx.TensorProto:
    tensor = TensorProto(name=name, data_type=FLOAT, dims=[8], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="weights")
    return tensor


def test_literals_and_bodies_hold_their_own_numbers(tmp_path: Path) -> None:
    """What lies in other files is checked for weights of the main graph alone."""
    add = helper.make_node("Add", ["x", "k"], ["y"])
    literal = model([helper.make_node("Constant", [], ["k"], value=outside("k")), add], "y")
    made = [helper.make_tensor_value_info("r", FLOAT, ANY)]
    inside = [helper.make_node("Add", ["x", "k"], ["r"])]
    body = helper.make_graph(inside, "b", [], made, [outside("k")])
    choice = helper.make_node("If", ["c"], ["y"], then_branch=body, else_branch=body)
    sparse = model([add], "y")
    sparse.graph.sparse_initializer.add().values.CopyFrom(outside("k"))
    (tmp_path / "weights").write_bytes(bytes(32))
    for proto in (literal, model([choice], "y", c=(TensorProto.BOOL, ())), sparse):
        path = tmp_path / "model.onnx"
        path.write_bytes(proto.SerializeToString())
        with pytest.raises(BadInput, match="'k', a literal or inside a body, lies in another file"):
            read(path)


def test_external_weights_are_as_long_as_they_say(tmp_path: Path) -> None:
    """Where the length is not stated, the rest of the file is not the weight's."""
    path = save_external(residual_mlp(1), tmp_path)
    proto = onnx.load(path, load_external_data=False)
    for tensor in proto.graph.initializer:
        kept = [(e.key, e.value) for e in tensor.external_data if e.key != "length"]
        del tensor.external_data[:]
        for key, value in kept:
            tensor.external_data.add(key=key, value=value)
    path.write_bytes(proto.SerializeToString())
    found, whole = read(path), read(residual_mlp(1))
    linear = linear_into(found, "h0")
    assert linear is not None
    np.testing.assert_array_equal(matrix(found, linear), matrix(whole, linear))


def test_references_outside_functions_are_refused() -> None:
    node = helper.make_node("Softmax", ["x"], ["y"])
    node.attribute.add(name="axis", type=onnx.AttributeProto.INT, ref_attr_name="a")
    with pytest.raises(BadInput, match="refers to an attribute of a function"):
        read(model([node], "y"))


@pytest.mark.parametrize("name", ["\x1b[31mred", "a\x07", "\x9b2J"])
def test_names_that_steer_a_terminal_are_refused(name: str) -> None:
    proto = residual_mlp(1)
    proto.graph.node[0].name = name
    with pytest.raises(BadInput, match="holds control characters"):
        read(proto)


@pytest.mark.parametrize("text", ["(" * 10_000, "-" * 10_000 + "1", "1" + "+1" * 9_000, "{[]:1}"])
def test_scopes_that_are_no_list_are_no_scopes(text: str) -> None:
    proto = residual_mlp(1)
    for node in proto.graph.node:
        node.name = ""
        node.metadata_props.add(key="pkg.torch.onnx.name_scopes", value=text)
    assert not any(node.scope for node in read(proto).graph.nodes)


@pytest.mark.parametrize(
    ("op", "attributes"),
    [
        ("Transpose", {"perm": [0, 1]}),
        ("Transpose", {"perm": [0, 1, 7]}),
        ("ReduceMean", {"axes": [9]}),
        ("Gather", {"axis": -9}),
        ("Concat", {"axis": 5}),
        ("Shape", {"start": -(2**62)}),
    ],
)
def test_attributes_that_make_no_sense_are_no_crash(op: str, attributes: dict[str, Any]) -> None:
    reads = ["x", "i"] if op == "Gather" else ["x"]
    node = helper.make_node(op, reads, ["z"], **attributes)
    last = helper.make_node("Cast", ["z"], ["y"], to=1)
    look_into(model([node, last], "y", [weight("i", [0])]))


def test_axes_that_make_no_sense_are_no_crash() -> None:
    for op in ("Unsqueeze", "Squeeze"):
        for axes in ([0, 0], [99], [-99], list(range(1000))):
            look_into(model([helper.make_node(op, ["x", "a"], ["y"])], "y", [weight("a", axes)]))


def test_a_bias_of_another_width_is_no_bias() -> None:
    net = Net()
    product = net.node("MatMul", "x", net.weight(8, 8))
    wrong = net.node("Add", product, net.constant(np.zeros((2, 8), np.float32)))
    net.node("Add", "x", wrong, out="y")
    proto = model(net.nodes, "y", net.initializers)
    assert linear_into(read(proto), "y") is None


def test_a_literal_scale_of_any_spelling_is_read() -> None:
    """Constant nodes give their number as a tensor, or plainly."""
    for literal in ({"value": weight("", np.float32(2.0))}, {"value_float": 2.0}):
        net = Net()
        product = net.node("MatMul", "x", net.weight(8, 8))
        net.nodes.append(helper.make_node("Constant", [], ["two"], **literal))
        net.node("Add", "x", net.node("Mul", product, "two"), out="y")
        found = read(model(net.nodes, "y", net.initializers))
        linear = linear_into(found, "y")
        assert linear is not None
        plain = numpy_helper.to_array(net.initializers[0])
        np.testing.assert_allclose(matrix(found, linear), 2 * plain)


def test_a_graph_whose_name_is_no_text(tmp_path: Path) -> None:
    """It is of no account; what is read of it otherwise is as ever."""
    model = residual_mlp(2, 4)
    model.graph.name = "named"
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString().replace(b"named", b"nam\xfcd"))
    found = read(path)
    assert found.graph.value("h0").dtype == "float32"
    assert len(anatomy(found.graph, find_chains(found.graph)[0]).blocks) == 2
