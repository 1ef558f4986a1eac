"""Substitute and clean up: the span is gone, what others need lives on, nothing else changes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from blockfold.calibration.moments import Array
from blockfold.calibration.solve import Solution
from blockfold.ir.blocks import anatomy
from blockfold.ir.cuts import find_chains
from blockfold.ir.errors import BadInput
from blockfold.ir.onnx_diff import diff
from blockfold.ir.onnx_file import OnnxModel, read
from blockfold.ir.spans import Span, prove
from blockfold.passes.cleanup import Cleanup
from blockfold.passes.pipeline import ALL_PASSES, Switches, rewrite
from blockfold.passes.replacement import Replacement
from blockfold.passes.substitute import Substitute
from blockfold.tests.networks import (
    FLOAT,
    LOGITS,
    TOKENS,
    Net,
    built,
    captured_stream,
    compare,
    masked_encoder,
    residual_cnn,
    residual_mlp,
    run,
    samples,
    shared_mask,
    tabular,
)


def find_span(model: OnnxModel, start: int, stop: int) -> Span:
    graph = model.graph
    proved = prove(graph, anatomy(graph, find_chains(graph)[0]), start, stop)
    assert isinstance(proved, Span), proved
    return proved


def weights(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}


def mapping(W: Array, b: Array) -> Solution:
    return Solution(W, b, ridge=0.0, rows=100, rank=len(b), condition=1.0)


def exact(model: onnx.ModelProto, block: int) -> Solution:
    """The map of a planted block, read off its weights: W V + I and b V + c."""
    held, rows = weights(model), []
    for node in model.graph.node:
        if node.name.startswith(f"/blocks.{block}/"):
            rows += [held[name].astype(np.float64) for name in node.input if name in held]
    W, b, V, c = (row[:, :, 0, 0].T if row.ndim == 4 else row for row in rows)
    return mapping(W @ V + np.eye(len(c)), b @ V + c)


def random_map(d: int) -> Solution:
    rng = np.random.default_rng(5)
    return mapping(rng.standard_normal((d, d)), rng.standard_normal(d))


def rewritten(
    model: onnx.ModelProto,
    start: int,
    stop: int,
    solution: Solution | None,
    metadata: Mapping[str, str] | None = None,
) -> onnx.ModelProto:
    source = read(model)
    replacement = Replacement(find_span(source, start, stop), solution, 0.25)
    return rewrite(source, [replacement], metadata or {}, ALL_PASSES).model.proto


def in_block(names: Sequence[str], block: int) -> list[str]:
    return [name for name in names if name.startswith(f"/blocks.{block}/")]


def test_the_order_of_the_replacements_does_not_matter() -> None:
    """A plan lists refits after its other decisions; the file must not show it."""
    source = read(residual_mlp(4, affine=(0, 2)))
    made = [
        Replacement(find_span(source, at, at + 1), exact(source.proto, at), 0.0) for at in (0, 2)
    ]
    one, other = (Substitute(order)(source).model for order in (made, made[::-1]))
    assert one.serialized() == other.serialized()


@pytest.mark.parametrize("ir", [8, 10])
def test_a_planted_block_is_replaced_by_its_exact_map(ir: int) -> None:
    model = residual_mlp(3, affine=(1,), ir=ir)
    other = rewritten(model, 1, 2, exact(model, 1))
    feeds = samples(model, 16)
    compare(run(model, feeds), run(other, feeds), atol=0, rtol=1e-5)
    onnx.checker.check_model(other, full_check=True)


def test_a_planted_block_of_feature_maps_becomes_a_convolution() -> None:
    model = residual_cnn(affine=(1,))
    other = rewritten(model, 2, 3, exact(model, 1))
    feeds = samples(model, 16)
    compare(run(model, feeds), run(other, feeds), atol=0, rtol=1e-5)
    new = [node for node in other.graph.node if node.name.startswith("blockfold/")]
    assert [(node.op_type, list(node.output)) for node in new] == [("Conv", ["z1"])]


def test_another_map_changes_the_outputs() -> None:
    """The twin of the two above: what they compare would show a wrong map."""
    model = residual_mlp(3, affine=(1,))
    right = exact(model, 1)
    feeds = samples(model, 16)
    for W, b in ((right.W.T, right.b), (right.W, right.b + 0.1), (right.W * 1.01, right.b)):
        other = rewritten(model, 1, 2, mapping(W, b))
        with pytest.raises(AssertionError, match="off by"):
            compare(run(model, feeds), run(other, feeds), atol=0, rtol=1e-5)


def test_the_map_is_applied_to_the_entry() -> None:
    model, solution = residual_mlp(3), random_map(8)
    other = rewritten(model, 1, 2, solution)
    values = run(other, samples(model, 5), ["h0", "h1"])
    wanted = values["h0"] @ solution.W + solution.b
    compare({"h1": wanted.astype(np.float32)}, {"h1": values["h1"]}, atol=0, rtol=1e-5)


def test_no_weight_and_no_node_of_the_block_is_left() -> None:
    model = residual_mlp(3)
    held = [n for node in model.graph.node if in_block([node.name], 1) for n in node.input]
    gone = {name for name in held if name in weights(model)}
    assert len(gone) == 6
    other = rewritten(model, 1, 2, random_map(8))
    assert not in_block([node.name for node in other.graph.node], 1)
    assert gone.isdisjoint(weights(other))
    assert weights(other).keys() - weights(model).keys() == {
        "blockfold/h1/W",
        "blockfold/h1/b",
    }


def test_a_weight_that_another_block_shares_stays() -> None:
    model = residual_mlp(3)
    mine, theirs = (
        next(n for n in model.graph.node if n.name.startswith(f"/blocks.{i}/MatMul"))
        for i in (1, 2)
    )
    theirs.input[1] = mine.input[1]
    other = rewritten(model, 1, 2, None)
    assert mine.input[1] in weights(other)


def test_everything_outside_the_delta_is_untouched() -> None:
    model = residual_mlp(3)
    found = diff(model, rewritten(model, 1, 2, random_map(8), {"k": "v"}))
    inside = {("node", *n.output) for n in model.graph.node if in_block([n.name], 1)}
    assert {label for label in found.removed if label[0] == "node"} == inside - {("node", "h1")}
    assert found.changed == (("node", "h1"),)
    assert {label[0] for label in found.removed} == {"node", "initializer"}
    assert set(found.added) == {
        ("node", "blockfold/blocks.1/h1/product"),
        ("initializer", "blockfold/h1/W"),
        ("initializer", "blockfold/h1/b"),
        ("metadata", "k"),
        ("metadata", "blockfold.spans"),
    }
    assert found.reordered == ()


def test_an_identity_is_rewiring_and_adds_nothing() -> None:
    model = residual_mlp(3)
    other = rewritten(model, 1, 2, None)
    found = diff(model, other)
    assert set(found.added) == {("metadata", "blockfold.spans")}
    readers = {("node", *n.output) for n in model.graph.node if "h1" in n.input}
    assert set(found.changed) == readers - {("node", "h1")}
    assert "h1" not in {name for node in other.graph.node for name in (*node.input, *node.output)}
    feeds = samples(model, 4)
    values = run(other, feeds, ["h0", "h2"])
    original = run(model, feeds, ["h0"])
    compare({"h0": original["h0"]}, {"h0": values["h0"]}, atol=0, rtol=0)
    with pytest.raises(AssertionError, match="off by"):
        compare(run(model, feeds), run(other, feeds), atol=0, rtol=1e-3)


@pytest.mark.parametrize("solution", [None, random_map(4)], ids=["identity", "affine"])
def test_an_exit_that_is_a_graph_output_keeps_its_name(solution: Solution | None) -> None:
    net = Net()
    net.node("Add", "x", net.mlp("x", 4), out="y")
    io = (FLOAT, ("batch", TOKENS, 4))
    model = net.model({"x": io}, {"y": io})
    other = rewritten(model, 0, 1, solution)
    feeds = samples(model, 3)
    wanted = feeds["x"] if solution is None else feeds["x"] @ solution.W + solution.b
    compare({"y": wanted.astype(np.float32)}, run(other, feeds), atol=0, rtol=1e-5)
    assert len(other.graph.initializer) == (0 if solution is None else 2)


@pytest.mark.parametrize("identity", [True, False])
def test_an_exit_that_a_body_captures_keeps_its_name(identity: bool) -> None:
    model = captured_stream(affine=(1,))
    other = rewritten(model, 1, 2, None if identity else exact(model, 1))
    assert "h1" in {name for node in other.graph.node for name in node.output}
    feeds = samples(model, 8)
    values = run(other, feeds, ["h0", "h1", "chosen"])
    compare({"h": values["h1"]}, {"h": values["chosen"]}, atol=0, rtol=0)
    if identity:
        compare({"h": values["h0"]}, {"h": values["h1"]}, atol=0, rtol=0)
    else:
        compare(run(model, feeds), {"logits": values["logits"]}, atol=0, rtol=1e-5)


def test_what_the_first_block_makes_for_later_ones_lives_on() -> None:
    model = shared_mask(affine=(0,))
    other = rewritten(model, 0, 1, exact_of_stream(model))
    feeds = samples(model, 6)
    compare(run(model, feeds), run(other, feeds), atol=0, rtol=1e-4)
    made = {name for node in other.graph.node for name in node.output}
    assert {"gate", "causal"} <= made


def exact_of_stream(model: onnx.ModelProto) -> Solution:
    """The map of the affine first block of shared_mask, which holds other constants, too."""
    held, rows = weights(model), []
    for node in model.graph.node:
        if node.name.startswith(("/blocks.0/MatMul", "/blocks.0/Add")):
            rows += [held[name].astype(np.float64) for name in node.input if name in held]
    W, b, V, c = rows
    return mapping(W @ V + np.eye(8), b @ V + c)


@pytest.mark.parametrize("kind", ["norm", "product"])
def test_a_value_kept_only_for_its_length_is_not_computed(kind: str) -> None:
    """The length of the dead norm or product is traced to the input, and asked of that."""
    model = shared_mask(measured=kind)
    (asking,) = (node for node in model.graph.node if node.op_type == "Shape")
    other = rewritten(model, 0, 1, random_map(8))
    made = {name for node in other.graph.node for name in node.output}
    assert asking.input[0] not in made
    assert {"dims", "causal"} <= made
    assert [node.input for node in other.graph.node if node.op_type == "Shape"] == [["x"]]
    for length in (1, 5, 9):
        feeds = samples(model, 3, length=length)
        whole = run(model, feeds, ["dims", "causal"])
        left = run(other, feeds, ["dims", "causal"])
        compare(
            {name: whole[name] for name in ("dims", "causal")},
            {name: left[name] for name in ("dims", "causal")},
            atol=0,
            rtol=0,
        )


def test_a_length_that_cannot_be_traced_keeps_its_maker() -> None:
    """How many tokens are left of those that a stream itself picks, no shape can tell."""
    net, d = Net(), 8
    net.scope = "/blocks.0"
    inner = net.node("MatMul", net.norm("x", d), net.weight(d, d), out="inner")
    first = net.node("Gather", inner, net.constant(np.array(0)), axis=2)
    positive = net.node("Greater", first, net.constant(np.array(-9, np.float32)))
    count = net.node("Shape", net.node("NonZero", positive, out="picked"))
    h = net.node("Add", "x", inner, out="h0")
    net.scope = "/blocks.1"
    tokens = net.node("Cast", net.node("Gather", count, net.constant(np.array(1))), to=FLOAT)
    h = net.node("Add", h, net.node("Div", net.mlp(net.norm(h, d), d), tokens), out="h1")
    net.head(h, d)
    model = net.model({"x": (FLOAT, ("batch", "seq", d))}, LOGITS)
    found = read(model).graph
    reached = found.needed_by(found.outputs, given=frozenset({"h0"}))
    assert "NonZero" not in {found.nodes[index].op for index in reached}
    other = rewritten(model, 0, 1, random_map(d))
    (shape,) = (node for node in other.graph.node if node.op_type == "Shape")
    assert list(shape.input) == ["picked"]
    assert "inner" in {name for node in other.graph.node for name in node.output}
    feeds = samples(model, 3)
    values = run(other, feeds, ["h0", tokens])
    assert values[tokens] == 3 * 7
    wanted = feeds["x"] @ random_map(d).W + random_map(d).b
    compare({"h": wanted.astype(np.float32)}, {"h": values["h0"]}, atol=0, rtol=1e-5)


def test_a_length_that_hangs_on_another_length_is_kept() -> None:
    """A later block asks the length of a reshaped value; the reshape asked that of a product."""
    net, d = Net(), 8
    net.scope = "/blocks.0"
    normed = net.norm("x", d)
    measured = net.node("MatMul", normed, net.weight(d, d))
    shaped = net.node(
        "Reshape", net.node("MatMul", normed, net.weight(d, d)), net.node("Shape", measured)
    )
    dims = net.node("Shape", shaped)
    h = net.node("Add", "x", shaped, out="h0")
    net.scope = "/blocks.1"
    h = net.node("Add", h, net.node("Reshape", net.mlp(net.norm(h, d), d), dims), out="h1")
    net.head(h, d)
    model = net.model({"x": (FLOAT, ("batch", TOKENS, d))}, LOGITS)
    other = rewritten(model, 0, 1, random_map(d))
    assert run(other, samples(model, 2))["logits"].shape == (2, 5)


@pytest.mark.parametrize("ir", [10, 11])
def test_new_nodes_say_where_they_come_from(ir: int) -> None:
    model = residual_mlp(3, ir=ir)
    other = rewritten(model, 1, 2, random_map(8))
    new = [node for node in other.graph.node if node.name.startswith("blockfold/")]
    assert [node.op_type for node in new] == ["MatMul", "Add"]
    for node in new:
        assert {entry.key: entry.value for entry in node.metadata_props} == {
            "blockfold.span": "blocks.1",
            "blockfold.surrogate": "affine",
            "blockfold.predicted_error": "0.25",
            "namespace": "blockfold/blocks.1",
        }
    assert not other.metadata_props


def test_older_formats_say_it_for_the_whole_model() -> None:
    other = rewritten(residual_mlp(3, ir=9), 1, 2, None, {"who": "me"})
    notes = {entry.key: entry.value for entry in other.metadata_props}
    assert notes["who"] == "me"
    assert json.loads(notes["blockfold.spans"]) == [
        {
            "blockfold.span": "blocks.1",
            "blockfold.surrogate": "identity",
            "blockfold.predicted_error": "0.25",
            "namespace": "blockfold/blocks.1",
        }
    ]
    assert not any(node.metadata_props for node in other.graph.node)


@pytest.mark.parametrize("name", ["residual_mlp", "residual_cnn", "shared_mask", "two_streams"])
def test_the_interface_is_unchanged(name: str) -> None:
    model = built(name)
    start = 2 if name == "residual_cnn" else 1
    other = rewritten(model, start, start + 1, None)
    assert list(other.graph.input) == list(model.graph.input)
    assert list(other.graph.output) == list(model.graph.output)


def test_two_spans_at_once_are_both_replaced() -> None:
    model = read(residual_mlp(4, affine=(1, 3)))
    replacements = [
        Replacement(find_span(model, at, at + 1), exact(model.proto, at), 0.0) for at in (1, 3)
    ]
    result = rewrite(model, replacements, {}, ALL_PASSES)
    feeds = samples(model.proto, 8)
    compare(run(model.proto, feeds), run(result.model.proto, feeds), atol=0, rtol=1e-5)
    assert [change.split(": ")[1] for change in result.changes[:2]] == [
        "affine from 'h0' to 'h1'",
        "affine from 'h2' to 'h3'",
    ]


@pytest.mark.parametrize("dtype", [onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE])
def test_the_map_has_the_dtype_of_the_stream(dtype: int) -> None:
    kind = onnx.helper.tensor_dtype_to_np_dtype(dtype)
    net = Net()
    h = net.node("Relu", net.node("MatMul", "x", net.constant(np.eye(4, dtype=kind))))
    net.node("Add", "x", h, out="y")
    io = (dtype, ("batch", TOKENS, 4))
    model = net.model({"x": io}, {"y": io})
    other = rewritten(model, 0, 1, random_map(4))
    assert {array.dtype for array in weights(other).values()} == {kind}
    feeds = {"x": np.ones((1, TOKENS, 4), kind)}
    assert run(other, feeds)["y"].dtype == kind


def test_rows_of_a_table_are_mapped_by_a_matrix() -> None:
    """BatchNormalization on (batch, d): axis 1 is the last, and there is no image to convolve."""
    model = tabular(affine=(1,))
    other = rewritten(model, 1, 2, random_map(8))
    feeds = samples(model, 3)
    values = run(other, feeds, ["h0", "h1"])
    wanted = values["h0"] @ random_map(8).W + random_map(8).b
    compare({"h1": wanted.astype(np.float32)}, {"h1": values["h1"]}, atol=0, rtol=1e-5)


def test_a_rewritten_model_can_be_rewritten_again() -> None:
    model = residual_cnn(affine=(1,))
    replacement = Replacement(find_span(read(model), 2, 3), random_map(6), 0.0)
    once = rewrite(read(model), [replacement], {}, ALL_PASSES).model
    twice = rewrite(once, [replacement], {}, ALL_PASSES).model.proto
    names = [tensor.name for tensor in twice.graph.initializer]
    assert len(names) == len(set(names))
    feeds = samples(model, 2)
    compare(run(once.proto, feeds), run(twice, feeds), atol=0, rtol=0)


def test_clean_up_of_a_clean_model_changes_nothing() -> None:
    model = read(masked_encoder())
    result = Cleanup()(model)
    assert result.changes == ()
    assert result.model is model


def test_clean_up_can_be_left_out() -> None:
    model = read(residual_mlp(3))
    replacement = Replacement(find_span(model, 1, 2), None, 0.0)
    off = Switches(frozenset({"cleanup"}))
    left = rewrite(model, [replacement], {}, off).model.proto
    assert in_block([node.name for node in left.graph.node], 1)
    with pytest.raises(BadInput, match="--skip substitute: no such pass; it is one of cleanup"):
        Switches(frozenset({"substitute"}))


def test_substitute_alone_leaves_dead_nodes_to_the_clean_up() -> None:
    model = read(residual_mlp(3))
    replacement = Replacement(find_span(model, 1, 2), random_map(8), 0.0)
    result = Substitute([replacement])(model)
    assert result.changes == ("blocks.1: affine from 'h0' to 'h1'",)
    changes = Cleanup()(result.model).changes
    assert sum(change.startswith("removed") for change in changes) == 6
    assert sum(change.startswith("dropped weight") for change in changes) == 6
