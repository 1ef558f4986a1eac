"""The main job on planted networks: a block is found and replaced, or a refusal says why not."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from blockfold.calibration.runtime import Runtime
from blockfold.calibration.sources import open_data
from blockfold.calibration.splits import split
from blockfold.ir.errors import BadInput, NotMet, Unsupported
from blockfold.ir.onnx_file import read
from blockfold.passes.costs import CostModel, Costs, measure_costs, unit_kinds, weigh
from blockfold.passes.layout import lay_out, offered
from blockfold.passes.pipeline import build
from blockfold.passes.replacement import Replacement
from blockfold.passes.score import Redundancy, Survey, score
from blockfold.passes.surrogates import Wish
from blockfold.passes.task import make_task
from blockfold.tests.networks import (
    Arrays,
    captured_stream,
    compare,
    densenet_like,
    fixed_batch,
    inner_output,
    labelled,
    masked_encoder,
    residual_cnn,
    residual_mlp,
    run,
    samples,
    save_external,
    shared_mask,
    tabular,
)
from blockfold.tools import api, opening
from blockfold.tools.results import Result

ROWS = 320


def optimize(model: object, data: object, **options: object) -> Result:
    settings: dict[str, object] = {"threads": 1, "provider": "cpu", **options}
    return api.optimize(model, data, **settings)  # type: ignore[arg-type]


def survey_of(model: onnx.ModelProto, data: Arrays, metric: str | None = None) -> Survey:
    source = read(model)
    with open_data(data, source.inputs) as opened:
        return score(
            make_task(source, opened, split(opened.samples), Runtime(threads=1), metric=metric)
        )


def found(survey: Survey, name: str) -> Redundancy:
    return next(r for r in survey.spans if r.span.name == name)


PLANTED = {
    "mlp": (residual_mlp(4, affine=(2,)), "blocks.2", "h1", "h2"),
    "mlp at the start": (residual_mlp(3, affine=(0,)), "blocks.0", "x", "h0"),
    "cnn": (residual_cnn(affine=(1,)), "blocks.1", "h0", "z1"),
    "with masks": (shared_mask(affine=(1,)), "blocks.1", "h0", "h1"),
}


def rows_per_sample(model: onnx.ModelProto, value: str) -> int:
    """Tokens or pixels of a value for one of `samples`."""
    feeds = samples(model, 1)
    shape = {**feeds, **run(model, feeds, [value] if value not in feeds else [])}[value].shape
    return int(np.prod(shape[2:] if len(shape) == 4 else shape[1:-1]))


@pytest.mark.parametrize("name", PLANTED)
def test_the_planted_block_is_found_and_replaced(name: str) -> None:
    model, block, entry, exit_ = PLANTED[name]
    result = optimize(model, labelled(model, ROWS), max_drop=0.05)
    assert [(d.name, d.surrogate) for d in result.plan.decisions] == [(block, "affine")]
    (decision,) = result.plan.decisions
    assert (decision.entry, decision.exit) == (entry, exit_)
    assert decision.predicted_error < 1e-5
    half = result.plan.data.fit + result.plan.data.select
    assert decision.rows == half * rows_per_sample(model, entry), "not solved on both splits"
    fresh = samples(model, 40, seed=77)
    compare(run(model, fresh), run(result.model, fresh), atol=0, rtol=1e-4)
    assert result.verdict.kept
    assert result.verdict.promise == 0.05
    assert (result.verdict.samples, result.verdict.worse) == (ROWS // 2, 0)
    assert result.after.nodes < result.before.nodes
    assert result.after.parameters < result.before.parameters
    assert result.after.size_bytes < result.before.size_bytes


def test_where_every_block_matters_the_promise_cannot_be_met() -> None:
    model = residual_mlp(4)
    with pytest.raises(NotMet) as caught:
        optimize(model, labelled(model, ROWS), max_drop=0.05)
    line = str(caught.value)
    assert line.startswith("cannot meet --max-drop 0.05 (damage: every replacement costs more")
    assert "Nearest: " in line
    assert "blocks." in line
    assert "\n" not in line


def test_a_network_without_inner_cuts_is_unsupported() -> None:
    model = densenet_like()
    with pytest.raises(Unsupported, match="no span can be replaced: 4 cut points") as caught:
        optimize(model, labelled(model, ROWS), max_drop=0.05)
    assert "its ends differ in shape" in str(caught.value)
    assert "node '/layers.3/Concat" in str(caught.value)


def test_too_few_samples_are_refused_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("blockfold.passes.optimize.lay_out", lambda _: pytest.fail("work began"))
    model = residual_mlp(2)
    with pytest.raises(BadInput) as caught:
        optimize(model, labelled(model, 40), max_drop=0.05)
    assert str(caught.value) == (
        "--max-drop 0.05 needs at least 59 samples to certify, and the split holds 20 back: "
        "give at least 118 samples, or allow more"
    )


def test_the_same_seed_and_costs_give_the_same_bytes() -> None:
    model = residual_mlp(3, affine=(1,))
    data = labelled(model, ROWS)
    one, two = (optimize(model, data, max_drop=0.05) for _ in range(2))
    assert one.model.SerializeToString() == two.model.SerializeToString()
    assert one.optimized.tensors == two.optimized.tensors
    assert one.plan.sha256 == two.plan.sha256
    other = optimize(model, data, max_drop=0.05, seed=1)
    assert other.optimized.tensors != one.optimized.tensors


def test_the_order_of_the_arrays_and_unrelated_rows_do_not_matter() -> None:
    """Splits go by position: what stands in the certify rows cannot change the map."""
    model = residual_mlp(3, affine=(1,))
    data = labelled(model, ROWS)
    held = split(ROWS).certify
    changed = {**data, "x": data["x"].copy()}
    changed["x"][held] = changed["x"][held][::-1]
    changed["labels"] = run(model, {"x": changed["x"]})["logits"].argmax(-1)
    one, two = (optimize(model, d, max_drop=0.05) for d in (data, dict(reversed(changed.items()))))
    assert one.optimized.tensors == two.optimized.tensors


def test_a_number_of_blocks_is_removed_with_the_least_damage() -> None:
    model = residual_mlp(3, affine=(1,))
    data = labelled(model, ROWS)
    result = optimize(model, data, remove=1)
    assert [d.name for d in result.plan.decisions] == ["blocks.1"]
    assert result.verdict.promise is None
    assert result.verdict.bound.upper > 0
    more = optimize(model, data, remove=2)
    assert sum(d.blocks for d in more.plan.decisions) >= 2


def test_a_target_out_of_reach_is_not_met() -> None:
    model = residual_mlp(2)
    data = labelled(model, 40)
    for target in ({"remove": 9}, {"max_size_bytes": 100}, {"speedup": 1000}):
        with pytest.raises(NotMet, match="no plan that was tried reaches it"):
            optimize(model, data, **target)


def test_a_fixed_batch_is_padded_and_the_padding_has_no_say() -> None:
    free = residual_mlp(3, affine=(1,))
    data = labelled(free, ROWS)
    result = optimize(fixed_batch(free, 7), data, max_drop=0.05)
    other = optimize(free, data, max_drop=0.05)
    assert [d.name for d in result.plan.decisions] == ["blocks.1"]
    (mine, theirs) = (
        {t.name: onnx.numpy_helper.to_array(t) for t in r.model.graph.initializer}
        for r in (result, other)
    )
    compare(theirs, mine, atol=1e-6, rtol=1e-4)


def test_external_weights_are_optimized_where_they_lie(tmp_path: object) -> None:
    from pathlib import Path

    folder = Path(str(tmp_path))
    model = residual_mlp(3, affine=(1,))
    data = labelled(model, ROWS)
    result = optimize(save_external(model, folder), data, max_drop=0.05)
    target = folder / "out.onnx"
    assert [path.name for path in result.save(target)] == [
        "out.onnx",
        "out.onnx.data",
        "out.plan.json",
        "out.plan.safetensors",
    ]
    fresh = samples(model, 10, seed=5)
    compare(run(model, fresh), run(target, fresh), atol=0, rtol=1e-4)


def test_an_if_that_never_turns_is_no_obstacle() -> None:
    model = captured_stream(affine=(1,))
    result = optimize(model, labelled(model, ROWS), max_drop=0.05)
    assert result.verdict.kept
    fresh = samples(model, 20, seed=5)
    compare(run(model, fresh), run(result.model, fresh), atol=0, rtol=1e-4)


def test_a_network_on_tables_is_optimized() -> None:
    model = tabular(affine=(1,))
    result = optimize(model, labelled(model, ROWS), max_drop=0.05)
    assert [d.name for d in result.plan.decisions] == ["blocks.1"]


def test_an_optimized_model_can_be_optimized_again() -> None:
    model = residual_cnn(affine=(1,))
    data = labelled(model, ROWS)
    once = optimize(model, data, max_drop=0.05)
    twice = optimize(once.model, data, remove=1)
    names = [tensor.name for tensor in twice.model.graph.initializer]
    assert len(set(names)) == len(names)


def test_refusals_are_part_of_the_plan() -> None:
    model = inner_output()
    result = optimize(model, labelled_by(model, "logits"), remove=1, output="logits")
    assert {refusal.name for refusal in result.plan.refusals} >= {"blocks.1", "head"}
    assert all(refusal.reason and refusal.node for refusal in result.plan.refusals)


def labelled_by(model: onnx.ModelProto, output: str) -> Arrays:
    feeds = samples(model, 40)
    return {**feeds, "labels": run(model, feeds)[output].argmax(-1)}


def padded(data: Arrays, extra: int) -> Arrays:
    """Tokens appended to every sample, with arbitrary words and mask 0."""
    rows = len(data["input_ids"])
    words = np.random.default_rng(8).integers(0, 30, (rows, extra))
    hidden = np.zeros((rows, extra), np.int64)
    return {
        "input_ids": np.hstack([data["input_ids"], words]),
        "attention_mask": np.hstack([data["attention_mask"], hidden]),
    }


def test_padding_has_no_say_in_a_map() -> None:
    """A surrogate fitted on padded data does the same to held-out rows as one fitted without."""
    model = masked_encoder(pooled=False)
    data = samples(model, 120)
    fresh = samples(model, 20, seed=4)
    plain, filled = (survey_of(model, d, metric="cosine") for d in (data, padded(data, 5)))
    for name in ("layer.0", "layer.1 (1/2)"):
        outputs = []
        for survey in (plain, filled):
            entry = found(survey, name)
            rewritten = build(read(model), [Replacement(entry.span, entry.solution, 0.0)])
            outputs.append(run(rewritten.proto, fresh))
        compare(outputs[0], outputs[1], atol=0, rtol=1e-4)
        a, b = found(plain, name), found(filled, name)
        assert a.affine_r2 == pytest.approx(b.affine_r2, abs=1e-5)
        assert a.cosine == pytest.approx(b.cosine, abs=1e-5)
        assert a.block_redundancy == pytest.approx(b.block_redundancy, rel=1e-4)


def test_padding_that_the_mask_does_not_mark_does_have_a_say() -> None:
    """The twin: the same tokens with mask 1 change the map."""
    model = masked_encoder(pooled=False)
    data = samples(model, 120)
    loud = padded(data, 5)
    loud["attention_mask"] = np.ones_like(loud["attention_mask"])
    plain, filled = (survey_of(model, d, metric="cosine") for d in (data, loud))
    a, b = found(plain, "layer.0").solution, found(filled, "layer.0").solution
    with pytest.raises(AssertionError, match="off by"):
        compare({"W": a.W}, {"W": b.W}, atol=0, rtol=1e-2)


def test_a_mask_that_hides_everything_is_refused() -> None:
    model = masked_encoder(pooled=False)
    data = samples(model, 60)
    data["attention_mask"][:] = 0
    with pytest.raises(BadInput):
        optimize(model, data, remove=1)


def test_the_survey_ranks_the_planted_block_first() -> None:
    model = residual_mlp(4, affine=(2,))
    survey = survey_of(model, labelled(model, 80))
    r2 = {r.span.name: r.affine_r2 for r in survey.spans}
    assert r2["blocks.2"] == pytest.approx(1, abs=1e-6)
    assert all(value < 0.995 for name, value in r2.items() if name != "blocks.2")
    planted = found(survey, "blocks.2")
    assert planted.block_influence == 1 - planted.cosine
    assert planted.identity_error > 0.1
    refused = {refusal.name for refusal in survey.layout.refusals}
    assert refused == {"head"}


def test_offered_without_data_are_the_residual_blocks() -> None:
    model = read(residual_mlp(3))
    inspected = api.inspect(model.proto)
    assert [span.name for span in inspected.spans] == ["blocks.0", "blocks.1", "blocks.2"]
    assert inspected.survey is None
    spans, refusals = offered(model.graph, inspected.anatomies, None)
    assert [span.exit for span in spans] == ["h0", "h1", "h2"]
    assert all(refusal.node for refusal in refusals)


def test_costs_are_measured_per_kind_and_add_up() -> None:
    model = residual_mlp(3, affine=(1,))
    source = read(model)
    with open_data(labelled(model, 40), source.inputs) as opened:
        task = make_task(source, opened, split(40), Runtime(threads=1))
        layout = lay_out(task)
        measured = measure_costs(task, layout, opening.profile_of(task, opening.Settings()))
    (stream,) = layout.anatomies
    kinds = unit_kinds(stream)
    assert kinds[0] == kinds[2] != kinds[1]
    assert set(measured.unit_ms) == set(measured.map_ms) == {kinds[0], kinds[1]}
    assert all(set(forms) == {"affine", "affine + context"} for forms in measured.map_ms.values())
    assert measured.model_ms > 0
    units = {kinds[0]: 3.0, kinds[1]: 2.0}
    costs = CostModel(
        layout.anatomies, Costs(10.0, units, {kinds[0]: {"affine": 1.0, "affine + context": 1.5}})
    )
    first, _, last = (span for span in layout.spans if span.blocks == 1.0)
    dropped, mapped = Wish(first, "identity"), Wish(last, "affine")
    assert costs.saved_ms(dropped) == costs.saved_ms(Wish(first, "folded")) == 3.0
    assert costs.saved_ms(mapped) == costs.saved_ms(Wish(last, "affine + folded")) == 2.0
    assert costs.saved_ms(Wish(last, "affine + folded + context")) == 1.5
    assert costs.speedup([dropped, mapped]) == pytest.approx(10 / 5)
    assert costs.speedup([]) == 1.0


def test_units_never_cost_more_than_the_model() -> None:
    """Noise of the clock may say so; what is beyond is shared out."""
    model = residual_mlp(3)
    source = read(model)
    with open_data(labelled(model, 40), source.inputs) as opened:
        layout = lay_out(make_task(source, opened, split(40), Runtime(threads=1)))
    noisy = weigh(layout, lambda changes: (10.0, [5.0 for _ in changes]))
    kinds = unit_kinds(layout.anatomies[0])
    assert sum(noisy.unit_ms.get(kind, 0.0) for kind in kinds) == pytest.approx(10.0)
