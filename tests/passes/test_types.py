"""Types other than float32: maps in the stream's own, refused where its range is too small."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from ml_dtypes import bfloat16
from onnx import TensorProto, helper, numpy_helper

from blockfold.calibration.features import NotFinite
from blockfold.calibration.solve import Solution
from blockfold.calibration.splits import split
from blockfold.ir.errors import NotMet
from blockfold.ir.onnx_diff import diff
from blockfold.ir.onnx_file import read
from blockfold.passes import rows
from blockfold.passes.costs import CostModel, Costs
from blockfold.passes.fit import Walk
from blockfold.passes.layout import lay_out
from blockfold.passes.pipeline import ALL_PASSES, rewrite
from blockfold.passes.precision import OutOfRange, rounded
from blockfold.passes.recipe import Healing, Recipe
from blockfold.passes.surrogates import Form, Wish
from blockfold.passes.trial import Trials
from blockfold.tests.narrowing import halved, narrowed
from blockfold.tests.networks import (
    FLOAT,
    LOGITS,
    TOKENS,
    Arrays,
    Net,
    compare,
    labelled,
    masked_encoder,
    residual_mlp,
    run,
    samples,
)
from blockfold.tests.walking import walking

D = 8
HALF_STEP = 2.0**-11


def test_a_solution_is_rounded_to_what_the_type_holds() -> None:
    rng = np.random.default_rng(0)
    given = Solution(rng.standard_normal((5, 3)), rng.standard_normal(3), 0.1, 9, 5, 2.0)
    for dtype, held in (("float16", np.float16), ("bfloat16", bfloat16), ("float32", np.float32)):
        found = rounded(given, dtype)
        assert found.W.dtype == np.float64
        np.testing.assert_array_equal(found.W, given.W.astype(held).astype(np.float64))
        np.testing.assert_array_equal(found.b, given.b.astype(held).astype(np.float64))
        assert (found.ridge, found.rows, found.rank) == (0.1, 9, 5)


@pytest.mark.parametrize("part", ["W", "b"])
def test_a_solution_beyond_the_type_is_refused(part: str) -> None:
    W, b = np.eye(3), np.zeros(3)
    {"W": W, "b": b}[part].flat[0] = -70000.0
    given = Solution(W, b, 0.0, 1, 1, 1.0)
    with pytest.raises(OutOfRange, match=r"numbers up to 7e\+04, more than float16 holds"):
        rounded(given, "float16")
    assert rounded(given, "bfloat16").W.shape == (3, 3)


@pytest.mark.parametrize(
    ("model", "block", "form"),
    [
        (residual_mlp(3, affine=(1,)), "blocks.1", "affine"),
        (residual_mlp(3, affine=(1,)), "blocks.1", "affine + folded"),
        (masked_encoder(), "layer.1", "affine + context"),
    ],
    ids=["affine", "folded", "context"],
)
def test_a_half_precision_model_gets_half_precision_maps(
    model: onnx.ModelProto, block: str, form: Form
) -> None:
    """What the walk foretells is what the written model gives, to float16's rounding."""
    half = narrowed(model)
    data = halved(samples(model, 160))
    with walking(half, data) as (task, walk, spans):
        (fitted,) = walk([Recipe((Wish(spans[block], form),))])
        assert fitted.refusal is None
        made = rewrite(task.model, fitted.replacements, {}, ALL_PASSES).model.proto
        select = {name: array[task.splits.select] for name, array in data.items()}
        walked = np.concatenate(list(fitted.tapes.select.real(task.output)))
        fitted.close()
    added = [t for t in made.graph.initializer if t.name.startswith("blockfold/")]
    kinds = {t.data_type for t in added if t.data_type != TensorProto.INT64}
    assert kinds == {TensorProto.FLOAT16}
    served = run(made, select)[task.output]
    assert served.dtype == walked.dtype == np.float16
    compare({"y": walked}, {"y": served}, atol=0, rtol=8 * HALF_STEP)


def test_the_mean_of_a_long_float16_sequence_does_not_overflow() -> None:
    """Sums of 300 positions of about 300 leave float16's range; their mean does not."""
    net = Net()
    kept = net.node("Cast", "attention_mask", to=FLOAT)
    wide = net.node("Unsqueeze", kept, net.constant(np.array([2], np.int64)))
    h = "x"
    for i in range(3):
        net.scope = f"/blocks.{i}"
        mean = net.node("ReduceMean", net.node("Mul", h, wide), axes=[1], keepdims=1)
        branch = net.linear(net.linear(mean, D, 4 * D), 4 * D, D)
        h = net.node("Add", h, net.node("Tanh", branch), out=f"h{i}")
    net.head(h, D)
    inputs = {"x": (FLOAT, ("n", "seq", D)), "attention_mask": (TensorProto.INT64, ("n", "seq"))}
    half = narrowed(net.model(inputs, LOGITS))
    data = halved(samples(half, 64, length=300))
    x = np.random.default_rng(0).standard_normal((64, 300, D)) + 300
    data = {"x": x.astype(np.float16), "attention_mask": data["attention_mask"]}
    with walking(half, data) as (task, walk, spans):
        (fitted,) = walk([Recipe((Wish(spans["blocks.1"], "affine + context"),))])
        assert fitted.refusal is None
        fitted.close()
        made = rewrite(task.model, fitted.replacements, {}, ALL_PASSES).model.proto
    assert np.isfinite(run(made, data)["logits"]).all()


