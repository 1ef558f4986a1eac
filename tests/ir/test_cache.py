"""Caches: paired by what flows; how they grow tells which are equally long."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import helper

from blockfold.ir.lengths import Length
from blockfold.ir.onnx_cache import Cache, equally_long, find_caches
from blockfold.ir.onnx_file import read
from blockfold.ir.spans import Refusal, Span, prove
from blockfold.tests.adversaries import ints
from blockfold.tests.decoders import PARTS, D, cached_decoder
from blockfold.tests.networks import FLOAT, Net
from blockfold.tests.replacing import firsts, renamed, reordered, streams

ROWS: tuple[int, tuple[str, str, int]] = (FLOAT, ("batch", "n", D))
PAST: tuple[int, tuple[str, str, int]] = (FLOAT, ("batch", "p", D))
ANY: tuple[int, tuple[str, str, str]] = (FLOAT, ("a", "b", "c"))
Join = Callable[[Net], str]
"""From the inputs `past` and `x` to what is given back."""


def pairs(model: onnx.ModelProto) -> set[tuple[str, str]]:
    return {(cache.past, cache.present) for cache in find_caches(read(model))}


def joined(join: Join) -> onnx.ModelProto:
    """A model with the outputs `present`, which `join` makes, and y."""
    net = Net()
    net.node("Identity", join(net), out="present")
    net.node("MatMul", "x", net.weight(D, D), out="y")
    return net.model({"x": ROWS, "past": PAST}, {"y": ROWS, "present": ANY})


def new(net: Net) -> str:
    return net.node("MatMul", "x", net.weight(D, D))


def appended(net: Net) -> str:
    return net.node("Concat", "past", new(net), axis=1)


def windowed(net: Net) -> str:
    """The last six rows alone."""
    ends = (net.constant(ints(n)) for n in (-6, 2**31 - 1, 1))
    return net.node("Slice", appended(net), *ends)


def stacked(net: Net) -> str:
    """Two halves in one tensor, each joined by itself."""
    halves = [
        net.node("Slice", "past", *(net.constant(ints(n)) for n in (at, at + D // 2, 2)))
        for at in (0, D // 2)
    ]
    rows = [net.node("MatMul", "x", net.weight(D, D // 2)) for _ in halves]
    both = zip(halves, rows, strict=True)
    return net.node("Concat", *(net.node("Concat", *one, axis=1) for one in both), axis=2)


def written(net: Net) -> str:
    """Into a place of a tensor of fixed length."""
    first = net.node("ReduceMean", new(net), axes=[0, 1], keepdims=0)
    return net.node("ScatterND", "past", net.constant(np.array([0, 0], np.int64)), first)


def carried(net: Net) -> str:
    turned = net.node("Transpose", appended(net), perm=[1, 0, 2])
    return net.node("Cast", turned, to=FLOAT)


@pytest.mark.parametrize("join", [appended, windowed, stacked, written, carried])
def test_a_present_that_holds_the_numbers_of_its_past(join: Join) -> None:
    assert ("past", "present") in pairs(joined(join))


def computed(net: Net) -> str:
    """A state, made of the one before."""
    return net.node("Tanh", net.node("Add", "past", "x"))


def told(net: Net) -> str:
    """Joined to what is computed from it: a feature map that grows, no memory."""
    return net.node("Concat", "past", net.node("Tanh", "past"), axis=1)


def measured(net: Net) -> str:
    """Rows of zeros, as many as the past has."""
    return net.node("ConstantOfShape", net.node("Shape", "past"))


@pytest.mark.parametrize("join", [computed, told, measured])
def test_what_is_made_of_the_past_is_no_cache(join: Join) -> None:
    assert ("past", "present") not in pairs(joined(join))


def fused(op: str, slots: tuple[int, int], domain: str = "com.microsoft") -> onnx.ModelProto:
    """An attention that joins keys and values itself; `slots` are the inputs for the pasts."""
    inputs = ["x", "x", "x", *[""] * (max(slots) - 2)]
    for name, at in zip(PARTS, slots, strict=True):
        inputs[at] = f"past.{name}"
    outputs = ["y", *(f"present.{name}" for name in PARTS)]
    node = helper.make_node(op, inputs, outputs, num_heads=1, domain=domain)
    made = [helper.make_tensor_value_info(name, FLOAT, tuple("abcd")) for name in outputs]
    feeds = [
        helper.make_tensor_value_info(name, FLOAT, tuple("abcd"))
        for name in dict.fromkeys(name for name in inputs if name)
    ]
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(helper.make_graph([node], "fused", feeds, made), opset_imports=opsets)


@pytest.mark.parametrize(
    ("op", "slots"),
    [
        ("MultiHeadAttention", (6, 7)),
        ("GroupQueryAttention", (3, 4)),
        ("DecoderMaskedMultiHeadAttention", (5, 6)),
    ],
)
def test_fused_attentions_have_slots(op: str, slots: tuple[int, int]) -> None:
    wanted = {(f"past.{name}", f"present.{name}") for name in PARTS}
    assert pairs(fused(op, slots)) == wanted


@pytest.mark.parametrize("seed", range(3))
def test_names_and_order_say_nothing(seed: int) -> None:
    model = cached_decoder()
    wanted = {(f"past.{i}.{part}", f"present.{i}.{part}") for i in range(3) for part in PARTS}
    assert pairs(model) == wanted == pairs(reordered(model, seed))
    other, old = renamed(model, seed)
    assert {(old[past], old[present]) for past, present in pairs(other)} == wanted


def test_caches_that_grow_alike_are_equally_long() -> None:
    """No two lengths have one name in the file; that they are equal follows from how they grow."""
    (alike,) = equally_long(read(cached_decoder()))
    assert set(alike) == {Length(f"past.{i}.{part}", 1) for i in range(3) for part in PARTS}


def test_a_window_is_not_as_long_as_all() -> None:
    assert equally_long(read(joined(windowed))) == ()
    assert equally_long(read(joined(appended))) == ((Length("past", 1),),)


def middle(model: onnx.ModelProto, droppable: frozenset[str], block: int = 1) -> Span | Refusal:
    graph, found = streams(model)
    (stream,) = (s for s in found if "h1" in firsts(s.chain))
    names = firsts(stream.chain)
    start = names.index(f"h{block - 1}"), names.index(f"h{block}")
    return prove(graph, stream, *start, None, droppable)


def presents(model: onnx.ModelProto) -> frozenset[str]:
    return frozenset(cache.present for cache in find_caches(read(model)))


def test_a_block_that_makes_a_cache_goes_only_with_leave() -> None:
    model = cached_decoder()
    kept = middle(model, frozenset())
    assert isinstance(kept, Refusal)
    assert "the graph output 'present.1." in kept.reason
    assert kept.output.startswith("present.1.")
    span = middle(model, presents(model))
    assert isinstance(span, Span)
    assert set(span.dropped) == {"present.1.key", "present.1.value"}
    graph = read(model).graph
    assert {graph.producer[name].index for name in span.dropped} <= span.removed


def test_leave_for_another_output_is_none() -> None:
    model = cached_decoder()
    said = middle(model, presents(model) - {"present.1.value"})
    assert isinstance(said, Refusal)
    assert said.output == "present.1.value"


def test_keys_that_another_block_reads_keep_their_block() -> None:
    model = cached_decoder(lend=1)
    said = middle(model, presents(model))
    assert isinstance(said, Refusal)
    assert "outside it still reads 'present.1.key'" in said.reason
    assert said.output == ""
    assert isinstance(middle(model, presents(model), 2), Span)


def test_an_output_that_is_no_cache_keeps_its_block() -> None:
    model = cached_decoder()
    model.graph.output.append(helper.make_tensor_value_info("a1", FLOAT, ("batch", "length", D)))
    said = middle(model, presents(model))
    assert isinstance(said, Refusal)
    assert said.output == "a1"


def test_a_past_that_is_given_back_as_it_is() -> None:
    """Keys of an encoder, say: not made inside any block, so they hinder none."""
    net = Net()
    net.node("Identity", "past", out="present")
    net.node("MatMul", "x", net.weight(D, D), out="y")
    model = net.model({"x": ROWS, "past": PAST}, {"y": ROWS, "present": ANY})
    assert find_caches(read(model)) == (Cache("past", "present"),)
    assert equally_long(read(model)) == ()
