"""Models of several streams: one plan, one promise, and blocks removed from all of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

import blockfold
from blockfold.calibration.solve import Solution
from blockfold.passes.pipeline import ALL_PASSES, rewrite
from blockfold.passes.recipe import Healing, Recipe
from blockfold.passes.surrogates import Wish
from blockfold.tests.networks import (
    FLOAT,
    LOGITS,
    TOKENS,
    Dims,
    Net,
    compare,
    run,
    samples,
    two_streams,
)
from blockfold.tests.walking import walking

SETTINGS: dict[str, Any] = {"threads": 1, "provider": "cpu", "metric": "agreement"}


def joined(*, crossing: bool, d: int = 8, blocks: int = 4) -> onnx.ModelProto:
    """Streams of residual MLPs from `context` and from `x`; block 1 of the one and 2 of the other
    are affine.

    Where they are `crossing` each block of x reads the last state of `context`, as a decoder does;
    else both are pooled and multiplied, as those of pictures and captions are. The nodes of both
    stand interleaved as far as they can.
    """
    net = Net()
    h, c = "x", "context"

    def step(stream: str, i: int, x: str, own: int, side: str = "") -> str:
        net.scope = f"/{stream}.{i}"
        if i == own:
            branch = net.affine(x, d)
        else:
            read = net.norm(x, d)
            if side:
                both = net.node("Concat", read, side, axis=-1)
                read = net.linear(both, 2 * d, d)
            branch = net.mlp(read, d)
        return net.node("Add", x, branch, out=f"{stream}{i}")

    for i in range(blocks):
        c = step("encoder", i, c, 1)
        if not crossing:
            h = step("decoder", i, h, 2)
    if crossing:
        for i in range(blocks):
            h = step("decoder", i, h, 2, c)
    net.scope = "/head"
    pooled = [net.node("ReduceMean", v, axes=[1], keepdims=0) for v in (h, c)[: 1 + (not crossing)]]
    net.head(pooled[0] if crossing else net.node("Mul", *pooled), d, axes=())
    io: tuple[int, Dims] = (FLOAT, ("batch", TOKENS, d))
    return net.model({"context": io, "x": io}, LOGITS)


KINDS = {
    "towers": joined(crossing=False),
    "encoder and decoder": joined(crossing=True),
}


@pytest.mark.parametrize("budget", [{"remove": 2}, {"max_drop": 0.05}], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_planted_blocks_of_both_streams_are_found_in_one_run(
    kind: str, budget: dict[str, Any]
) -> None:
    model = KINDS[kind]
    made = blockfold.optimize(model, samples(model, 240), **budget, **SETTINGS)
    assert {decision.name for decision in made.plan.decisions} == {"encoder.1", "decoder.2"}
    assert {decision.stream for decision in made.plan.decisions} == {"context", "x"}
    fresh = samples(model, 50, seed=3)
    compare(run(model, fresh), run(made.model, fresh), atol=0, rtol=1e-5)


def left_out(model: onnx.ModelProto, data: Any, names: tuple[str, ...]) -> list[float]:
    """Predicted errors of affine maps in place of blocks, fitted in one walk, in its order."""
    with walking(model, data) as (task, walk, spans):
        wishes = tuple(Wish(spans[name], "affine") for name in names)
        (fitted,) = walk([Recipe(wishes, Healing(refit=None))])
        made = rewrite(task.model, fitted.replacements, {}, ALL_PASSES).model.proto
        seen = np.concatenate(list(fitted.tapes.select.real(task.output)))
        held = {key: array[task.splits.select] for key, array in data.items()}
        fitted.close()
    compare({task.output: seen}, run(made, held), atol=1e-4, rtol=1e-3)
    return [replacement.predicted_error for replacement in fitted.replacements]


@pytest.mark.parametrize(
    "names",
    [
        ("encoder.0", "decoder.1"),
        ("decoder.0", "encoder.2", "decoder.3"),
        ("encoder.0", "encoder.2", "decoder.0", "decoder.2"),
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", KINDS)
def test_what_was_walked_is_what_is_built(kind: str, names: tuple[str, ...]) -> None:
    """Whatever the order of the wishes: surrogates are solved in the order of the graph."""
    model = KINDS[kind]
    data = samples(model, 120)
    one, other = left_out(model, data, names), left_out(model, data, names[::-1])
    assert one == other
    assert min(one) > 1e-6 or "decoder.2" in names


def test_streams_whose_blocks_stand_interleaved() -> None:
    model = two_streams()
    left_out(model, samples(model, 120), ("encoder.0", "blocks.1"))


def test_a_decoder_is_fitted_to_what_is_left_of_its_encoder() -> None:
    """Its map is solved on the states it will read: another one than beside the whole encoder."""
    model = KINDS["encoder and decoder"]
    data = samples(model, 120)

    def solved(*names: str) -> Solution:
        with walking(model, data) as (_, walk, spans):
            wishes = tuple(Wish(spans[name], "affine") for name in names)
            (fitted,) = walk([Recipe(wishes, Healing(refit=None))])
            fitted.close()
        last = fitted.replacements[-1]
        assert last.span.name == "decoder.1"
        assert last.solution is not None
        return last.solution

    alone, after = solved("decoder.1"), solved("encoder.0", "decoder.1")
    assert np.abs(alone.W - after.W).max() > 1e-3


def towers_of_two_outputs(d: int = 8, blocks: int = 3) -> onnx.ModelProto:
    """Two towers that never meet: x -> logits, whose block 1 is affine, and context -> caption."""
    net = Net()
    ends = []
    for stream, name, own in (("x", "seen", 1), ("context", "read", None)):
        h = stream
        for i in range(blocks):
            net.scope = f"/{name}.{i}"
            branch = net.affine(h, d) if i == own else net.mlp(net.norm(h, d), d)
            h = net.node("Add", h, branch, out=f"{name}{i}")
        net.scope = f"/{name}.head"
        ends.append(net.node("ReduceMean", h, axes=[1], keepdims=0))
    logits = net.linear(ends[0], d, 3)
    net.node("Identity", logits, out="logits")
    net.node("Identity", ends[1], out="caption")
    io: tuple[int, Dims] = (FLOAT, ("batch", TOKENS, d))
    outputs: dict[str, tuple[int, Dims]] = {
        "logits": (FLOAT, ("batch", 3)),
        "caption": (FLOAT, ("batch", d)),
    }
    return net.model({"x": io, "context": io}, outputs)


def test_blocks_that_the_judged_output_does_not_depend_on_stay() -> None:
    """They would look free of damage: nothing that is measured would tell."""
    model = towers_of_two_outputs()
    data = samples(model, 240)
    result = blockfold.optimize(model, data, remove=1, output="logits", **SETTINGS)
    assert [decision.name for decision in result.plan.decisions] == ["seen.1"]
    reasons = {r.name: r.reason for r in result.plan.refusals}
    assert {"read.0", "read.1", "read.2"} <= reasons.keys()
    assert "'logits', does not depend on it" in reasons["read.0"]
    compare(run(result.model, data), run(model, data), rtol=1e-5, atol=1e-5)
    other = blockfold.optimize(
        model, data, remove=1, output="caption", metric="cosine", threads=1, provider="cpu"
    )
    assert {d.stream for d in other.plan.decisions} == {"context"}


def test_where_the_judged_output_depends_on_no_block() -> None:
    net = Net()
    h = "x"
    for i in range(3):
        net.scope = f"/blocks.{i}"
        h = net.node("Add", h, net.mlp(net.norm(h, 8), 8), out=f"h{i}")
    net.node("Identity", h, out="stream")
    net.node("ReduceMean", "x", axes=[1], keepdims=0, out="plain")
    io: tuple[int, Dims] = (FLOAT, ("batch", TOKENS, 8))
    model = net.model({"x": io}, {"plain": (FLOAT, ("batch", 8)), "stream": io})
    with pytest.raises(blockfold.Unsupported, match="'plain', which is judged, depends on none"):
        blockfold.optimize(
            model, samples(model, 120), remove=1, metric="cosine", threads=1, provider="cpu"
        )
