"""The walk: surrogates of every form are found where planted, and the model built is as walked."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from blockfold.ir.onnx_file import read
from blockfold.ir.spans import Span
from blockfold.passes.fit import Walk
from blockfold.passes.forms import mixes
from blockfold.passes.pipeline import ALL_PASSES, rewrite
from blockfold.passes.recipe import Healing, Recipe
from blockfold.passes.surrogates import Form, Wish
from blockfold.passes.task import Task
from blockfold.tests.networks import (
    FLOAT,
    LOGITS,
    TOKENS,
    Net,
    attend,
    compare,
    labelled,
    masked_encoder,
    residual_cnn,
    residual_mlp,
    run,
    samples,
    shared_mask,
    tabular,
)
from blockfold.tests.walking import walking

D = 8
EXACT = 1e-6


def context_net() -> onnx.ModelProto:
    """Three blocks; the second is x + mean(x) V, the others residual MLPs."""
    net = Net()
    h = "x"
    for i in range(3):
        net.scope = f"/blocks.{i}"
        if i == 1:
            mean = net.node("ReduceMean", h, axes=[1], keepdims=1)
            wide = net.linear(mean, D, 4 * D)
            branch = net.linear(wide, 4 * D, D)
        else:
            branch = net.mlp(net.norm(h, D), D)
        h = net.node("Add", h, branch, out=f"h{i}")
    net.head(h, D)
    return net.model({"x": (FLOAT, ("batch", TOKENS, D))}, LOGITS)


def folded_net() -> onnx.ModelProto:
    """The second block adds an affine map of what the first one's MLP is made of."""
    net = Net()
    wide = net.node("Relu", net.linear(net.norm("x", D), D, 2 * D), out="wide")
    net.scope = "/blocks.0"
    h = net.node("Add", "x", net.linear(wide, 2 * D, D), out="h0")
    net.scope = "/blocks.1"
    h = net.node("Add", h, net.linear(net.linear(h, D, 4 * D), 4 * D, D), out="h1")
    net.scope = "/blocks.2"
    h = net.node("Add", h, net.mlp(net.norm(h, D), D), out="h2")
    net.head(h, D)
    return net.model({"x": (FLOAT, ("batch", TOKENS, D))}, LOGITS)


