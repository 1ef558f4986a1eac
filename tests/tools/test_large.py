"""Models with weights in external files, as the benchmark of large ones makes them, but small."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from blockfold.calibration import tape
from blockfold.calibration.runtime import load
from blockfold.ir import onnx_file
from blockfold.ir.onnx_file import EXTERNAL, read, write
from blockfold.tests.networks import Arrays, compare
from blockfold.tests.tools.harness import hurry
from blockfold.tools import api
from blockfold.tools.benchmarks.large import TOKENS, Writer, run_alone
from blockfold.tools.results import Result

WIDTH = 32


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    return Writer(folder, shards=3).write(4, WIDTH, 4 * WIDTH)


def inputs(rows: int, seed: int = 0) -> Arrays:
    rng = np.random.default_rng(seed)
    return {"x": rng.standard_normal((rows, TOKENS, WIDTH)).astype(np.float32)}


def optimized(model: Path, folder: Path, patch: pytest.MonkeyPatch) -> tuple[Result, Path]:
    hurry(patch)
    folder.mkdir()
    target = folder / "small.onnx"
    result, _ = api.optimize_to(target, model, inputs(160), remove=1, threads=1, provider="cpu")
    return result, target


def outputs(path: Path, feeds: Arrays) -> Arrays:
    """As a stock session gives them, which finds external data beside the file by itself."""
    session = load().InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return {"logits": session.run(["logits"], feeds)[0]}


def test_shards_become_one_file_beside_the_model_wherever_it_is_loaded_from(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert {f.name for f in model.parent.glob("*.bin")} == {f"weights.{i}.bin" for i in range(3)}
    result, target = optimized(model, tmp_path / "out", monkeypatch)
    assert result.plan.decisions
    names = {file.name for file in target.parent.iterdir()}
    assert names == {
        "small.onnx",
        "small.onnx.data",
        "small.plan.json",
        "small.plan.safetensors",
        "small.report.html",
    }
    made = onnx.load(target, load_external_data=False)
    places = [
        {entry.key: entry.value for entry in tensor.external_data}
        for tensor in made.graph.initializer
        if tensor.data_location == EXTERNAL
    ]
    assert {place["location"] for place in places} == {"small.onnx.data"}
    ends = [int(place["offset"]) + int(place["length"]) for place in places]
    assert max(ends) == (target.parent / "small.onnx.data").stat().st_size
    size_bytes = sum(file.stat().st_size for file in model.parent.iterdir())
    assert target.stat().st_size + (target.parent / "small.onnx.data").stat().st_size < size_bytes
    monkeypatch.chdir("/")
    moved = tmp_path / "moved"
    target.parent.rename(moved)
    feeds = inputs(8, seed=1)
    before, after = outputs(model, feeds), outputs(moved / "small.onnx", feeds)
    assert np.abs(before["logits"] - after["logits"]).max() < np.abs(before["logits"]).max()


def test_sessions_that_must_close_change_nothing(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With room for no second session every piece is opened again, and all decisions are alike."""
    hurry(monkeypatch)
    found: list[Result] = []
    for room in (tape.SESSIONS_BYTES, 1):
        monkeypatch.setattr(tape, "SESSIONS_BYTES", room)
        known = None if not found else tmp_path / "first.plan.json"
        result = api.optimize(model, inputs(160), remove=1, threads=1, provider="cpu", costs=known)
        result.save(tmp_path / "first.onnx")
        found.append(result)
    first, second = (result.plan.decisions for result in found)
    assert first == second


def test_at_most_one_session_stays_where_there_is_room_for_none(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from blockfold.calibration.runtime import Runtime
    from blockfold.calibration.sources import open_data

    source = read(model)
    chain = [node.outputs[0] for node in source.graph.nodes if node.op == "Add"]
    monkeypatch.setattr(tape, "SESSIONS_BYTES", 1)
    pieces = tape.Pieces(source, Runtime(threads=1))
    with open_data(inputs(6), source.inputs) as data:
        walked = tape.Tape(pieces, data, np.arange(6), 4)
        for name in chain:
            walked.reach([name])
            assert len(pieces._open) == 1
            walked.keep([name])
        # one that the caller alone has needs the room, too
        alone = pieces.open([chain[-1]], ["logits"])
        assert alone.outputs == ("logits",)
        assert not pieces._open
        walked.reach(["logits"])
        logits = np.concatenate(list(walked.real("logits")))
    compare(outputs(model, inputs(6)), {"logits": logits}, atol=1e-5, rtol=1e-5)


def test_weights_inside_go_outside_where_the_file_would_be_too_long(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    proto = onnx.load(model)  # with all weights inside, then some of them outside
    for tensor in proto.graph.initializer[-3:]:
        onnx.external_data_helper.set_external_data(tensor, "some.bin")
    onnx.save(proto, tmp_path / "mixed.onnx")
    source = read(tmp_path / "mixed.onnx")
    for longest, left in ((onnx_file.LONGEST_INLINE_BYTES, True), (2000, False)):
        monkeypatch.setattr(onnx_file, "LONGEST_INLINE_BYTES", longest)
        target = tmp_path / f"{longest}.onnx"
        write(source, target)
        made = onnx.load(target, load_external_data=False)
        inside = [len(t.raw_data) for t in made.graph.initializer if t.data_location != EXTERNAL]
        assert (max(inside) > onnx_file.SHORT_BYTES) is left
        compare(outputs(model, inputs(4)), outputs(target, inputs(4)), atol=0, rtol=0)


def test_a_process_is_measured_by_itself() -> None:
    code, small, _ = run_alone(["-c", "pass"])
    failed, large, _ = run_alone(["-c", "x = bytearray(64 << 20); raise SystemExit(3)"])
    assert (code, failed) == (0, 3)
    assert large - small > 48 << 20
