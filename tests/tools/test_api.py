"""From Python: every form of model and data, results that save whole or not at all."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import blockfold
from blockfold.ir import onnx_file
from blockfold.passes.plan import Plan
from blockfold.tests.networks import Arrays, compare, run, save_external
from blockfold.tests.tools.harness import (
    PLANTED,
    SAMPLES,
    Files,
    contents,
    hurry,
    judged,
    margin,
    network,
    untouched,
)
from blockfold.tools import api, opening
from blockfold.tools.results import Result

FOUND = f"blocks.{PLANTED}"
QUICK: dict[str, Any] = {"threads": 1, "provider": "cpu"}
MADE = ["out.onnx", "out.plan.json", "out.plan.safetensors"]

DISK_FULL = OSError(28, "No space left on device")


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    hurry(monkeypatch)


@pytest.fixture(scope="session")
def arrays(files: Files) -> Arrays:
    with np.load(files.data) as data:
        return dict(data)


@pytest.fixture(scope="session")
def result(files: Files) -> Result:
    """What optimizing the tiny network gives."""
    return blockfold.optimize(files.model, files.data, max_drop=0.05, **QUICK)


def assert_found(result: Result) -> None:
    """The planted block, and no other, was replaced by a map, and the promise was kept."""
    (decision,) = result.plan.decisions
    assert (decision.name, decision.surrogate) == (FOUND, "affine")
    assert decision.predicted_error < 1e-6
    assert result.verdict.kept
    assert result.verdict.samples == SAMPLES // 2
    assert result.after.parameters < result.before.parameters


class Reader:
    """As onnxruntime's CalibrationDataReader."""

    def __init__(self, arrays: Arrays, size: int = 64) -> None:
        starts = range(0, SAMPLES, size)
        batches = ({k: v[at : at + size] for k, v in arrays.items()} for at in starts)
        self._batches: Iterator[Arrays] = batches

    def get_next(self) -> Arrays | None:
        return next(self._batches, None)


DATA: dict[str, Callable[[Arrays, Path], object]] = {
    "arrays": lambda arrays, _: arrays,
    "path": lambda _, path: path,
    "text": lambda _, path: str(path),
    "batches": lambda arrays, _: [
        {k: v[rows] for k, v in arrays.items()} for rows in (slice(100), slice(100, None))
    ],
    "tuples": lambda arrays, _: [(arrays["x"], arrays["labels"])],
    "reader": lambda arrays, _: Reader(arrays),
    "callable": lambda arrays, _: lambda: Reader(arrays),
}


@pytest.mark.parametrize("form", DATA)
def test_data_in_any_form_is_the_same_data(
    form: str, files: Files, arrays: Arrays, result: Result
) -> None:
    data = DATA[form](arrays, files.data)
    found = blockfold.optimize(files.model, data, max_drop=0.05, **QUICK)
    assert_found(found)
    assert found.plan.data == result.plan.data
    assert found.model.SerializeToString() == result.model.SerializeToString()


def test_arrays_are_left_as_they_are(files: Files, arrays: Arrays) -> None:
    before = {name: array.copy() for name, array in arrays.items()}
    blockfold.inspect(files.model, arrays, **QUICK)
    compare(before, arrays, atol=0, rtol=0)


@pytest.mark.parametrize("form", [str, Path, onnx.load])
def test_models_in_any_form(form: Callable[[Path], Any], files: Files, result: Result) -> None:
    found = blockfold.optimize(form(files.model), files.data, max_drop=0.05, **QUICK)
    assert_found(found)
    assert found.plan.sha256 == result.plan.sha256
    assert found.model.SerializeToString() == result.model.SerializeToString()


def test_nothing_of_the_callers_model_is_modified(arrays: Arrays, tmp_path: Path) -> None:
    model = network()
    before = model.SerializeToString()
    found = blockfold.optimize(model, arrays, max_drop=0.05, **QUICK)
    found.save(tmp_path / "out.onnx")
    blockfold.inspect(model, arrays, **QUICK)
    blockfold.verify(model, found.model, arrays, **QUICK)
    blockfold.bench(model, found.model, **QUICK)
    blockfold.apply(model, tmp_path / "out.plan.json").save(tmp_path / "again.onnx")
    assert model.SerializeToString() == before
    assert found.model is not model


