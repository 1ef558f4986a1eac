"""The benchmark of other tools: distances are right, a tool that fails or is missing is a line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import numpy_helper

from blockfold.calibration.runtime import Runner
from blockfold.passes.task import Task
from blockfold.tests.networks import labelled, residual_mlp
from blockfold.tests.tools.harness import Files, hurry
from blockfold.tools import opening
from blockfold.tools.benchmarks import downstream
from blockfold.tools.benchmarks.downstream import Row, rows, strayed
from blockfold.tools.benchmarks.downstream_tools import TOOLS, Served, Tool


def test_how_far_outputs_stray() -> None:
    before = np.array([[1.0, 0.0], [0.0, 2.0], [3.0, 4.0], [0.0, 1.0]])
    after = before.copy()
    assert str(strayed(before, after)) == "100.0%, 0.0e+00"
    after[2] = 4.4, 4.0
    found = strayed(before, after)
    assert found.agreement == 0.75
    assert found.difference == pytest.approx(1.4 / 4.0)


def doubled(task: Task, source: Path, target: Path) -> Served:
    """A tool that breaks a model: its logits are twice as large."""
    model = onnx.load(source)
    last = model.graph.node[-1]
    for tensor in model.graph.initializer:
        if tensor.name in last.input:
            wide = 2 * numpy_helper.to_array(tensor)
            tensor.CopyFrom(numpy_helper.from_array(wide, tensor.name))
    onnx.save(model, target)
    return Runner(opening.read_model(target), task.runtime)


def failing(_task: Task, _source: Path, _target: Path) -> Served:
    raise RuntimeError("cannot do\nthat")


def test_tools_that_break_fail_or_are_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hurry(monkeypatch)
    model = residual_mlp(2)
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    tools = [
        Tool("doubler", ("onnx",), doubled, is_timed=False),
        Tool("breaker", ("onnx",), failing),
        Tool("unknown", ("no-such-distribution",), failing),
    ]
    settings = opening.Settings(provider="cpu", threads=1)
    with opening.opened_task(opening.read_model(path), labelled(model, 80), settings) as task:
        profile = opening.profile_of(task, settings)
        first, second, third = rows(task, profile, [path, path], tools)
    assert isinstance(first, Row)
    assert first.original.agreement == first.result.agreement == 1.0
    assert first.original.difference == pytest.approx(1.0)
    assert first.alone is None
    assert isinstance(second, str)
    assert "fails: cannot do that" in second
    assert third == "| unknown | not tried: not installed |"


@pytest.mark.slow
def test_every_tool_that_is_installed_keeps_the_outputs(
    files: Files, small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A line for each; those of floats stray by rounding, on the result as on the original."""
    hurry(monkeypatch)
    monkeypatch.setattr(downstream, "ROUNDS", 2)
    given = ["--model", "tiny", str(files.model), str(small), str(files.data)]
    ran = CliRunner().invoke(downstream.main, given)
    assert ran.exit_code == 0, ran.output
    lines = ran.output.splitlines()
    for tool in TOOLS:
        (line,) = (line for line in lines if line.startswith(f"| {tool.name} "))
        assert "fails" not in line
        if "float16" not in line and "quantisation" not in line and "not tried" not in line:
            shares = [float(cell.split("%")[0]) for cell in line.split("|")[2:4]]
            assert min(shares) == 100.0
