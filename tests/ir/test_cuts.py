"""Cuts: the right ones on every network, whatever order the nodes stand in."""

from __future__ import annotations

import random

import onnx
import pytest
from onnx import helper

from blockfold.ir.cuts import Chain, find_chains
from blockfold.ir.onnx_file import read
from blockfold.tests.networks import (
    FLOAT,
    TOKENS,
    Net,
    built,
    masked_encoder,
    residual_cnn,
    shared_mask,
    two_streams,
)

FIRSTS = {
    "residual_mlp": ["x", "h0", "h1", "h2", "h3", "pooled", "logits"],
    "residual_cnn": ["x", "v0", "z0", "z1", "v12", "z2", "z3", "pooled", "logits"],
    "densenet_like": ["x", "all", "pooled", "logits"],
    "masked_encoder": ["embedded", "a0", "m0", "a1", "m1", "v55", "pooled"],
    "last_hidden_state": ["embedded", "a0", "m0", "a1", "m1"],
    "inner_output": ["x", "h0", "h1", "h2", "pooled", "logits"],
    "long_skip": ["x", "h0", "h1", "joined", "h5", "pooled", "logits"],
    "shared_mask": ["x", "h0", "h1", "h2", "pooled", "logits"],
    "captured_stream": ["x", "h0", "h1", "chosen", "h2", "pooled", "logits"],
    "two_streams": ["x", "p0", "p1", "h0", "h1", "h2", "pooled", "logits"],
    "tabular": ["x", "h0", "h1", "h2", "logits"],
    "fixed_batch": ["x", "h0", "h1", "h2", "h3", "pooled", "logits"],
}
"""The first value of every cut of the main chain."""


def chains(model: onnx.ModelProto) -> tuple[Chain, ...]:
    return find_chains(read(model).graph)


def firsts(chain: Chain) -> list[str]:
    return [cut.first for cut in chain.cuts]


@pytest.mark.parametrize("name", FIRSTS)
def test_cuts_of_the_main_chain(name: str) -> None:
    assert firsts(chains(built(name))[0]) == FIRSTS[name]


@pytest.mark.parametrize("name", sorted(FIRSTS.keys() - {"two_streams"}))
def test_one_source_gives_one_chain(name: str) -> None:
    assert len(chains(built(name))) == 1


def test_stretches_lie_between_their_cuts() -> None:
    chain = chains(built("residual_mlp"))[0]
    assert [{node.scope for node in stretch} for stretch in chain.stretches] == [
        {(f"blocks.{i}",)} for i in range(4)
    ] + [{("head",)}] * 2
    for cut, stretch in zip(chain.cuts[1:], chain.stretches, strict=True):
        assert stretch[-1].outputs == (cut.first,)


def test_what_norms_and_activations_join_is_one_cut() -> None:
    encoder = chains(masked_encoder(pooled=False))[0]
    assert [len(cut.values) for cut in encoder.cuts] == [3, 2, 2, 2, 2]
    assert encoder.cuts[0].last == "n0"
    assert encoder.cuts[-1].last == "last_hidden_state"
    features = chains(residual_cnn())[0]
    assert ("z0", "h0") in [cut.values for cut in features.cuts]


def test_a_second_stream_counts_only_up_to_where_it_joins_the_first() -> None:
    main, second = chains(two_streams())
    assert main.source == "x"
    assert (second.source, second.sink, firsts(second)) == (
        "context",
        "c1",
        ["context", "c0", "c1"],
    )
    scopes = [{node.scope[0] for node in stretch} for stretch in second.stretches]
    assert scopes == [{"encoder.0"}, {"encoder.1"}]


def test_a_mask_made_from_the_stream_hides_no_cut() -> None:
    """Its lengths and its comparison run past every block, but no derivative goes along."""
    model = shared_mask()
    readers = [node for node in model.graph.node if {"gate", "causal"} & set(node.input)]
    assert {node.name.split("/")[1] for node in readers} == {"blocks.0", "blocks.1", "blocks.2"}
    assert firsts(chains(model)[0])[:4] == ["x", "h0", "h1", "h2"]


def test_a_smooth_gate_does_hide_cuts() -> None:
    """The twin of the mask: a gate that a derivative passes is a path round the blocks."""
    model = shared_mask()
    for node in model.graph.node:
        if node.op_type == "Greater":
            node.op_type = "Div"
            node.input[1] = "ones_scalar"
    model.graph.initializer.append(helper.make_tensor("ones_scalar", FLOAT, [], [1.0]))
    assert firsts(chains(model)[0])[:2] == ["x", "h2"]


def test_positions_are_no_source() -> None:
    """A look-up by places that come from a length alone is a table, not a stream."""
    assert [chain.source for chain in chains(masked_encoder())] == ["embedded"]


def test_a_model_without_a_floating_output_has_no_chain() -> None:
    net = Net()
    net.node("ArgMax", net.mlp("x", 4), out="best", axis=1)
    io = {"x": (FLOAT, ("batch", TOKENS, 4))}
    model = net.model(io, {"best": (onnx.TensorProto.INT64, ("batch", 1, 4))})
    assert chains(model) == ()


def shuffled(model: onnx.ModelProto, seed: int) -> onnx.ModelProto:
    """The same graph with its nodes in another topological order, drawn at random."""
    rng = random.Random(seed)
    made = {value.name for value in model.graph.input} | {w.name for w in model.graph.initializer}
    left, order = list(model.graph.node), []
    graph = read(model).graph
    reads = {node.outputs: {i for i in node.inputs if i} for node in graph.nodes}
    while left:
        ready = [node for node in left if reads[tuple(node.output)] <= made]
        chosen = rng.choice(ready)
        left.remove(chosen)
        order.append(chosen)
        made.update(chosen.output)
    other = onnx.ModelProto()
    other.CopyFrom(model)
    del other.graph.node[:]
    other.graph.node.extend(order)
    return other


@pytest.mark.parametrize("name", FIRSTS)
def test_the_answer_does_not_depend_on_the_topological_order(name: str) -> None:
    model = built(name)
    expected = [(c.source, c.sink, c.cuts) for c in chains(model)]
    orders = set()
    for seed in range(4):
        other = shuffled(model, seed)
        orders.add(tuple(node.output[0] for node in other.graph.node))
        assert [(c.source, c.sink, c.cuts) for c in chains(other)] == expected
    straight = name in ("residual_mlp", "fixed_batch", "tabular", "densenet_like", "residual_cnn")
    straight = straight or name in ("long_skip", "inner_output")
    assert len(orders) > 1 or straight