def test_the_result_is_a_sound_model_that_does_the_same(result: Result, arrays: Arrays) -> None:
    assert_found(result)
    assert isinstance(result.model, onnx.ModelProto)
    onnx.checker.check_model(result.model, full_check=True)
    feeds = {"x": arrays["x"]}
    compare(run(network(), feeds), run(result.model, feeds), atol=0, rtol=1e-4)
    own = network().graph
    assert list(result.model.graph.input) == list(own.input)
    assert list(result.model.graph.output) == list(own.output)


def test_external_weights_stay_external(tmp_path: Path, arrays: Arrays) -> None:
    given, made, again = (tmp_path / name for name in ("given", "made", "again"))
    for folder in (given, made, again):
        folder.mkdir()
    path = save_external(network(), given)
    with untouched(path.parent):
        found = blockfold.optimize(path, arrays, max_drop=0.05, **QUICK)
        assert_found(found)
        out = made / "out.onnx"
        written = found.save(out)
    assert sorted(file.name for file in written) == sorted([*MADE, "out.onnx.data"])
    feeds = {"x": arrays["x"]}
    compare(run(network(), feeds), run(out, feeds), atol=0, rtol=1e-4)
    blockfold.apply(path, out.with_suffix(".plan.json")).save(again / "out.onnx")
    assert contents(again) == contents(made)


# --- settings


def test_an_unknown_setting_lists_the_known(files: Files) -> None:
    with pytest.raises(blockfold.BadInput, match="metrics") as error:
        blockfold.inspect(files.model, metrics="accuracy")
    assert all(field.name in str(error.value) for field in fields(opening.Settings))


@pytest.mark.parametrize("job", ["optimize", "inspect", "verify", "bench", "apply"])
def test_every_job_refuses_unknown_settings(job: str, files: Files, small: Path) -> None:
    others: dict[str, tuple[Path, ...]] = {
        "verify": (small, files.data),
        "bench": (small,),
        "apply": (small.with_suffix(".plan.json"),),
        "optimize": (files.data,),
    }
    with pytest.raises(blockfold.BadInput, match="beauty"):
        getattr(blockfold, job)(files.model, *others.get(job, ()), beauty=True)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"max_drop": 2}, "max-drop"),
        ({"max_drop": 0}, "max-drop"),
        ({"speedup": 1}, "speedup"),
        ({"remove": -1}, "remove"),
        ({"max_size_bytes": 0}, "max-size"),
        ({"metric": "beauty"}, "accuracy, agreement"),
        ({"output": "beauty"}, "logits"),
        ({"mask": "beauty"}, "no such input"),
        ({"provider": "abacus"}, "abacus"),
        ({"profile": {"depth": 3}}, "depth"),
        ({"profile": {"batch": 0}}, "batch"),
        ({"fractions": (0.5, 0.5, 0.5)}, "25/25/50"),
        ({"seed": -1}, "seed"),
        ({"skip": ["beauty"]}, "beauty"),
        ({"random_samples": 9}, "random-data"),
        ({"batch": 0}, "batch"),
        ({"threads": -1}, "threads"),
    ],
    ids=str,
)
def test_bad_settings(settings: Mapping[str, Any], words: str, files: Files) -> None:
    with pytest.raises(blockfold.BadInput, match=words):
        blockfold.optimize(files.model, files.data, **{**QUICK, "max_drop": 0.05, **settings})


def test_a_model_that_is_none_is_refused(files: Files) -> None:
    with pytest.raises(blockfold.BadInput, match="not an ONNX model"):
        blockfold.inspect(onnx.ModelProto(), files.data)


def test_errors_have_one_base_and_an_exit_code() -> None:
    kinds = (blockfold.NotMet, blockfold.BadInput, blockfold.Unsupported)
    assert all(issubclass(kind, blockfold.BlockfoldError) for kind in kinds)
    assert [kind.exit_code for kind in kinds] == [1, 2, 3]


# --- the other jobs


