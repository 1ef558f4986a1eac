"""Streams that cross, split, rejoin, share: the right cuts and blocks, and spans that can go."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import onnx
import pytest

from blockfold.ir.onnx_file import read
from blockfold.tests.adversaries import (
    ADVERSARIES,
    TOKENS_IO,
    D,
    albert,
    attend,
    block,
    blocks,
    conditioned,
    embeddings,
    encoder_decoder,
    exchange,
    finish,
    gated,
    half_precision,
    idle,
    inception,
    interleaved,
    layer,
    padded,
    parallel,
    residual,
    unet,
)
from blockfold.tests.networks import FLOAT, Net, compare, run, samples
from blockfold.tests.replacing import (
    assert_named_and_ordered_at_will,
    firsts,
    ranges,
    refused,
    renamed,
    replaced,
    streams,
    summary,
)

Ends = list[tuple[str, str]]


def runs(*cuts: str) -> Ends:
    """Neighbouring pairs."""
    return list(pairwise(cuts))


def of(model: onnx.ModelProto) -> dict[str, tuple[list[str], Ends]]:
    """Per source the cuts of its chain, and its blocks."""
    return {s.chain.source: (firsts(s.chain), ranges(s)) for s in streams(model)[1]}


def chain(*stream: str, head: Sequence[str] = ("y",)) -> tuple[list[str], Ends]:
    """All stretches but those to the head are blocks."""
    return [*stream, *head], runs(*stream)


@pytest.mark.parametrize("join", ["Add", "Concat"])
def test_interleaved_streams_are_two_chains(join: str) -> None:
    found = of(interleaved(join))
    assert found.keys() == {"x", "z"}
    assert found["x"][1] == runs("x", "h0", "h1", "h2")
    assert found["z"][1] == runs("z", "e0", "e1", "e2")
    cuts = [cut for stream in found.values() for cut in stream[0]]
    assert cuts.count("y") == 1
    assert len(cuts) == len(set(cuts))


@pytest.mark.parametrize(("entry", "exit_"), [("x", "h0"), ("h0", "h2"), ("e1", "e2"), ("z", "e2")])
def test_a_span_of_one_stream_leaves_the_other_alone(entry: str, exit_: str) -> None:
    span = replaced(interleaved(), entry, exit_)
    graph = read(interleaved()).graph
    scope = "blocks" if exit_[0] == "h" else "others"
    assert {graph.nodes[index].scope[0].split(".")[0] for index in span.removed} == {scope}


def test_streams_that_exchange_information_have_no_cut_until_they_meet() -> None:
    found = of(exchange())
    assert found == {"x": (["x", "joined", "h2", "h3", "y"], runs("x", "joined", "h2", "h3"))}
    span = replaced(exchange(), "x", "joined")
    assert (span.side_inputs, span.blocks) == (("z",), 1)
    replaced(exchange(), "h2", "h3")


def test_one_way_attention_leaves_the_taker_its_cuts() -> None:
    """The twin of the exchange: who only takes has side inputs, who gives a cut before he does."""
    net = Net()
    h, e = "x", "z"
    for i in range(3):
        e = block(net, e, f"givers.{i}", f"e{i}")
        net.scope = f"/takers.{i}"
        h = net.node("Add", h, attend(net, net.norm(h, D), e), out=f"h{i}")
    model = finish(net, h, {"x": TOKENS_IO, "z": TOKENS_IO})
    found = of(model)
    assert found["x"] == chain("x", "h0", "h1", "h2")
    assert found["z"] == chain("z", "e0", head=())
    assert replaced(model, "h0", "h1").side_inputs == ("e1",)
    assert replaced(model, "h1", "h2").side_inputs == ("e1",)
    replaced(model, "z", "e0")


def test_branches_that_are_concatenated_are_one_unit() -> None:
    model = inception()
    assert of(model) == {"x": chain("x", "z0", "z1", "z2")}
    for ends in runs("x", "z0", "z1"):
        assert refused(model, *ends).reason.startswith("no residual sum joins its ends")
        assert replaced(model, *ends, data=True).channel_axis == 1


@pytest.mark.parametrize("form", ["Sum", "branches first", "stream first"])
def test_parallel_attention_and_mlp_are_one_unit(form: str) -> None:
    model = parallel(form)
    assert of(model) == {"x": chain("x", "h0", "h1", "h2")}
    replaced(model, "h0", "h1")


def test_channels_that_pass_by_are_part_of_the_unit() -> None:
    model = ADVERSARIES["channel_split"]()
    assert of(model) == {"x": chain("x", "h0", "h1", "h2")}
    assert refused(model, "h0", "h1").reason.startswith("no residual sum joins its ends")
    replaced(model, "h0", "h1", data=True)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_cuts_lie_only_outside_the_longest_skip(depth: int) -> None:
    model = unet(depth)
    ((cuts, found),) = of(model).values()
    last = 2 * depth + 3
    inside = {f"h{i}" for i in range(2, last)}
    assert inside.isdisjoint(cuts)
    fused = cuts[cuts.index(f"h{last}") - 1]
    outside = [("x", "h0"), ("h0", "h1"), (fused, f"h{last}"), (f"h{last}", f"h{last + 1}")]
    assert set(outside) <= set(found)
    for ends in outside:
        replaced(model, *ends)
    assert "shape" in refused(model, "h1", cuts[3], data=True).reason
    replaced(model, "h1", fused, data=True)


def test_a_smooth_gate_for_all_blocks_hides_the_cuts_between_them() -> None:
    assert of(gated()) == {"x": chain("x", "h2")}
    replaced(gated(), "x", "h2")
    assert of(gated("own")) == {"x": chain("x", "h0", "h1", "h2")}
    replaced(gated("own"), "x", "h0")


def test_a_padding_mask_told_by_zeros_of_the_stream_hides_nothing() -> None:
    model = padded()
    assert of(model) == {"x": (["x", "h0.a", "h0", "h1.a", "h1", "y"], [("x", "h0"), ("h0", "h1")])}
    for ends in runs("x", "h0", "h1"):
        assert replaced(model, *ends).side_inputs == ("bias",)
    feeds = samples(model, 2)
    feeds["x"][1, 4:] = 0
    whole = run(model, feeds)
    feeds["x"][1, 4:, 0] = 1
    with pytest.raises(AssertionError, match="off by"):  # the mask masks
        compare(whole, run(model, feeds), atol=0, rtol=1e-3)


def test_weights_that_all_blocks_share_stay_until_the_last_block_goes() -> None:
    model = albert()
    assert of(model) == {"x": chain("x", "h0", "h1", "h2", "h3")}
    for ends in (("h1", "h2"), ("x", "h3")):
        replaced(model, *ends)  # and with the last block all weights that nothing reads
    assert len(model.graph.initializer) == 7


@pytest.mark.parametrize(
    "how",
    [
        "added",
        "added as it is",
        "scaling the branch",
        "added to the branch as it is",
    ],
)
def test_what_conditions_every_block_does_not_hide_them(how: str) -> None:
    model = conditioned(how)
    cuts, found = of(model)["x"]
    assert set(cuts) >= {"h0", "h1", "h2"}
    assert found == runs("x", "h0", "h1", "h2")
    span = replaced(model, "h0", "h1")
    assert span.entry == ("h0" if "branch" in how else "s1")


def test_a_memory_that_is_added_at_the_end_does_not_hide_who_attends_to_it() -> None:
    net = Net()
    h, e = "x", "z"
    for i in range(2):
        net.scope = f"/takers.{i}"
        h = net.node("Add", h, attend(net, net.norm(h, D), "z"), out=f"h{i}")
    net.scope = "/giver"
    e = net.node("Add", e, net.mlp(net.norm(e, D), D))
    model = finish(net, net.node("Add", h, e), {"x": TOKENS_IO, "z": TOKENS_IO})
    assert of(model)["x"][1] == runs("x", "h0", "h1")


@pytest.mark.parametrize(
    ("encoder", "decoder"),
    [(2, 2), (6, 1), (5, 2), (1, 5), (2, 6)],
)
def test_every_layer_of_encoder_and_decoder_is_found(encoder: int, decoder: int) -> None:
    model = encoder_decoder(encoder, decoder)
    found = of(model)
    assert found.keys() == {"source", "target"}
    parts = [f"h{i}{part}" for i in range(decoder) for part in (".a", ".c", "")]
    assert found["target"][0] == ["target", *parts, "y"]
    parts = ["source", *(f"e{i}{part}" for i in range(encoder) for part in (".a", ""))]
    assert found["source"][0][: len(parts)] == parts
    if decoder > 1:
        assert found["target"][1] == runs("target", *(f"h{i}" for i in range(decoder)))
    if encoder > 1:
        assert found["source"][1] == runs("source", *(f"e{i}" for i in range(encoder)))


@pytest.mark.parametrize(
    ("ends", "beside"),
    [
        (("source", "e0"), ()),
        (("source", "e2"), ()),
        (("e0", "e1.a"), ()),
        (("h0", "h1"), ("states",)),
        (("h0.a", "h0.c"), ("states",)),
        (("h0.c", "h1.a"), ()),
    ],
)
def test_spans_of_encoder_and_decoder(ends: tuple[str, str], beside: tuple[str, ...]) -> None:
    assert replaced(encoder_decoder(3, 2), *ends).side_inputs == beside


def test_the_encoder_falls_away_with_the_whole_decoder() -> None:
    model = encoder_decoder(2, 2)
    span = replaced(model, "target", "h1")
    nodes = read(model).graph.nodes
    gone = {nodes[index].scope[0] for index in span.removed}
    both = {f"{half}.{i}" for half in ("encoder", "decoder") for i in (0, 1)}
    assert gone == {*both, "encoder.norm", "embeddings"}


@pytest.mark.parametrize("first", ["words", "places", "kinds"])
def test_words_places_and_kinds_are_one_stream(first: str) -> None:
    model = embeddings(first)
    ((cuts, found),) = of(model).values()
    assert cuts[1:] == ["h0.a", "h0", "h1.a", "h1", "y"]
    assert found == [(cuts[0], "h0"), ("h0", "h1")]
    (stream,) = streams(model)[1]
    assert stream.chain.cuts[0].last == "embedded"
    assert replaced(model, cuts[0], "h0").entry == "embedded"


def test_a_dtype_change_is_no_block_and_spans_do_not_cross_it() -> None:
    model = half_precision()
    assert of(model) == {"x": chain("x", "h0", "h1", "h2", "h3", "h4", "h5")}
    assert replaced(model, "h1", "h2").dtype == "float16"
    assert replaced(model, "h1", "h3").entry == "narrow"
    assert replaced(model, "h3", "h4").entry == "wide"
    assert replaced(model, "h0", "h1").dtype == "float32"
    for data in (False, True):
        assert "float32 and float16" in refused(model, "h0", "h2", data=data).reason
        assert "float16 and float32" in refused(model, "h2", "h4", data=data).reason


def test_a_float32_span_over_the_narrow_part_is_whole() -> None:
    """Both ends are float32, and everything between may go."""
    model = half_precision()
    span = replaced(model, "h1", "h4")
    assert (span.entry, span.dtype) == ("h1", "float32")
    ops = [read(model).graph.nodes[index].op for index in span.removed]
    assert ops.count("Cast") == 2


def test_dropout_and_identity_are_no_blocks() -> None:
    model = idle()
    assert of(model) == {"x": chain("x", "h0", "h1", "h2")}
    replaced(model, "h0", "h1")
    replaced(model, "x", "h2")


FORMS = ["branch first", "stream first", "sum of two", "norm after", "batch norm after"]


@pytest.mark.parametrize("form", FORMS)
def test_the_way_a_residual_is_written_does_not_matter(form: str) -> None:
    model = residual(form)
    assert of(model) == {"x": chain("x", "h0", "h1", "h2")}
    span = replaced(model, "h0", "h1")
    assert span.entry == ("n0" if form.endswith("after") else "h0")
    made = {name for index in span.removed for name in read(model).graph.nodes[index].outputs}
    assert made.isdisjoint({"n0", "n1"})


def test_one_block() -> None:
    net = Net()
    model = finish(net, blocks(net, "x", 1))
    assert of(model) == {"x": chain("x", "h0")}
    replaced(model, "x", "h0")
    net = Net()
    model = finish(net, layer(net, "x", "layer", "h0"))
    assert of(model) == {"x": (["x", "h0.a", "h0", "y"], runs("x", "h0.a", "h0"))}
    replaced(model, "x", "h0")


def test_no_block() -> None:
    net = Net()
    model = finish(net, "x")
    assert of(model) == {"x": (["x", "y"], [])}
    assert "shape" in refused(model, "x", "y", data=True).reason
    net = Net()
    net.node("Relu", net.norm("x", D), out="y")
    assert of(net.model({"x": TOKENS_IO}, {"y": TOKENS_IO})) == {}


def test_a_network_without_a_cut() -> None:
    """Three outer paths: only the ends are cuts, and nothing repeats between them."""
    net = Net()
    parts = [net.linear("x", D, D) for _ in range(2)]
    net.node("MatMul", net.node("Mul", *parts), net.weight(D, D), out="inner")
    net.node("Concat", "inner", net.node("Relu", "x"), axis=-1, out="y")
    model = net.model({"x": TOKENS_IO}, {"y": (FLOAT, ("batch", "seq", 2 * D))})
    assert of(model) == {"x": (["x", "y"], [])}


def test_a_source_that_never_reaches_the_sink_is_left_out() -> None:
    """It is compared, measured and looked up by, which lets no derivative through."""
    net = Net()
    best = net.node("ArgMax", net.mlp("z", D), axis=-1, keepdims=0)
    picked = net.node("Gather", net.weight(D, D), best, out="picked")
    length = net.node("Shape", "z")
    h = net.node("Add", "x", net.node("Reshape", picked, length), out="joined")
    model = finish(net, blocks(net, h, 2), {"x": TOKENS_IO, "z": TOKENS_IO})
    ((cuts, found),) = of(model).values()
    assert cuts[1:] == ["h0", "h1", "y"]
    assert cuts[0] in ("x", "picked")
    assert found == [(cuts[0], "h0"), ("h0", "h1")]
    replaced(model, cuts[0], "h0")


@pytest.mark.parametrize("name", list(ADVERSARIES))
def test_names_and_order_of_nodes_change_nothing(name: str) -> None:
    assert_named_and_ordered_at_will(ADVERSARIES[name]())


def test_the_check_for_equal_answers_can_fail() -> None:
    said = summary(albert(3))
    assert said == summary(albert(3))
    assert said not in (summary(albert(2)), summary(gated()), summary(gated("own")))
    assert said != summary(renamed(albert(3), 0)[0])
