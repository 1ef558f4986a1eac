"""A written plan makes its model again, byte for byte; an edited one is solved anew on data."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import pytest

from blockfold.ir.errors import BadInput
from blockfold.ir.onnx_file import read
from blockfold.ir.onnx_unfuse import unfuse
from blockfold.passes import replay
from blockfold.passes.base import PassError
from blockfold.passes.layout import anatomies
from blockfold.passes.plan import read_plan, replacements_of
from blockfold.tests.networks import (
    TOKENS,
    Arrays,
    compare,
    labelled,
    residual_cnn,
    residual_mlp,
    run,
    samples,
    save_external,
)
from blockfold.tools import api

ROWS = 320
CAREFUL: dict[str, Any] = {"threads": 1, "provider": "cpu"}


@dataclass(frozen=True)
class Written:
    """A planted network, its data, and what optimizing it wrote. Not to be changed."""

    model: onnx.ModelProto
    data: Arrays
    path: Path

    @property
    def plan(self) -> Path:
        return self.path.with_suffix(".plan.json")


def write(model: onnx.ModelProto, folder: Path, **options: Any) -> Written:
    data = labelled(model, ROWS)
    result = api.optimize(model, data, max_drop=0.05, **CAREFUL, **options)
    result.save(folder / "out.onnx")
    return Written(model, data, folder / "out.onnx")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    return write(residual_mlp(3, affine=(1,)), tmp_path_factory.mktemp("written"))


def edited(written: Written, folder: Path, **changes: Any) -> Path:
    """A copy of the plan, beside its tensors, with its one decision changed."""
    content = json.loads(written.plan.read_bytes())
    content["decisions"][0].update(changes)
    path = folder / "edited.plan.json"
    path.write_text(json.dumps(content))
    tensors = written.plan.with_suffix(".safetensors")
    path.with_suffix(".safetensors").write_bytes(tensors.read_bytes())
    return path


def test_replay_gives_the_bytes_that_were_written(written: Written, tmp_path: Path) -> None:
    applied = api.apply(written.model, written.plan)
    applied.save(tmp_path / "again.onnx")
    for suffix in (".onnx", ".plan.json", ".plan.safetensors"):
        again = (tmp_path / "again.onnx").with_suffix(suffix).read_bytes()
        assert again == written.path.with_suffix(suffix).read_bytes()
    assert applied.verdict is None


def test_replay_of_feature_maps_and_of_external_weights(tmp_path: Path) -> None:
    cnn = write(residual_cnn(affine=(1,)), tmp_path)
    again = api.apply(cnn.model, cnn.plan).model.serialized()
    assert again == cnn.path.read_bytes()
    source = tmp_path / "external"
    source.mkdir()
    path = save_external(residual_mlp(3, affine=(1,)), source)
    result = api.optimize(
        path, labelled(residual_mlp(3, affine=(1,)), ROWS), max_drop=0.05, **CAREFUL
    )
    result.save(source / "out.onnx")
    (source / "again").mkdir()
    api.apply(path, source / "out.plan.json").save(source / "again" / "out.onnx")
    for name in ("out.onnx", "out.onnx.data"):
        assert (source / "again" / name).read_bytes() == (source / name).read_bytes()


def test_the_model_records_where_it_comes_from(written: Written) -> None:
    notes = {e.key: e.value for e in onnx.load(written.path).metadata_props}
    plan, _ = read_plan(written.plan)
    assert notes["blockfold.plan_sha256"] == plan.sha256
    assert notes["blockfold.parent_sha256"] == plan.model.sha256
    assert notes["blockfold.version"] == plan.blockfold


def test_a_plan_for_another_model_is_refused(written: Written) -> None:
    other = residual_mlp(3, affine=(1,), seed=1)
    with pytest.raises(BadInput, match="the plan was made for another model"):
        api.apply(other, written.plan)
    with pytest.raises(BadInput, match="the plan was made for another model"):
        api.apply(other, written.plan, written.data, max_drop=0.05, **CAREFUL)


def test_an_edited_plan_needs_data(written: Written, tmp_path: Path) -> None:
    path = edited(written, tmp_path, surrogate="identity")
    with pytest.raises(BadInput, match="an edited plan must be solved again: give --data"):
        api.apply(written.model, path)


def test_an_edited_plan_is_solved_again(written: Written, tmp_path: Path) -> None:
    """Another span than the planned one: blocks.1 and blocks.2 in one map."""
    path = edited(written, tmp_path, exit="h2", stop=3, name="blocks.1 .. blocks.2")
    applied = api.apply(written.model, path, written.data, **CAREFUL)
    proto = applied.model.proto
    assert "h1" not in {name for node in proto.graph.node for name in node.output}
    assert not applied.plan.is_edited
    assert applied.plan.decisions[0].rows == ROWS // 2 * TOKENS
    assert applied.verdict is not None
    assert applied.verdict.promise is None
    assert applied.verdict.samples == ROWS // 2
    assert applied.verdict.drop > 0
    applied.save(tmp_path / "new.onnx")
    again = api.apply(written.model, tmp_path / "new.plan.json").model.serialized()
    assert again == (tmp_path / "new.onnx").read_bytes()


def test_an_edit_that_names_no_value_of_the_model_is_refused(
    written: Written, tmp_path: Path
) -> None:
    for change in ({"entry": "nothing"}, {"exit": "nothing"}):
        path = edited(written, tmp_path, **change)
        with pytest.raises(BadInput, match="'nothing'"):
            api.apply(written.model, path, written.data, **CAREFUL)


@pytest.mark.parametrize(
    "change",
    [
        {"entry": "h1", "exit": "h0"},
        {"entry": "h2"},
        {"exit": "x"},
        {"exit": "pooled"},
        {"entry": "pooled"},
        {"dtype": "float64"},
        {"dtype": "no such dtype"},
        {"rank": 7, "channel_axis": 1},
    ],
    ids=str,
)
def test_an_edit_that_is_no_span_is_refused(
    change: dict[str, Any], written: Written, tmp_path: Path
) -> None:
    path = edited(written, tmp_path, **change)
    with pytest.raises(BadInput):
        api.apply(written.model, path, written.data, **CAREFUL)


def test_an_edit_is_told_why_it_is_no_span(written: Written, tmp_path: Path) -> None:
    cuts = anatomies(unfuse(read(written.model)))[0].chain.cuts
    ends = {"start": 0, "stop": len(cuts) - 1}
    for change, said in (
        ({"stop": 99}, "'.*' is no stretch of a stream of this model"),
        (ends, r"cannot be replaced: .+ \(.+\)"),
    ):
        path = edited(written, tmp_path, **change)
        with pytest.raises(BadInput, match=said):
            api.apply(written.model, path, written.data, **CAREFUL)


def test_a_rewrite_that_fails_is_the_plans_fault(
    written: Written, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plan that is signed anew may hold anything."""

    def failing(*_: object) -> None:
        raise PassError("substitute: an input is gone")

    monkeypatch.setattr(replay, "rewrite", failing)
    with pytest.raises(BadInput, match="the plan does not fit the model: substitute: an input"):
        api.apply(written.model, edited(written, tmp_path))


