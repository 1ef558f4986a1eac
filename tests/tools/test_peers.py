"""The benchmark against peers: each method does what its row says, and the table tells it all."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner

from blockfold.calibration.flops import flops
from blockfold.calibration.runtime import Runner
from blockfold.ir.errors import BadInput, Unsupported
from blockfold.passes.task import Task
from blockfold.tests.networks import labelled, residual_mlp
from blockfold.tests.tools.harness import Files, hurry
from blockfold.tools import opening
from blockfold.tools.benchmarks import peers
from blockfold.tools.benchmarks.cases import Case
from blockfold.tools.benchmarks.meters import peak_bytes
from blockfold.tools.benchmarks.peer_findings import Figures, Peers, Row
from blockfold.tools.benchmarks.peer_methods import ORIGINAL, PEERS, Given
from blockfold.tools.benchmarks.peer_tables import show
from blockfold.tools.benchmarks.peers import Attempt, Job, attempt

SETTINGS = opening.Settings(metric="accuracy", provider="cpu", threads=1)


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = tmp_path_factory.mktemp("peers")
    model = residual_mlp(4, affine=(2,))
    onnx.save(model, folder / "model.onnx")
    np.savez(folder / "samples.npz", allow_pickle=False, **labelled(model, 240))
    return Case("mine", str(folder / "model.onnx"), str(folder / "samples.npz"), "accuracy")


def given(task: Task) -> Given:
    return Given(task, 1, opening.profile_of(task, SETTINGS))


@pytest.mark.parametrize("method", ["drop", "rba", "onnxsim, block pruning", "blockfold"])
def test_methods_remove_what_was_asked_for(
    method: str, case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    hurry(monkeypatch)
    with case.opened(SETTINGS) as task:
        made = PEERS[method].run(given(task))
        assert made.blocks >= 1 and made.replaced
        assert made.model.graph.parameters_stored < task.model.graph.parameters_stored
        assert made.model.graph.inputs == task.model.graph.inputs


@pytest.mark.parametrize("method", ["onnxsim", "onnxslim", "int8"])
def test_tools_that_remove_nothing_keep_what_the_model_says(method: str, case: Case) -> None:
    with case.opened(SETTINGS) as task:
        before = task.model.serialized()
        made = PEERS[method].run(given(task)).model
        assert (
            task.model.proto.SerializeToString()
            == onnx.load_from_string(before).SerializeToString()
        )
        batch = next(iter(task.data.batches(np.arange(50), 50)))
        old, new = (Runner(m, task.runtime)(batch.feeds)["logits"] for m in (task.model, made))
        assert (old.argmax(-1) == new.argmax(-1)).mean() > 0.9
        counts = [flops(m, task.runtime, batch.feeds) for m in (task.model, made)]
        assert counts[0] == counts[1]  # whole numbers are counted as well
        assert ("MatMulInteger" in {node.op for node in made.graph.nodes}) == (method == "int8")


def test_a_rule_that_applies_to_nothing_says_so(case: Case, files: Files) -> None:
    normless = Case("no norm", str(files.model), str(files.data), "accuracy")
    with normless.opened(SETTINGS) as task, pytest.raises(Unsupported, match="residual branches"):
        PEERS["onnxsim, block pruning"].run(given(task))
    with case.opened(SETTINGS) as task, pytest.raises(BadInput, match="cannot remove 99 blocks"):
        PEERS["drop"].run(Given(task, 99, opening.profile_of(task, SETTINGS)))


def test_an_attempt_writes_a_model_or_tells_why_not(case: Case, tmp_path: Path) -> None:
    job = Job("drop", case, SETTINGS, 1, tmp_path / "made.onnx")
    found = attempt(job)
    assert found.why_not is None and job.target.is_file()
    assert found.passes > 0 and found.peak_ratio >= 1 and found.blocks == 1
    failed = attempt(Job("drop", case, SETTINGS, 99, tmp_path / "none.onnx"))
    assert "99 blocks" in str(failed.why_not) and not (tmp_path / "none.onnx").exists()


def test_prices_of_one_upon_another() -> None:
    first = Attempt(None, 2.0, ("a",), 10.0, 1.5)
    assert Attempt(None, 0.0, (), 1.0, 1.1).upon(first) == Attempt(None, 2.0, ("a",), 11.0, 1.5)
    assert Attempt("broken").upon(first).why_not == "broken"


def test_the_peak_never_falls_and_sees_a_large_array() -> None:
    before = peak_bytes()
    size = 2 * before
    assert np.ones(size, np.uint8).sum() == size
    assert peak_bytes() >= size
    assert peak_bytes() >= before


def row(method: str, ratio: float | None) -> Row:
    if ratio is None:
        return Row(method, "no such block", 0.0, (), 0.0, 1.0, None)
    figures = Figures(0.8, 0.7, 0.6, (ratio, 0.9, 1.6), 0.01, (-0.01, 0.03), 0.9)
    return Row(method, None, 2.0000001, ("span",), 3.0, 1.4, figures)


def test_the_table_shows_losing_cells_and_whether_speed_multiplies(
    capsys: pytest.CaptureFixture[str],
) -> None:
    ratios = {ORIGINAL: 1.0, "drop": None, "blockfold": 1.5, "int8": 2.0, "blockfold + int8": 2.9}
    rows = [row(method, ratio) for method, ratio in ratios.items()]
    show(Peers("mine", "drop of accuracy", 100, 0.91, 2, rows))
    out = capsys.readouterr().out
    assert "| drop | n/a |" in out and "- drop: no such block" in out
    assert "- blockfold: span" in out and "| blockfold | 2 | 80.0% |" in out
    assert "blockfold 1.50x times int8 2.00x would be 3.00x; measured 2.90x" in out
    show(Peers("mine", "drop of accuracy", 100, 0.91, 2, rows[:3]))
    assert "would be" not in capsys.readouterr().out


@pytest.mark.slow
def test_the_whole_command(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = (ORIGINAL, "drop", "int8")
    monkeypatch.setattr(peers, "PEERS", {name: PEERS[name] for name in kept})
    monkeypatch.setattr(peers, "ROUNDS", 3)
    target = tmp_path / "peers.json"
    words = ["--model", *case, "--remove", "1", "--threads", "1", "--json", str(target)]
    ran = CliRunner().invoke(peers.main, words, catch_exceptions=False)
    assert ran.exit_code == 0
    (found,) = json.loads(target.read_text())
    rows = {row["method"]: row for row in found["rows"]}
    assert tuple(rows) == kept
    assert rows[ORIGINAL]["figures"]["damage"] == 0
    assert rows["drop"]["figures"]["flops"] < 1 == rows["int8"]["figures"]["flops"]
    assert all(row["peak_ratio"] >= 1 for row in rows.values())
    assert "| drop | 1 |" in ran.output