def test_inspect_finds_the_planted_block(files: Files, arrays: Arrays) -> None:
    bare = blockfold.inspect(files.model)
    assert bare.survey is None
    assert FOUND in [span.name for span in bare.spans]
    found = blockfold.inspect(files.model, arrays, **QUICK)
    assert found.survey is not None
    r2 = {redundancy.span.name: redundancy.affine_r2 for redundancy in found.survey.spans}
    assert r2.pop(FOUND) == pytest.approx(1, abs=1e-6)
    assert max(r2.values()) < 0.99


def test_verify_and_bench_in_memory(files: Files, result: Result, arrays: Arrays) -> None:
    """Without a plan at hand all samples count; with one, those held back."""
    found = blockfold.verify(files.model, result.model, arrays, **QUICK)
    assert (found.held_back, found.verdict.samples) == (False, SAMPLES)
    latency = blockfold.bench(files.model, result.model, **QUICK)
    assert 0 < latency.low <= latency.ratio <= latency.high


def test_verify_with_a_plan_named(files: Files, result: Result, small: Path) -> None:
    plan = small.with_suffix(".plan.json")
    found = blockfold.verify(
        files.model, result.model, files.data, plan=plan, max_drop=0.05, **QUICK
    )
    assert found.held_back
    assert judged(asdict(found.verdict)) == judged(asdict(result.verdict))


def test_verify_sees_a_worse_model(files: Files, arrays: Arrays) -> None:
    found = blockfold.verify(files.model, network(seed=5), arrays, max_drop=0.05, **QUICK)
    assert not found.verdict.kept
    assert found.verdict.worse > SAMPLES // 10


# --- a metric of one's own

OWN = f"{margin.__module__}:margin"


@pytest.mark.parametrize("metric", [margin, OWN], ids=["function", "text"])
def test_a_function_as_metric(metric: Any, files: Files, arrays: Arrays, tmp_path: Path) -> None:
    found = blockfold.optimize(files.model, files.data, max_drop=0.05, metric=metric, **QUICK)
    assert_found(found)
    assert (found.plan.metric, found.verdict.metric) == (OWN, OWN)
    assert not found.verdict.bound.certified
    target = tmp_path / "out.onnx"
    found.save(target)
    again = blockfold.verify(files.model, target, arrays, metric=metric, max_drop=0.05, **QUICK)
    assert again.held_back
    assert judged(asdict(again.verdict)) == judged(asdict(found.verdict))
    other = blockfold.verify(files.model, target, arrays, metric="cosine", **QUICK)
    assert other.verdict.metric == "cosine"
    blockfold.apply(files.model, target.with_suffix(".plan.json")).save(tmp_path / "again.onnx")


def test_perplexity_as_metric(files: Files, arrays: Arrays) -> None:
    found = blockfold.optimize(files.model, arrays, max_drop=0.05, metric="perplexity", **QUICK)
    assert_found(found)
    logits = run(network(), {"x": arrays["x"]})["logits"].astype(np.float64)
    nll = np.log(np.exp(logits).sum(-1)) - logits[np.arange(SAMPLES), arrays["labels"]]
    whole = blockfold.verify(files.model, found.model, arrays, metric="perplexity", **QUICK)
    assert whole.verdict.before == pytest.approx(np.exp(nll.mean()), rel=1e-5)