def test_two_edited_spans_must_not_touch(written: Written, tmp_path: Path) -> None:
    path = edited(written, tmp_path)
    content = json.loads(path.read_bytes())
    content["decisions"] *= 2
    path.write_text(json.dumps(content))
    with pytest.raises(BadInput, match="touches another of its spans; join them"):
        api.apply(written.model, path, written.data, **CAREFUL)


def test_an_edited_plan_with_a_promise_is_certified(written: Written, tmp_path: Path) -> None:
    path = edited(written, tmp_path, name="renamed")
    applied = api.apply(written.model, path, written.data, max_drop=0.05, **CAREFUL)
    assert applied.verdict is not None
    assert applied.verdict.kept
    assert applied.verdict.promise == 0.05
    fresh = samples(written.model, 10, seed=3)
    compare(run(written.model, fresh), run(applied.model.proto, fresh), atol=0, rtol=1e-4)


def test_a_plan_made_without_a_pass_replays_without_it(tmp_path: Path) -> None:
    made = write(residual_mlp(3, affine=(1,)), tmp_path, skip=("cleanup",))
    again = api.apply(made.model, made.plan).model.serialized()
    assert again == made.path.read_bytes()


def test_an_edited_plan_keeps_its_own_split(tmp_path: Path) -> None:
    made = write(residual_mlp(3, affine=(1,)), tmp_path, seed=5)
    path = edited(made, tmp_path, name="renamed")
    applied = api.apply(made.model, path, made.data, **CAREFUL)
    assert applied.plan.data == read_plan(made.plan)[0].data