def steep(kind: str) -> tuple[onnx.ModelProto, Arrays]:
    """Three blocks in float16; the second can be mapped only by numbers out of its range.

    "weights": it multiplies a tiny stream by 4e5. "outputs": it saturates, which a map does not.
    """
    net = Net()
    net.scope = "/blocks.0"
    h = net.node("Add", "x", net.mlp(net.norm("x", D), D), out="h0")
    if kind == "weights":
        h = net.node("Mul", h, net.constant(np.array(1e-4, np.float32)), out="h0")
        net.nodes[-2].output[0] = net.nodes[-1].input[0] = "before"
    net.scope = "/blocks.1"
    gain, after = (630, 630) if kind == "weights" else (1, 30000)
    first, last = (net.constant(np.eye(D, dtype=np.float32) * size) for size in (gain, after))
    branch = net.node("MatMul", h, first)
    branch = net.node("Tanh", branch) if kind == "outputs" else branch
    branch = net.node("MatMul", branch, last)
    h = net.node("Add", h, branch, out="h1")
    net.scope = "/blocks.2"
    h = net.node("Add", h, net.mlp(net.norm(h, D), D), out="h2")
    net.head(h, D)
    model = net.model({"x": (FLOAT, ("batch", TOKENS, D))}, LOGITS)
    return narrowed(model), halved(samples(model, 160))


def refused(walk: Walk, wish: Wish) -> str:
    """The reason of the one refusal in a walk beside a harmless recipe."""
    harmless = Wish(wish.span, "identity")
    bad, good = walk([Recipe((wish,)), Recipe((harmless,), Healing(refit=None))])
    assert bad.refusal is not None
    assert good.refusal is None
    assert bad.refusal.name == wish.span.name
    good.close()
    return bad.refusal.reason


def test_weights_that_overflow_are_refused_and_other_recipes_go_on() -> None:
    model, data = steep("weights")
    with walking(model, data) as (_, walk, spans):
        reason = refused(walk, Wish(spans["blocks.1"], "affine"))
    assert "its map needs numbers up to" in reason
    assert "more than float16 holds" in reason


def test_a_stream_that_overflows_is_refused_and_other_recipes_go_on() -> None:
    """On the fit split the stream is small; on the select split the map runs out of range."""
    model, data = steep("outputs")
    select = split(len(data["x"])).select
    data["x"] /= 8
    data["x"][select] *= 64
    with walking(model, data) as (_, walk, spans):
        reason = refused(walk, Wish(spans["blocks.1"], "affine"))
    assert reason == "then 'h1' holds NaN or Inf"


def test_a_recipe_that_must_be_followed_says_why_it_cannot_be() -> None:
    """For the plan that was chosen, and for methods that are compared."""
    model, data = steep("weights")
    with walking(model, data) as (task, walk, spans):
        recipe = Recipe((Wish(spans["blocks.1"], "affine"),))
        (bad,) = walk([recipe])
        with pytest.raises(NotMet, match=r"blocks\.1 cannot be replaced: .*float16 holds"):
            bad.require()
        layout = lay_out(task)
        free = CostModel(layout.anatomies, Costs(1.0, {}, {}))
        with (
            Trials(task, layout, free, None) as trials,
            pytest.raises(NotMet, match=r"blocks\.1 cannot be replaced: .*float16 holds"),
        ):
            trials.fit_all([recipe])


def test_data_that_overflow_by_themselves_are_the_data_s_fault() -> None:
    model, data = steep("outputs")
    net = read(model)
    last = next(n for n in net.proto.graph.node if n.name.startswith("/blocks.2/MatMul"))
    scale = next(t for t in net.proto.graph.initializer if t.name == last.input[1])
    scale.CopyFrom(numpy_helper.from_array(np.full((D, 2 * D), np.inf, np.float16), scale.name))
    with (
        walking(net, data) as (_, walk, spans),
        pytest.raises(NotFinite, match="'h2' holds NaN or Inf"),
    ):
        walk([Recipe((Wish(spans["blocks.2"], "affine"),))])


def test_a_row_that_is_not_finite_is_found_where_it_is_not_drawn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of one token the last block's stream leaves the range of float16; few rows are drawn."""
    monkeypatch.setattr(rows, "ENOUGH_ROWS_PER_COLUMN", 1)
    net = Net()
    h = net.node("Add", "x", net.mlp(net.norm("x", D), D), out="h0")
    for i in (1, 2):
        net.scope = f"/blocks.{i}"
        branch = net.mlp(net.norm(h, D), D)
        double = net.node("Mul", h, net.constant(np.array(i, np.float32)))
        h = net.node("Add", double, branch, out=f"h{i}")
    net.head(h, D)
    model = net.model({"x": (FLOAT, ("batch", TOKENS, D))}, LOGITS)
    half, data = narrowed(model), halved(samples(model, 160))
    sample = int(np.sort(split(len(data["x"])).fit)[5])
    data["x"][sample, 1] = 40000
    with (
        walking(half, data) as (_, walk, spans),
        pytest.raises(NotFinite, match=f"'h2' holds NaN or Inf.*in sample {sample};"),
    ):
        walk([Recipe((Wish(spans["blocks.2"], "affine"),), Healing(refit=None))])