@pytest.mark.parametrize("job", ["verify", "certify", "solve again"])
def test_no_plan_makes_code_run(
    job: str, files: Files, result: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "wicked.py").write_text("raise SystemExit('run')\ndef f(): ...\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    target, plan = tmp_path / "out.onnx", tmp_path / "out.plan.json"
    result.save(target)
    named = result.plan.model_copy(update={"metric": "wicked:f"})
    if job == "certify":  # an edited plan would be solved again
        named = named.model_copy(update={"sha256": named.digest()})
    plan.write_text(named.model_dump_json())
    jobs: dict[str, Callable[..., object]] = {
        "verify": lambda **more: blockfold.verify(files.model, target, files.data, **more),
        "certify": lambda **more: blockfold.apply(
            files.model, plan, files.data, max_drop=0.05, **more
        ),
        "solve again": lambda **more: blockfold.apply(files.model, plan, files.data, **more),
    }
    with pytest.raises(blockfold.BadInput, match=r"judged by 'wicked:f'.*--metric"):
        jobs[job](**QUICK)
    assert "wicked" not in sys.modules
    with pytest.raises(blockfold.BadInput, match="importing module 'wicked' failed"):
        jobs[job](metric="wicked:f", **QUICK)  # who types it means it
    jobs[job](metric="cosine", **QUICK)


# --- saving


def test_save_and_save_again(result: Result, tmp_path: Path) -> None:
    target = tmp_path / "out.onnx"
    target.write_bytes(b"an older file")
    (tmp_path / "out.plan.json").write_bytes(b"an older plan")
    assert [path.name for path in result.save(target)] == MADE
    first = contents(tmp_path)
    assert sorted(first) == MADE
    assert first["out.onnx"] == result.model.SerializeToString()
    plan = first["out.plan.json"]
    assert plan is not None
    assert Plan.model_validate_json(plan) == result.plan
    result.save(str(target))
    assert contents(tmp_path) == first


def test_a_file_is_replaced_not_rewritten(result: Result, tmp_path: Path) -> None:
    """Who has the old file open still reads the old file."""
    target = tmp_path / "out.onnx"
    target.write_bytes(b"an older file")
    with target.open("rb") as old:
        result.save(target)
        assert old.read() == b"an older file"


def old_files(folder: Path) -> Path:
    for name in MADE:
        (folder / name).write_bytes(b"an older file")
    return folder / MADE[0]


def fail_writing(monkeypatch: pytest.MonkeyPatch, suffix: str) -> None:
    """Half of the file is written, then the disk is full."""
    write = Path.write_bytes

    def failing(self: Path, content: bytes) -> int:
        if self.name.endswith(suffix):
            write(self, content[: len(content) // 2])
            raise DISK_FULL
        return write(self, content)

    monkeypatch.setattr(Path, "write_bytes", failing)


@pytest.mark.parametrize("suffix", MADE)
def test_a_full_disk_while_saving(
    suffix: str, result: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = old_files(tmp_path)
    fail_writing(monkeypatch, suffix)
    with (
        untouched(tmp_path),
        pytest.raises(blockfold.BadInput, match=rf"{suffix}.*No space left on device"),
    ):
        result.save(target)


@pytest.mark.parametrize("suffix", [*MADE, "out.report.html"])
def test_a_full_disk_while_optimizing(
    suffix: str, files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = old_files(tmp_path)
    fail_writing(monkeypatch, suffix)
    with (
        untouched(tmp_path, files.folder),
        pytest.raises(blockfold.BadInput, match="No space left on device"),
    ):
        api.optimize_to(target, files.model, files.data, max_drop=0.05, **QUICK)


def test_a_full_disk_while_copying_external_weights(
    tmp_path: Path, arrays: Arrays, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "made"
    folder.mkdir()
    found = blockfold.optimize(save_external(network(), tmp_path), arrays, max_drop=0.05, **QUICK)

    def full(*_: object) -> None:
        raise DISK_FULL

    monkeypatch.setattr(onnx_file, "_move", full)
    with (
        untouched(folder),
        pytest.raises(blockfold.BadInput, match=r"out.onnx.data.*No space left"),
    ):
        found.save(folder / "out.onnx")


@pytest.mark.parametrize("at", range(len(MADE)))
def test_a_failing_rename_never_leaves_a_new_model_without_its_plan(
    at: int, result: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = old_files(tmp_path)
    replace = Path.replace
    renamed: list[str] = []

    def failing(self: Path, to: str | os.PathLike[str]) -> Path:
        if len(renamed) == at:
            raise DISK_FULL
        renamed.append(self.name)
        return replace(self, to)

    monkeypatch.setattr(Path, "replace", failing)
    with pytest.raises(blockfold.BadInput, match="No space left"):
        result.save(target)
    assert sorted(contents(tmp_path)) == MADE, "no debris"
    assert target.read_bytes() == b"an older file"


def test_saving_where_no_file_can_be(result: Result, tmp_path: Path) -> None:
    with untouched(tmp_path), pytest.raises(blockfold.BadInput, match="is a folder"):
        result.save(tmp_path)
    with untouched(tmp_path), pytest.raises(blockfold.BadInput, match="cannot write"):
        result.save(tmp_path / "nowhere" / "out.onnx")