PLANTED: dict[str, tuple[onnx.ModelProto, str, Form]] = {
    "affine": (residual_mlp(3, affine=(1,)), "blocks.1", "affine"),
    "context": (context_net(), "blocks.1", "affine + context"),
    "joint": (folded_net(), "blocks.1", "affine + folded"),
    "maps": (residual_cnn(affine=(1,)), "blocks.1", "affine"),
    "conv": (residual_cnn(affine=(1,)), "blocks.1", "conv"),
    "strides": (residual_cnn((4, 6), 2, (2,), downsampling=True), "blocks.2", "conv"),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_block_is_solved_exactly(name: str) -> None:
    model, block, form = PLANTED[name]
    with walking(model, labelled(model, 240)) as (task, walk, spans):
        (fitted,) = walk([Recipe((Wish(spans[block], form),))])
        (replacement,) = fitted.replacements
        assert replacement.surrogate == form
        assert replacement.predicted_error < EXACT
        made = rewrite(task.model, fitted.replacements, {}, ALL_PASSES).model.proto
        fitted.close()
    fresh = samples(model, 20, seed=9)
    compare(run(model, fresh), run(made, fresh), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(
    ("name", "form"),
    [("context", "affine"), ("joint", "identity"), ("joint", "folded"), ("strides", "affine")],
)
def test_a_poorer_form_does_not_do(name: str, form: Form) -> None:
    model, block, _ = PLANTED[name]
    with walking(model, labelled(model, 240)) as (_, walk, spans):
        (fitted,) = walk([Recipe((Wish(spans[block], form),), Healing(refit=None))])
        assert fitted.replacements[0].predicted_error > 1e-3
        fitted.close()


TOKEN_FORMS: tuple[Form, ...] = (
    "identity",
    "folded",
    "affine",
    "affine + context",
    "affine + folded",
    "affine + folded + context",
)
BUILT: dict[str, tuple[onnx.ModelProto, str, tuple[Form, ...]]] = {
    "mlp": (residual_mlp(4), "blocks.1", TOKEN_FORMS),
    "cnn": (residual_cnn(blocks=4), "blocks.1", (*TOKEN_FORMS[:-1], "conv")),
    "downsampling": (residual_cnn((4, 6), 2, downsampling=True), "blocks.2", ("affine", "conv")),
    "first": (residual_mlp(4), "blocks.0", ("identity", "affine", "affine + context")),
    "tabular": (tabular(blocks=4), "blocks.1", ("identity", "folded", "affine", "affine + folded")),
    "encoder": (masked_encoder(3), "layer.1", TOKEN_FORMS),
    "causal": (shared_mask(), "blocks.1", ("identity", "affine", "affine + context")),
}
CASES = [(name, form) for name, (_, _, forms) in BUILT.items() for form in forms]


@pytest.mark.parametrize(("name", "form"), CASES, ids=str)
def test_the_model_built_gives_what_the_walk_gave(name: str, form: Form) -> None:
    """Also with refits, padding and a last batch that is smaller."""
    model, block, _ = BUILT[name]
    data = samples(model, 90)
    with walking(model, data) as (task, walk, spans):
        (fitted,) = walk([Recipe((Wish(spans[block], form),))])
        (again,) = walk.solved_on_both([(fitted.recipe, fitted.replacements)])
        assert [r.span.exit for r in again] == [r.span.exit for r in fitted.replacements]
        made = rewrite(task.model, fitted.replacements, {}, ALL_PASSES).model.proto
        onnx.checker.check_model(made, full_check=True)
        seen = np.concatenate(list(fitted.tapes.select.real(task.output)))
        held = {key: array[task.splits.select] for key, array in data.items()}
        fitted.close()
    compare({task.output: seen}, run(made, held), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(
    ("name", "form"), [case for case in CASES if case[0] in ("encoder", "cnn")]
)
def test_every_new_node_has_a_name_of_its_own_and_says_why_it_is_there(
    name: str, form: Form
) -> None:
    given, block, _ = BUILT[name]
    model = onnx.ModelProto()
    model.CopyFrom(given)
    model.ir_version = 10  # the first whose nodes hold metadata
    with walking(model, samples(model, 90)) as (task, walk, spans):
        (fitted,) = walk([Recipe((Wish(spans[block], form),))])
        made = rewrite(task.model, fitted.replacements, {}, ALL_PASSES).model.proto
        fitted.close()
    old = {node.name for node in model.graph.node}
    names = [node.name for node in made.graph.node]
    assert len(set(names)) == len(names)
    told = set()
    for node in (node for node in made.graph.node if node.name not in old):
        assert node.name.startswith("blockfold/")
        assert node.name.count("blockfold/") == 1
        found = {entry.key: entry.value for entry in node.metadata_props}
        assert found["namespace"] == f"blockfold/{found['blockfold.span']}"
        assert float(found["blockfold.predicted_error"]) >= 0
        told.add((found["blockfold.span"], found["blockfold.surrogate"]))
    meant = {(r.span.name, r.surrogate) for r in fitted.replacements if r.surrogate != "identity"}
    assert told == meant


def test_a_refit_lowers_the_error_downstream() -> None:
    model = residual_mlp(4, seed=2)
    with walking(model, labelled(model, 400)) as (task, walk, spans):
        wishes = (Wish(spans["blocks.1"], "affine"),)
        without, repaired = walk([Recipe(wishes, Healing(refit=None)), Recipe(wishes)])
        kinds = [r.form for r in repaired.replacements]
        assert kinds == ["affine", "refit", "refit"]
        assert [r.form for r in without.replacements] == ["affine"]
        assert task.data.samples == 400
        for fitted in (without, repaired):
            fitted.close()
    fresh = samples(model, 200, seed=8)
    errors = []
    for replacements in (without.replacements, repaired.replacements):
        made = rewrite(read(model), replacements, {}, ALL_PASSES).model.proto
        gap = run(model, fresh)["logits"] - run(made, fresh)["logits"]
        errors.append(float(np.square(gap).mean()))
    assert errors[1] < 0.9 * errors[0]


def test_recipes_walked_together_come_out_as_alone() -> None:
    model = residual_mlp(4)
    with walking(model, labelled(model, 120)) as (_, walk, spans):
        recipes = [
            Recipe((Wish(spans["blocks.0"], "affine"), Wish(spans["blocks.2"], "identity"))),
            Recipe((Wish(spans["blocks.1"], "affine"),)),
        ]
        together = walk(recipes)
        for recipe, fitted in zip(recipes, together, strict=True):
            (alone,) = walk([recipe])
            for one, other in zip(alone.replacements, fitted.replacements, strict=True):
                assert one.span.exit == other.span.exit
                if one.solution is not None and other.solution is not None:
                    np.testing.assert_array_equal(one.solution.W, other.solution.W)


@pytest.mark.parametrize(
    ("model", "span", "expected"),
    [
        (residual_mlp(3), "blocks.1", False),
        (shared_mask(), "blocks.1", False),
        (residual_cnn(), "blocks.1", False),
        (context_net(), "blocks.1", True),
        (masked_encoder(), "layer.1 (1/2)", True),
    ],
    ids=["pointwise", "causal", "local", "mean", "attention"],
)
def test_only_spans_that_see_what_follows_are_given_the_mean(
    model: onnx.ModelProto, span: str, expected: bool
) -> None:
    with walking(model, samples(model, 40)) as (task, walk, spans):
        assert seen_to_mix(task, walk, spans[span]) is expected


def seen_to_mix(task: Task, walk: Walk, span: Span) -> bool:
    return mixes(task, walk.pieces, span.entry, span.exit, span.channel_axis)


def test_attention_without_a_mask_mixes() -> None:
    net = Net()
    zero = net.constant(np.zeros(1, np.float32))
    h = "x"
    for i in range(2):
        net.scope = f"/blocks.{i}"
        h = net.node("Add", h, attend(net, net.norm(h, D), D, zero), out=f"h{i}")
    net.head(h, D)
    model = net.model({"x": (FLOAT, ("batch", TOKENS, D))}, LOGITS)
    with walking(model, samples(model, 40)) as (task, walk, spans):
        assert seen_to_mix(task, walk, spans["blocks.1"])


def test_maps_gated_by_their_own_mean_mix() -> None:
    net = Net()
    h = net.node("Relu", net.conv("x", 3, D))
    for i in range(2):
        net.scope = f"/blocks.{i}"
        mean = net.node("ReduceMean", h, axes=[2, 3], keepdims=1)
        gate = net.node("Sigmoid", net.conv(mean, D, D, kernel=1))
        h = net.node("Add", h, net.node("Mul", net.conv(h, D, D), gate), out=f"h{i}")
    net.head(h, D, axes=(2, 3))
    model = net.model({"x": (FLOAT, ("batch", 3, 6, 6))}, LOGITS)
    with walking(model, samples(model, 40)) as (task, walk, spans):
        assert seen_to_mix(task, walk, spans["blocks.1"])