def test_measured_costs_are_reused(written: Written) -> None:
    plan, _ = read_plan(written.plan)
    result = api.optimize(written.model, written.data, max_drop=0.05, costs=written.plan, **CAREFUL)
    assert result.plan.costs == plan.costs
    assert result.model.SerializeToString() == written.path.read_bytes()


def test_a_plan_says_what_it_rests_on(written: Written) -> None:
    plan, _ = read_plan(written.plan)
    assert (plan.data.samples, plan.data.fit, plan.data.certify) == (ROWS, ROWS // 4, ROWS // 2)
    assert (plan.metric, plan.output, plan.threads) == ("accuracy", "logits", 1)
    assert plan.provider == "CPUExecutionProvider"
    assert plan.trials
    assert plan.latency is not None
    assert plan.verdict is not None
    assert plan.verdict.drop == 0
    assert plan.verdict.chance is not None
    assert plan.verdict.chance > 0.8


@pytest.fixture(scope="module")
def repaired(tmp_path_factory: pytest.TempPathFactory) -> Written:
    """A network whose blocks all matter, so that what follows a removed one is solved again."""
    model = residual_mlp(5, seed=1)
    folder = tmp_path_factory.mktemp("repaired")
    data = labelled(model, ROWS)
    api.optimize(model, data, remove=1, **CAREFUL).save(folder / "out.onnx")
    return Written(model, data, folder / "out.onnx")


def test_refits_are_part_of_the_plan_and_replay(repaired: Written) -> None:
    plan, tensors = read_plan(repaired.plan)
    assert plan.refits
    assert all(refit.folds == refit.exit and refit.blocks == 0 for refit in plan.refits)
    assert len(tensors) == 2 * (
        len(plan.refits) + sum(d.surrogate != "identity" for d in plan.decisions)
    )
    assert api.apply(repaired.model, repaired.plan).model.serialized() == repaired.path.read_bytes()


def test_a_plan_that_folds_what_no_linear_operation_feeds_is_refused(repaired: Written) -> None:
    plan, tensors = read_plan(repaired.plan)
    wrong = plan.refits[0].model_copy(update={"folds": "pooled"})
    changed = plan.model_copy(update={"refits": (wrong, *plan.refits[1:])})
    with pytest.raises(BadInput, match="the plan folds 'pooled', which no linear operation"):
        replacements_of(read(repaired.model), changed, tensors)


def test_an_edited_plan_may_ask_for_another_form(repaired: Written, tmp_path: Path) -> None:
    content = json.loads(repaired.plan.read_bytes())
    decision = content["decisions"][0]
    decision["surrogate"] = "affine" if decision["surrogate"] != "affine" else "identity"
    path = tmp_path / "edited.plan.json"
    path.write_text(json.dumps(content))
    tensors = repaired.plan.with_suffix(".safetensors")
    path.with_suffix(".safetensors").write_bytes(tensors.read_bytes())
    applied = api.apply(repaired.model, path, repaired.data, **CAREFUL)
    assert applied.plan.decisions[0].surrogate == decision["surrogate"]
    assert applied.plan.refits


@pytest.mark.parametrize(
    ("form", "why"),
    [
        ("refit", "a refit stands for no span"),
        ("conv", "its ends are no feature maps"),
        ("folded", "no linear operation feeds its entry"),
    ],
)
def test_a_form_that_a_span_cannot_have_is_refused(form: str, why: str, tmp_path: Path) -> None:
    made = write(residual_mlp(3, affine=(0,)), tmp_path)
    path = edited(made, tmp_path, surrogate=form)
    with pytest.raises(BadInput, match=f"'blocks.0' cannot be '{form}': {why}"):
        api.apply(made.model, path, made.data, **CAREFUL)