ODD = (TensorProto.INT4, TensorProto.UINT4, TensorProto.FLOAT8E4M3FN, TensorProto.FLOAT8E5M2)


def odd() -> onnx.ModelProto:
    """A residual MLP with weights of odd types, a local function, and one matrix in two blocks."""
    model = residual_mlp(3, affine=(1,), ir=11)
    del model.opset_import[:]
    model.opset_import.append(helper.make_opsetid("", 21))
    model.opset_import.append(helper.make_opsetid("local", 1))
    graph = model.graph
    graph.initializer.append(numpy_helper.from_array(np.array([1], np.int64), "axes"))
    for node in graph.node:
        if node.op_type == "ReduceMean":
            axes = next(a for a in node.attribute if a.name == "axes")
            node.attribute.remove(axes)
            node.input.append("axes")
    for kind in ODD:
        name = TensorProto.DataType.Name(kind).lower()
        packed = helper.make_tensor(name, kind, [3, 2], [1, 0, 1, 1, 0, 1])
        graph.initializer.append(packed)
        graph.initializer.append(numpy_helper.from_array(np.array(1, np.float32), f"{name}/scale"))
        graph.node.append(
            helper.make_node("DequantizeLinear", [name, f"{name}/scale"], [f"{name}/wide"])
        )
        value = helper.make_tensor_value_info(f"{name}/wide", FLOAT, [3, 2])
        graph.output.append(value)
    values = numpy_helper.from_array(np.array([2.0], np.float32), "sparse")
    indices = numpy_helper.from_array(np.array([1], np.int64), "indices")
    graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [4]))
    graph.node.append(helper.make_node("Identity", ["sparse"], ["dense"]))
    graph.output.append(helper.make_tensor_value_info("dense", FLOAT, [4]))
    function = model.functions.add(name="Same", domain="local")
    function.input.append("x")
    function.output.append("y")
    function.node.append(helper.make_node("Identity", ["x"], ["y"]))
    function.opset_import.add(domain="", version=21)
    graph.node.append(helper.make_node("Same", ["logits"], ["again"], domain="local"))
    graph.output.append(helper.make_tensor_value_info("again", FLOAT, ["batch", 3]))
    return model


def test_odd_weights_and_functions_come_through_an_edit_byte_for_byte() -> None:
    model = odd()
    with walking(model, samples(residual_mlp(3), 160)) as (task, walk, spans):
        (fitted,) = walk([Recipe((Wish(spans["blocks.1"], "affine"),))])
        fitted.close()
        made = rewrite(task.model, fitted.replacements, {}, ALL_PASSES).model.proto
    found = diff(model, made)
    assert "rest" not in found.kinds()  # functions and sparse weights are in there
    kept = {t.name: t.SerializeToString() for t in made.graph.initializer}
    odd_ones = [t for t in model.graph.initializer if t.data_type in ODD]
    assert len(odd_ones) == len(ODD)
    for tensor in odd_ones:
        assert kept[tensor.name] == tensor.SerializeToString()
    onnx.checker.check_model(made)


def test_a_weight_that_two_blocks_share_is_copied_not_edited() -> None:
    """Both blocks end in the same matrix; the first one's is solved again, the second's stays."""
    model = residual_mlp(4, affine=(1,))
    last = [n for n in model.graph.node if n.op_type == "MatMul"]
    shared = last[1].input[1]
    last[-1].input[1] = shared
    stored = {t.name: t.SerializeToString() for t in model.graph.initializer}
    with walking(model, samples(model, 160)) as (task, walk, spans):
        (fitted,) = walk([Recipe((Wish(spans["blocks.1"], "folded"),), Healing(refit=None))])
        fitted.close()
        made = rewrite(task.model, fitted.replacements, {}, ALL_PASSES).model.proto
    kept = {t.name: t.SerializeToString() for t in made.graph.initializer}
    assert kept[shared] == stored[shared]
    readers = [n.name for n in made.graph.node if shared in n.input]
    assert readers == [last[-1].name]


def test_files_out_of_order_are_read_and_written_in_order(tmp_path: Path) -> None:
    model = residual_mlp(3)
    wanted = [node.name for node in model.graph.node]
    nodes = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*nodes[3:], *nodes[:3]])
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(onnx.checker.ValidationError):
        onnx.checker.check_model(model)
    found = read(path)
    assert [node.name for node in found.proto.graph.node] == wanted
    assert found.serialized() == path.read_bytes()
    assert [node.name for node in read(model).proto.graph.node] == wanted
    assert [node.name for node in model.graph.node] != wanted
    feeds = labelled(residual_mlp(3), 4)
    del feeds["labels"]
    compare(run(model, feeds), run(found.proto, feeds), atol=0, rtol=0)
