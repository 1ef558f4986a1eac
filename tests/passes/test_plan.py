"""The plan as a document: it travels through JSON, refuses what it does not know, shows edits."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from blockfold.calibration.solve import Solution
from blockfold.ir.errors import BadInput
from blockfold.ir.onnx_file import read
from blockfold.ir.spans import Refusal, Span
from blockfold.passes.costs import Costs
from blockfold.passes.plan import (
    Decision,
    Plan,
    TrialRecord,
    decision_of,
    read_plan,
    replacements_of,
    span_of,
    tensor_bytes,
    tensors_of,
    tensors_path,
)
from blockfold.passes.replacement import Replacement
from blockfold.tests.networks import residual_mlp
from blockfold.tests.planning import plan_of

SPAN = Span("x", 1, 2, "h0", "h1", -1, 3, "float32", "blocks.1", 1.0, frozenset({4, 5}), ("c",))
SOLUTION = Solution(
    np.arange(4.0).reshape(2, 2) / 3,
    np.array([0.1, -1 / 7]),
    ridge=1e-4,
    rows=20,
    rank=2,
    condition=12.5,
)
MODEL = read(residual_mlp(2))
MAPPED = Replacement(SPAN, SOLUTION, 1 / 3)
DROPPED = Replacement(replace(SPAN, entry="x", exit="h0"), None, 0.5)
TENSORS = tensor_bytes(tensors_of([MAPPED, DROPPED]))


def make_plan(*decisions: Decision) -> Plan:
    return plan_of(
        "ab",
        decisions or (decision_of(MAPPED), decision_of(DROPPED)),
        TENSORS,
        refusals=(Refusal(4, 5, "head", "its ends differ", "Gemm"),),
    )


def write_plan(folder: Path, content: str, tensors: bytes = TENSORS) -> Path:
    path = folder / "out.plan.json"
    path.write_text(content)
    tensors_path(path).write_bytes(tensors)
    return path


def document() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(make_plan().model_dump_json())
    return found


def refused(path: Path) -> str:
    with pytest.raises(BadInput) as caught:
        read_plan(path)
    line = str(caught.value)
    assert "\n" not in line
    return line


def test_a_plan_comes_back_from_its_file_as_it_was(tmp_path: Path) -> None:
    path = write_plan(tmp_path, make_plan().model_dump_json(indent=2))
    plan, tensors = read_plan(path)
    assert plan == make_plan()
    assert not plan.is_edited
    mapped, dropped = replacements_of(MODEL, plan, tensors)
    assert mapped.solution is not None
    assert dropped.solution is None
    assert mapped.solution.W.tobytes() == SOLUTION.W.tobytes()
    assert mapped.solution.b.tobytes() == SOLUTION.b.tobytes()
    for name in ("ridge", "rows", "rank", "condition"):
        assert getattr(mapped.solution, name) == getattr(SOLUTION, name)
    assert mapped.predicted_error == 1 / 3


def test_a_decision_keeps_what_a_rewrite_needs_of_a_span() -> None:
    span = span_of(decision_of(MAPPED))
    for name in (
        "stream",
        "start",
        "stop",
        "entry",
        "exit",
        "channel_axis",
        "rank",
        "dtype",
        "name",
    ):
        assert getattr(span, name) == getattr(SPAN, name)


def test_few_rows_are_a_stated_warning() -> None:
    assert decision_of(MAPPED).warning is None
    few = Replacement(SPAN, replace(SOLUTION, rows=19), 0.0)
    warning = decision_of(few).warning
    assert warning is not None
    assert warning.startswith("solved on 19 rows for 2 channels: few")
    assert decision_of(DROPPED).warning is None


@pytest.mark.parametrize("where", [(), ("model",), ("data",), ("budget",), ("decisions", 0)])
def test_unknown_keys_are_refused(where: tuple[str | int, ...], tmp_path: Path) -> None:
    content = document()
    inner: Any = content
    for key in where:
        inner = inner[key]
    inner["surprise"] = 1
    line = refused(write_plan(tmp_path, json.dumps(content)))
    assert ".".join([*map(str, where), "surprise"]) in line
    assert "not a plan" in line


@pytest.mark.parametrize(
    ("key", "value"),
    [("schema_version", 2), ("threads", "many"), ("decisions", None), ("metric", 3)],
)
def test_wrong_values_are_refused(key: str, value: object, tmp_path: Path) -> None:
    content = {**document(), key: value}
    assert f"not a plan: {key}" in refused(write_plan(tmp_path, json.dumps(content)))


@pytest.mark.parametrize("content", ["", "{", "[]", "null", "\x00", "{}", '{"schema_version": 1}'])
def test_what_is_no_plan_is_refused(content: str, tmp_path: Path) -> None:
    assert "not a plan" in refused(write_plan(tmp_path, content))


def test_missing_and_unknown_surrogates_are_refused(tmp_path: Path) -> None:
    content = document()
    content["decisions"][0]["surrogate"] = "quadratic"
    assert "decisions.0.surrogate" in refused(write_plan(tmp_path, json.dumps(content)))
    assert "cannot read the plan" in refused(tmp_path / "none.plan.json")


@pytest.mark.parametrize(
    ("key", "value"),
    [("metric", "cosine"), ("threads", 2), ("decisions", []), ("tensors_sha256", "00")],
)
def test_an_edited_decision_shows(key: str, value: object) -> None:
    assert Plan.model_validate({**document(), key: value}).is_edited


def test_measurements_stand_outside_the_hash() -> None:
    costs = Costs(model_ms=1.0, unit_ms={}, map_ms={})
    trial = TrialRecord(
        replaced=(), blocks=1, drop=0, expected_bound=0, chance=1, expected_speedup=1
    )
    plan = make_plan().model_copy(update={"costs": costs, "trials": (trial,)})
    assert not plan.is_edited


def test_tensors_of_another_plan_are_refused(tmp_path: Path) -> None:
    other = tensor_bytes({"0.W": np.zeros((2, 2)), "0.b": np.zeros(2)})
    path = write_plan(tmp_path, make_plan().model_dump_json(), other)
    assert "its tensors belong to another plan" in refused(path)


@pytest.mark.parametrize("content", [b"", b"junk", TENSORS[:-1], TENSORS[:9], b"\xff" * 40])
def test_broken_tensors_are_refused(content: bytes, tmp_path: Path) -> None:
    path = write_plan(tmp_path, make_plan().model_dump_json(), content)
    assert "broken tensors" in refused(path)


def test_missing_tensors_are_refused(tmp_path: Path) -> None:
    path = write_plan(tmp_path, make_plan().model_dump_json())
    tensors_path(path).unlink()
    assert "cannot read the plan's tensors" in refused(path)


@pytest.mark.parametrize(
    "tensors",
    [
        {},
        {"0.W": np.zeros((2, 2))},
        {"0.W": np.zeros((2, 3)), "0.b": np.zeros(2)},
        {"0.W": np.zeros((2, 2)), "0.b": np.zeros((1, 2))},
        {"1.W": np.zeros((2, 2)), "1.b": np.zeros(2)},
    ],
)
def test_tensors_that_hold_no_map_are_refused(tensors: dict[str, np.ndarray]) -> None:
    with pytest.raises(BadInput, match=r"do not hold a map for 'blocks\.1'"):
        replacements_of(MODEL, make_plan(), tensors)


@pytest.mark.parametrize("number", ["condition", "predicted_error"])
def test_an_infinite_figure_survives_the_file(number: str, tmp_path: Path) -> None:
    """A stream that never varies has condition infinity; a map that misses it, infinite error."""
    decision = decision_of(MAPPED).model_copy(update={number: float("inf")})
    plan, _ = read_plan(write_plan(tmp_path, make_plan(decision).model_dump_json()))
    assert not plan.is_edited
