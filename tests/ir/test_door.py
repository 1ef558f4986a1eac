"""The editing door: no edit changes no byte, an edit changes what its delta names and nothing else.

The check behind this, `diff`, is itself checked against planted changes of every kind.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from onnx import TensorProto, helper, numpy_helper

from blockfold.ir.onnx_diff import diff
from blockfold.ir.onnx_door import Delta, apply, insert, is_captured, rewire
from blockfold.ir.onnx_file import OnnxModel, read, write
from blockfold.tests.networks import (
    BUILDERS,
    built,
    captured_stream,
    compare,
    residual_mlp,
    run,
    samples,
    save_external,
)


def decorated(ir: int = 10) -> onnx.ModelProto:
    """A residual MLP with all that a careless rewrite loses."""
    model = residual_mlp(3, ir=ir)
    model.doc_string, model.domain, model.model_version = "what it is for", "org.example", 7
    model.producer_name, model.producer_version = "exporter", "1.2"
    model.metadata_props.add(key="licence", value="free")
    model.metadata_props.add(key="author", value="someone")
    model.opset_import.add(domain="com.example", version=3)
    graph = model.graph
    graph.doc_string = "the graph"
    graph.input[0].doc_string = "tokens"
    if ir >= 10:
        graph.metadata_props.add(key="graph", value="note")
        for node in graph.node:
            node.metadata_props.add(key="made_by", value=node.name)
    for node in graph.node:
        node.doc_string = f"does {node.op_type}"
    graph.value_info.append(
        helper.make_tensor_value_info("h0", TensorProto.FLOAT, ("batch", 12, 8))
    )
    graph.value_info.append(
        helper.make_tensor_value_info("h1", TensorProto.FLOAT, ("batch", 12, 8))
    )
    for name in ("h0", "v9"):
        note = graph.quantization_annotation.add(tensor_name=name)
        note.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="unused")
    graph.initializer.append(numpy_helper.from_array(np.ones(3, np.float32), "unused"))
    function = model.functions.add(name="Twice", domain="com.example")
    function.input.append("x")
    function.output.append("y")
    function.node.append(helper.make_node("Add", ["x", "x"], ["y"]))
    function.opset_import.add(domain="", version=17)
    return model


def surrogate(entry: str, exit_: str, d: int = 8) -> list[gs.Node]:
    """exit = entry W, as one MatMul with a weight called `new`."""
    weight = gs.Constant("new", np.eye(d, dtype=np.float32) * 2)
    ends = [gs.Variable(entry), weight], [gs.Variable(exit_)]
    return [gs.Node("MatMul", "stand-in", inputs=ends[0], outputs=ends[1])]


@pytest.mark.parametrize("name", BUILDERS)
def test_a_round_trip_without_an_edit_is_byte_exact(name: str, tmp_path: Path) -> None:
    source, target = tmp_path / "a.onnx", tmp_path / "b.onnx"
    source.write_bytes(built(name).SerializeToString())
    model = read(source)
    assert model.graph.nodes
    write(apply(model, Delta()), target)
    assert target.read_bytes() == source.read_bytes()
    assert diff(built(name), onnx.load(target)).is_empty


def test_a_round_trip_keeps_all_that_is_odd(tmp_path: Path) -> None:
    source, target = tmp_path / "a.onnx", tmp_path / "b.onnx"
    source.write_bytes(decorated().SerializeToString())
    write(read(source), target)
    assert target.read_bytes() == source.read_bytes()


def test_an_edit_leaves_the_original_alone() -> None:
    proto = decorated()
    before = proto.SerializeToString()
    model = read(proto)
    delta = Delta(metadata={"k": "v"}, removed={0}, dropped={"unused"})
    insert(model, delta, "h1", surrogate("h0", "h1"), {"a": "b"})
    edited = apply(model, delta)
    assert edited.proto.SerializeToString() != before
    assert proto.SerializeToString() == before
    assert model.serialized() == before


def test_an_inserted_map_touches_nothing_else() -> None:
    model = read(decorated())
    delta = Delta()
    insert(model, delta, "h1", surrogate("h0", "h1"), {"note": "span"})
    edited = apply(model, delta).proto
    found = diff(model.proto, edited)
    assert found.changed == (("node", "h1"),)
    assert (found.removed, found.added, found.reordered) == ((), (("initializer", "new"),), ())
    (node,) = (node for node in edited.graph.node if node.output == ["h1"])
    assert (node.op_type, list(node.input)) == ("MatMul", ["h0", "new"])
    assert [(entry.key, entry.value) for entry in node.metadata_props] == [("note", "span")]
    assert "h1" in {value.name for value in edited.graph.value_info}


def test_node_metadata_is_written_only_where_the_format_has_it() -> None:
    model = read(decorated(ir=9))
    delta = Delta()
    insert(model, delta, "h1", surrogate("h0", "h1"), {"note": "span"})
    (node,) = (n for n in apply(model, delta).proto.graph.node if n.output == ["h1"])
    assert not node.metadata_props


def test_rewiring_changes_the_readers_and_them_alone() -> None:
    model = read(decorated())
    delta = Delta()
    rewire(model, delta, "h1", "h0")
    found = diff(model.proto, apply(model, delta).proto)
    readers = [node for node in model.graph.nodes if "h1" in node.inputs]
    assert len(readers) == 2
    assert set(found.changed) == {("node", *node.outputs) for node in readers}
    assert (found.removed, found.added, found.reordered) == ((), (), ())


def test_removed_nodes_take_their_annotations_along() -> None:
    model = read(decorated())
    gone = {
        node.index for node in model.graph.nodes if "h1" in node.outputs or "v9" in node.outputs
    }
    found = diff(model.proto, apply(model, Delta(removed=gone, dropped={"unused"})).proto)
    assert set(found.removed) == {
        ("node", "h1"),
        ("node", "v9"),
        ("initializer", "unused"),
        ("value_info", "h1"),
        ("quantization_annotation", "v9"),
    }
    assert (found.added, found.changed, found.reordered) == ((), (), ())


def test_metadata_is_added_and_replaced_by_key() -> None:
    model = read(decorated())
    edited = apply(model, Delta(metadata={"author": "else", "new": "entry"})).proto
    assert {entry.key: entry.value for entry in edited.metadata_props} == {
        "licence": "free",
        "author": "else",
        "new": "entry",
    }
    found = diff(model.proto, edited)
    assert (found.added, found.changed) == ((("metadata", "new"),), (("metadata", "author"),))


def test_a_maker_of_several_values_stays_for_the_others() -> None:
    nodes = [
        helper.make_node("Split", ["x"], ["a", "b"], axis=-1),
        helper.make_node("Add", ["a", "b"], ["y"]),
    ]
    ends = [[helper.make_tensor_value_info(n, 1, ("n", w))] for n, w in (("x", 4), ("y", 2))]
    opset = [helper.make_opsetid("", 13)]
    model = read(
        helper.make_model(
            helper.make_graph(nodes, "g", ends[0], ends[1]), opset_imports=opset, ir_version=8
        )
    )
    delta = Delta()
    weight = gs.Constant("w", np.ones((4, 2), np.float32))
    ends_ = [gs.Variable("x"), weight], [gs.Variable("b")]
    insert(model, delta, "b", [gs.Node("MatMul", "m", inputs=ends_[0], outputs=ends_[1])], {})
    edited = apply(model, delta).proto
    onnx.checker.check_model(edited, full_check=True)
    x = np.arange(8, dtype=np.float32).reshape(2, 4)
    compare({"y": x[:, :2] + x.sum(1, keepdims=True)}, run(edited, {"x": x}), atol=0, rtol=1e-6)


def test_captured_values_are_known() -> None:
    model = read(captured_stream())
    assert is_captured(model, "h1")
    assert not is_captured(model, "h0")


def test_external_weights_stay_outside_when_edited(tmp_path: Path) -> None:
    source = save_external(residual_mlp(3), tmp_path)
    model = read(source)
    edited = apply(model, Delta(metadata={"k": "v"}))
    assert edited.folder == model.folder
    target = tmp_path / "out.onnx"
    write(edited, target)
    assert (tmp_path / "out.onnx.data").stat().st_size >= 3 * 280 * 4
    feeds = samples(residual_mlp(3), 3)
    compare(run(residual_mlp(3), feeds), run(target, feeds), atol=0, rtol=0)
    offsets = [
        int(entry.value)
        for tensor in onnx.load(target, load_external_data=False).graph.initializer
        for entry in tensor.external_data
        if entry.key == "offset"
    ]
    assert len(offsets) > 10
    assert all(offset % 4096 == 0 for offset in offsets)


def _attribute(model: onnx.ModelProto) -> None:
    next(n for n in model.graph.node if n.op_type == "LayerNormalization").attribute[0].i = 2


def _byte(model: onnx.ModelProto) -> None:
    tensor = model.graph.initializer[3]
    tensor.raw_data = bytes([tensor.raw_data[0] ^ 1]) + tensor.raw_data[1:]


def _metadata(model: onnx.ModelProto) -> None:
    model.metadata_props[0].value = "not free"


def _node_metadata(model: onnx.ModelProto) -> None:
    model.graph.node[2].metadata_props[0].value = "else"


def _graph_metadata(model: onnx.ModelProto) -> None:
    del model.graph.metadata_props[:]


def _node_order(model: onnx.ModelProto) -> None:
    first, second = onnx.NodeProto(), onnx.NodeProto()
    first.CopyFrom(model.graph.node[0])
    second.CopyFrom(model.graph.node[1])
    model.graph.node[0].CopyFrom(second)
    model.graph.node[1].CopyFrom(first)


def _weight_order(model: onnx.ModelProto) -> None:
    last = model.graph.initializer.pop()
    model.graph.initializer.insert(0, last)


def _opset(model: onnx.ModelProto) -> None:
    model.opset_import[0].version += 1


def _annotation(model: onnx.ModelProto) -> None:
    parameters = model.graph.quantization_annotation[0].quant_parameter_tensor_names
    parameters[0].key = "ZERO_POINT_TENSOR"


def _annotation_gone(model: onnx.ModelProto) -> None:
    model.graph.quantization_annotation.pop()


def _function(model: onnx.ModelProto) -> None:
    model.functions[0].node[0].op_type = "Mul"


def _doc(model: onnx.ModelProto) -> None:
    model.doc_string = ""


def _node_name(model: onnx.ModelProto) -> None:
    model.graph.node[1].name = "renamed"


def _input(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "rows"


def _value_info(model: onnx.ModelProto) -> None:
    model.graph.value_info[0].type.tensor_type.elem_type = TensorProto.DOUBLE


def _unused_weight(model: onnx.ModelProto) -> None:
    model.graph.initializer.pop()


def _new_node(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("Neg", ["h0"], ["extra"]))


PLANTED: list[tuple[Callable[[onnx.ModelProto], None], str]] = [
    (_attribute, "node"),
    (_byte, "initializer"),
    (_metadata, "metadata"),
    (_node_metadata, "node"),
    (_graph_metadata, "rest"),
    (_node_order, "node"),
    (_weight_order, "initializer"),
    (_opset, "rest"),
    (_annotation, "quantization_annotation"),
    (_annotation_gone, "quantization_annotation"),
    (_function, "rest"),
    (_doc, "rest"),
    (_node_name, "node"),
    (_input, "input"),
    (_value_info, "value_info"),
    (_unused_weight, "initializer"),
    (_new_node, "node"),
]


@pytest.mark.parametrize(("plant", "kind"), PLANTED, ids=lambda p: getattr(p, "__name__", str(p)))
def test_diff_reports_a_planted_change(plant: Callable[[onnx.ModelProto], None], kind: str) -> None:
    model, other = decorated(), decorated()
    assert diff(model, other).is_empty
    plant(other)
    found = diff(model, other)
    assert not found.is_empty
    assert found.kinds() == {kind}


def test_diff_reports_a_record_that_stands_twice() -> None:
    model, other = decorated(), decorated()
    other.graph.initializer.append(other.graph.initializer[0])
    assert not diff(model, other).is_empty


def test_an_empty_delta_gives_the_model_itself() -> None:
    model = read(decorated())
    assert apply(model, Delta()) is model
    assert Delta().is_empty
    for delta in (Delta(removed={1}), Delta(dropped={"w"}), Delta(metadata={"a": "b"})):
        assert not delta.is_empty
    assert isinstance(apply(model, Delta(dropped={"unused"})), OnnxModel)
