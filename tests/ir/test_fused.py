"""Residual sums that hide inside fused operators: taken apart, edited, put together again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from blockfold.ir.blocks import anatomy
from blockfold.ir.cuts import find_chains
from blockfold.ir.onnx_file import OnnxModel, read
from blockfold.ir.onnx_unfuse import fuse, unfuse
from blockfold.passes.pipeline import ALL_PASSES, rewrite
from blockfold.passes.replacement import Replacement
from blockfold.tests.fused_decoder import assembled, by_hand
from blockfold.tests.networks import FLOAT, Arrays, Net
from blockfold.tests.spellings import (
    BLOCKS,
    MICROSOFT,
    OPTIMISERS,
    SIZES,
    Spelling,
    any_map,
    copy,
    exported,
    fused_for,
    worst_difference,
)

TOLERANCE = 1e-5


def two_batches(seed: int = 5) -> list[Arrays]:
    rng = np.random.default_rng(seed)
    return [{"x": rng.standard_normal((b, n, 8)).astype(np.float32)} for b, n in SIZES]


@pytest.mark.parametrize("spelling", ["standard", "runtime"])
def test_operators_of_three_generations_are_one_network(spelling: str) -> None:
    plain, other = (Spelling(by_hand(name), two_batches()) for name in ("plain", spelling))
    assert plain.blocks == other.blocks == BLOCKS
    assert worst_difference(plain, other) <= TOLERANCE
    span, twin = other.span(1), plain.span(1)
    assert (span.entry, span.exit) == (twin.entry, twin.exit) == ("h0", "h1")


@pytest.mark.parametrize("optimiser", OPTIMISERS)
def test_optimising_fused_operators_changes_nothing(optimiser: str) -> None:
    plain = Spelling(by_hand("plain"), two_batches())
    other = Spelling(OPTIMISERS[optimiser](by_hand("runtime")), two_batches())
    assert other.blocks == BLOCKS
    assert worst_difference(plain, other) <= TOLERANCE


# Fused residual sums.


def test_a_fused_sum_hides_the_stream_until_it_is_taken_apart() -> None:
    """The stream leaves by the fourth output, its norm by the first: no one value carries both."""
    fused = read(by_hand("runtime"))
    (chain,) = find_chains(fused.graph)
    assert len(anatomy(fused.graph, chain).blocks) < BLOCKS
    (chain,) = find_chains(unfuse(fused).graph)
    inner = [cut.first for cut in chain.cuts[1:-2]]
    assert inner == ["a0", "h0", "a1", "h1", "a2", "h2"]


def test_taking_apart_and_putting_together_changes_no_node() -> None:
    fused = read(by_hand("runtime"))
    apart = unfuse(fused)
    assert not {"SkipLayerNormalization"} & {node.op for node in apart.graph.nodes}
    assert fuse(fused, apart).proto == fused.proto
    plain = read(by_hand("plain"))
    assert unfuse(plain) is plain
    assert fuse(plain, plain) is plain


def test_only_the_operators_at_a_replacement_stay_apart() -> None:
    """At the entry the norm is gone, at the exit the sum is a map now; one lay inside."""
    spelling = Spelling(by_hand("runtime"), two_batches())
    span = spelling.span(1)
    solution = any_map(np.eye(8), np.ones(8))
    cut = rewrite(spelling.model, [Replacement(span, solution, 0.0)], {}, ALL_PASSES).model
    whole = fuse(read(by_hand("runtime")), cut)
    ops = [node.op for node in whole.graph.nodes]
    assert ops.count("SkipLayerNormalization") == 2 * BLOCKS - 3
    assert ops.count("LayerNormalization") == 1 + 1
    assert (ops.count("MatMul"), ops.count("MultiHeadAttention")) == (6 * (BLOCKS - 1) + 1, 2)
    for a, b in zip(spelling.run(cut), spelling.run(whole), strict=True):
        np.testing.assert_allclose(a["logits"], b["logits"], rtol=0, atol=1e-5)


def test_a_sum_that_is_newly_read_becomes_an_output() -> None:
    fused = read(fused_for("gpt2")(exported("post-norm")))
    apart = unfuse(fused)
    (total,) = [
        n.outputs[0] for n in apart.graph.nodes if n.name.endswith("SkipLayerNorm_AddBias_0_sum")
    ]
    proto = copy(apart.proto)
    proto.graph.output.append(helper.make_tensor_value_info(total, FLOAT, None))
    (whole,) = [
        node
        for node in fuse(fused, OnnxModel(proto, apart.folder)).proto.graph.node
        if total in node.output
    ]
    assert whole.op_type == "SkipLayerNormalization"
    assert list(whole.output[1:]) == ["", "", total]


def _nodes(model: onnx.ModelProto, role: str) -> list[onnx.NodeProto]:
    """The parts of that role, in the order of the graph."""
    return [node for node in model.graph.node if node.name.endswith(f"_{role}")]


def _read_the_biased_branch(model: onnx.ModelProto) -> None:
    (biased,) = _nodes(model, "bias")[0].output
    model.graph.output.append(helper.make_tensor_value_info(biased, FLOAT, None))


def _norm_another_value(model: onnx.ModelProto) -> None:
    _nodes(model, "norm")[0].input[0] = "x"


def _leave_the_bias_out(model: onnx.ModelProto) -> None:
    total, biased = _nodes(model, "sum")[0], _nodes(model, "bias")[0]
    total.input[1] = biased.input[0]


def _put_another_sum(model: onnx.ModelProto) -> None:
    _nodes(model, "sum")[0].name = "blockfold/add"


@pytest.mark.parametrize(
    "edit", [_read_the_biased_branch, _norm_another_value, _leave_the_bias_out, _put_another_sum]
)
def test_parts_that_are_not_as_they_were_stay_apart(
    edit: Callable[[onnx.ModelProto], None],
) -> None:
    fused = read(by_hand("runtime"))
    proto = copy(unfuse(fused).proto)
    edit(proto)
    edited = OnnxModel(proto, Path())
    whole = fuse(fused, edited)
    count = [node.op for node in whole.graph.nodes].count("SkipLayerNormalization")
    assert count == 2 * BLOCKS - 1
    spelling = Spelling(by_hand("plain"), two_batches())
    for a, b in zip(spelling.run(edited), spelling.run(whole), strict=True):
        np.testing.assert_allclose(a["logits"], b["logits"], rtol=0, atol=1e-5)


def test_parts_bear_names_that_no_other_node_has() -> None:
    """onnxruntime loads no model in which two nodes have one name."""
    model = by_hand("runtime")
    (skip,) = [node for node in model.graph.node if "a0" in node.output]
    model.graph.node[0].name, model.graph.node[1].name = f"{skip.name}_sum", f"{skip.name}_norm"
    spelling = Spelling(model, two_batches())
    names = [node.name for node in spelling.model.graph.nodes]
    assert len(set(names)) == len(names)
    assert f"{skip.name}_sum_" in names
    assert fuse(read(model), spelling.model).proto == model


@pytest.mark.parametrize("activation", ["Relu", ""])
def test_a_sum_inside_a_convolution_is_found(activation: str) -> None:
    """FusedConv adds its fourth input: the residual sum of onnxruntime's CUDA provider."""
    net, stream = Net(1), "x"
    for i in range(BLOCKS):
        net.scope = f"/blocks.{i}"
        branch = net.node("Relu", net.conv(stream, 4, 4))
        inputs = (branch, net.weight(4, 4, 3, 3), net.bias(4), stream)
        stream = net.node("FusedConv", *inputs, out=f"h{i}", domain=MICROSOFT, pads=[1] * 4)
        if activation:
            net.nodes[-1].attribute.append(helper.make_attribute("activation", activation))
    net.head(stream, 4, axes=(2, 3))
    rng = np.random.default_rng(0)
    batches = [{"x": rng.standard_normal((2, 4, 5, 5)).astype(np.float32)}]
    model = assembled(net, {"x": ("batch", 4, 5, 5)})
    spelling = Spelling(model, batches)
    assert spelling.blocks == BLOCKS
    span = spelling.span(1)
    assert span.exit == ("h1/sum" if activation else "h1")
    raw = read(model)
    assert fuse(raw, spelling.model).proto == raw.proto
    for a, b in zip(spelling.run(raw), spelling.run(spelling.model), strict=True):
        np.testing.assert_allclose(a["logits"], b["logits"], rtol=0, atol=1e-5)
    assert raw.graph.value("h1").shape == ("batch", 4, 5, 5)


def test_other_activations_and_training_outputs_stay_fused() -> None:
    tanh = helper.make_node("FusedConv", list("xwbz"), ["y"], domain=MICROSOFT, activation="Tanh")
    mean = ["y", "mean", "deviation", "sum"]
    norm = helper.make_node("SkipLayerNormalization", list("xbg"), mean, domain=MICROSOFT)
    alone = helper.make_node("FusedConv", list("xwb"), ["y"], domain=MICROSOFT)
    for node in (tanh, norm, alone):
        ends = [helper.make_tensor_value_info(name, FLOAT, None) for name in node.input]
        made = [helper.make_tensor_value_info(name, FLOAT, None) for name in node.output]
        opsets = [helper.make_opsetid("", 17), helper.make_opsetid(MICROSOFT, 1)]
        graph = helper.make_graph([node], "one", ends, made)
        model = OnnxModel(helper.make_model(graph, opset_imports=opsets), Path())
        assert unfuse(model) is model
