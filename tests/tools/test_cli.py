"""Every verb at its best: what it writes, what it shows, and one JSON document for programs."""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from blockfold.tests.networks import compare, labelled, run
from blockfold.tests.tools.harness import (
    BLOCKS,
    CAREFUL,
    DROP,
    PLANTED,
    SAMPLES,
    CommandLine,
    Ran,
    contents,
    judged,
    network,
    save,
    subprocess_run,
    untouched,
)
from blockfold.tools.demo import bundle

FOUND = f"blocks.{PLANTED}"
"""The planted block by its name."""

OPTIMIZE = ["optimize", "model.onnx", "--data", "samples.npz", "--max-drop", DROP]
PLANNED = ["out.onnx", "out.plan.json", "out.plan.safetensors"]
MADE = [*PLANNED, "out.report.html"]


def plan_of(path: Path) -> dict[str, Any]:
    found = json.loads(path.read_text())
    assert isinstance(found, dict)
    return found


def assert_shown(ran: Ran, *words: str) -> None:
    """It went well, all words are on stdout, which 80 columns hold, and stderr is silent."""
    assert (ran.code, ran.err) == (0, "")
    flowing = " ".join(ran.out.split())
    missing = [word for word in words if word not in flowing]
    assert not missing, f"{missing} not in {ran.out}"
    assert_fits(ran.out)
    assert "…" not in ran.out
    assert "\x1b" not in ran.out


def assert_fits(text: str) -> None:
    """No line is longer than 80 columns, but for paths, which are never broken."""
    assert [line for line in text.splitlines() if len(line) > 80 and "/" not in line] == []


def assert_document(ran: Ran, *keys: str) -> dict[str, Any]:
    """It went well, stdout is one JSON document with just these keys, and stderr is silent."""
    assert (ran.code, ran.err) == (0, "")
    assert ran.document.keys() == set(keys)
    return ran.document


# --- inspect


def test_inspect_without_data(here: Path, command: CommandLine) -> None:
    with untouched(here):
        ran = command("inspect", "model.onnx")
    assert_shown(ran, "stream from x to", f"{BLOCKS} blocks", FOUND, "params")
    assert "redundancy" not in ran.out


def test_inspect_with_data(here: Path, command: CommandLine) -> None:
    with untouched(here):
        ran = command("inspect", "model.onnx", "--data", "samples.npz")
    assert_shown(ran, FOUND, "redundancy", "cosine", "affine R2", "1.000")


@pytest.mark.parametrize("data", [[], ["--data", "samples.npz"], ["--random-data", "40"]])
def test_inspect_as_json(data: list[str], here: Path, command: CommandLine) -> None:
    with untouched(here):
        ran = command("inspect", "model.onnx", *data, "--json")
    found = assert_document(
        ran, "model_sha256", "random", "streams", "spans", "refusals", "similarities", "samples"
    )
    (stream,) = found["streams"]
    assert [block["name"] for block in stream["blocks"]] == [f"blocks.{i}" for i in range(BLOCKS)]
    spans = {span["name"]: span for span in found["spans"]}
    assert spans[FOUND]["parameters"] == 6 * 12 + 12 + 12 * 6 + 6
    if data == ["--data", "samples.npz"]:
        for name in ("block_redundancy", "cosine", "block_influence", "identity_error"):
            assert np.isfinite([span[name] for span in found["spans"]]).all()
        for name in ("angular_distance", "nbl_bound"):
            assert np.isfinite([span[name] for span in found["spans"]]).all()
        likenesses = [span["likeness"] for span in found["spans"]]
        assert all(
            0 <= one["activation_entropy"] <= 1 for one in likenesses if one["name"] != FOUND
        )
        r2 = {name: span["affine_r2"] for name, span in spans.items()}
        assert r2.pop(FOUND) == pytest.approx(1, abs=1e-5)
        assert max(r2.values()) < 0.99


# --- optimize


def test_optimize_writes_its_files_and_says_what_it_did(here: Path, command: CommandLine) -> None:
    (here / "out.onnx").write_bytes(b"an older file")
    before = contents(here)
    ran = command(*OPTIMIZE, "-o", "out.onnx")
    assert_shown(
        ran,
        FOUND,
        "affine",
        "parameters",
        "latency",
        "accuracy",
        f"accuracy on {SAMPLES // 2} samples: 100.00 % -> 100.00 %",
        "certified: drop at most",
        "promised 5.00",
        ": kept",
        "wrote out.onnx, out.plan.json, out.plan.safetensors, out.report.html",
    )
    after = contents(here)
    assert sorted(name for name in after if before.get(name) != after[name]) == MADE
    assert before.keys() - after.keys() == set()
    small = onnx.load(here / "out.onnx")
    onnx.checker.check_model(small, full_check=True)
    feeds = {"x": np.load(here / "samples.npz")["x"]}
    compare(run(network(), feeds), run(small, feeds), atol=0, rtol=1e-4)
    assert (here / "out.onnx").stat().st_size < (here / "model.onnx").stat().st_size


def test_optimize_as_json(here: Path, command: CommandLine) -> None:
    ran = command(*OPTIMIZE, "-o", "out.onnx", "--json")
    found = assert_document(ran, "written", "plan", "before", "after", "changes")
    assert [Path(name).name for name in found["written"]] == MADE
    assert found["plan"] == plan_of(here / "out.plan.json")
    (decision,) = found["plan"]["decisions"]
    assert (decision["name"], decision["surrogate"]) == (FOUND, "affine")
    assert found["after"]["parameters"] < found["before"]["parameters"]
    assert found["after"]["nodes"] < found["before"]["nodes"]
    assert found["after"]["size_bytes"] == (here / "out.onnx").stat().st_size
    assert found["before"]["size_bytes"] == (here / "model.onnx").stat().st_size
    verdict = found["plan"]["verdict"]
    assert verdict["samples"] == found["plan"]["data"]["certify"] == SAMPLES // 2
    assert verdict["bound"]["certified"]
    assert verdict["drop"] <= verdict["bound"]["upper"] <= verdict["promise"] == 0.05
    assert any(FOUND in change for change in found["changes"])


@pytest.mark.parametrize("budget", [["--remove", "1"], ["--max-size", "6.2KB"]])
def test_optimize_to_a_target(budget: list[str], here: Path, command: CommandLine) -> None:
    ran = command("optimize", "model.onnx", "--data", "samples.npz", "-o", "out.onnx", *budget)
    assert_shown(ran, FOUND, "nothing was promised")
    assert [d["name"] for d in plan_of(here / "out.plan.json")["decisions"]] == [FOUND]


def test_the_same_costs_give_the_same_bytes(here: Path, command: CommandLine) -> None:
    assert command(*OPTIMIZE, "--costs", "small.plan.json", "-o", "out.onnx").code == 0
    assert (here / "out.onnx").read_bytes() == (here / "small.onnx").read_bytes()


def test_an_optimized_model_can_be_optimized_again(here: Path, command: CommandLine) -> None:
    """Names given the first time are not given twice, scopes or not."""
    bare = network()
    for node in bare.graph.node:
        node.name = ""
    onnx.save(bare, here / "model.onnx")
    assert command(*OPTIMIZE, "-o", "out.onnx").code == 0
    ran = command("optimize", "out.onnx", "--data", "samples.npz", "--remove", "1", "-o", "b.onnx")
    assert_shown(ran, "nothing was promised")
    onnx.checker.check_model(here / "b.onnx", full_check=True)


def test_a_map_is_not_put_where_a_map_is(here: Path, command: CommandLine) -> None:
    """One matrix is not replaced by another: there is nothing to gain."""
    ran = command(
        "optimize", "small.onnx", "--data", "samples.npz", "--max-drop", DROP, "-o", "out.onnx"
    )
    assert (ran.code, ran.out) == (1, "")
    assert not (here / "out.onnx").exists()


def test_data_from_a_module(
    here: Path, command: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "tokens_for_test.py").write_text(
        "import numpy as np\n"
        "def batches():\n"
        "    with np.load('samples.npz') as data:\n"
        "        arrays = dict(data)\n"
        "    for at in range(0, 400, 30):\n"
        "        yield {name: array[at:at + 30] for name, array in arrays.items()}\n"
    )
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    words = ["optimize", "model.onnx", "--data", "tokens_for_test:batches", "--max-drop", DROP]
    ran = command(*words, "--costs", "small.plan.json", "-o", "out.onnx")
    sys.modules.pop("tokens_for_test")
    assert_shown(ran, FOUND)
    known, small = plan_of(here / "out.plan.json"), plan_of(here / "small.plan.json")
    assert known["data"] == small["data"]
    assert (here / "out.onnx").read_bytes() == (here / "small.onnx").read_bytes()


def test_random_data_is_stamped(here: Path, command: CommandLine) -> None:
    words = ["optimize", "model.onnx", "--random-data", "400", "--max-drop", DROP]
    ran = command(*words, "-o", "out.onnx")
    assert_shown(ran, FOUND, "agreement", "RANDOM")
    assert plan_of(here / "out.plan.json")["data"]["random"] is True
    assert plan_of(here / "small.plan.json")["data"]["random"] is False


@pytest.mark.parametrize(
    "words", [["inspect", "model.onnx"], ["verify", "model.onnx", "small.onnx"]]
)
def test_random_data_is_stamped_elsewhere(
    words: list[str], here: Path, command: CommandLine
) -> None:
    with untouched(here):
        ran = command(
            *words, "--random-data", "400", *(["--metric", "agreement"] * (words[0] == "verify"))
        )
    assert_shown(ran, "RANDOM")


# --- apply


def test_apply_makes_the_same_bytes(here: Path, command: CommandLine) -> None:
    ran = command("apply", "model.onnx", "small.plan.json", "-o", "out.onnx")
    assert_shown(ran, "wrote out.onnx", "exactly as planned")
    for made, known in zip(
        PLANNED, ("small.onnx", "small.plan.json", "small.plan.safetensors"), strict=True
    ):
        assert (here / made).read_bytes() == (here / known).read_bytes()


def test_apply_as_json(here: Path, command: CommandLine) -> None:
    ran = command("apply", "model.onnx", "small.plan.json", "-o", "out.onnx", "--json")
    found = assert_document(ran, "written", "plan_sha256", "verdict", "level_is_void")
    assert [Path(name).name for name in found["written"]] == PLANNED
    assert found["plan_sha256"] == plan_of(here / "small.plan.json")["sha256"]
    assert found["verdict"] is None


def edited(here: Path, **changes: Any) -> str:
    """The plan with its one decision changed, beside its tensors."""
    plan = plan_of(here / "small.plan.json")
    plan["decisions"][0].update(changes)
    (here / "edited.plan.json").write_text(json.dumps(plan))
    shutil.copy(here / "small.plan.safetensors", here / "edited.plan.safetensors")
    return "edited.plan.json"


def test_apply_an_edited_plan_and_certify_it(here: Path, command: CommandLine) -> None:
    plan = edited(here, name="renamed")
    words = ["apply", "model.onnx", plan, "--data", "samples.npz", "-o", "out.onnx"]
    ran = command(*words)
    assert_shown(ran, "nothing was promised")
    found = assert_document(
        command(*words, "--max-drop", DROP, "--json"),
        "written",
        "plan_sha256",
        "verdict",
        "level_is_void",
    )
    assert found["verdict"]["promise"] == 0.05
    assert found["verdict"]["samples"] == SAMPLES // 2
    fresh = plan_of(here / "out.plan.json")
    assert fresh["sha256"] == found["plan_sha256"] != plan_of(here / "small.plan.json")["sha256"]
    assert fresh["decisions"][0]["name"] == "renamed"
    # what it wrote is a whole plan of its own
    assert_shown(command("apply", "model.onnx", "out.plan.json", "-o", "again.onnx"), "exactly")
    assert (here / "again.onnx").read_bytes() == (here / "out.onnx").read_bytes()


def test_apply_a_plan_edited_for_the_worse(here: Path, command: CommandLine) -> None:
    plan = edited(here, surrogate="identity")
    words = ["apply", "model.onnx", plan, "--data", "samples.npz", "-o", "out.onnx"]
    with untouched(here):
        ran = command(*words, "--max-drop", DROP)
    assert (ran.code, ran.out) == (1, "")
    assert ran.err.startswith("blockfold: not certified")
    assert_shown(command(*words), "nothing was promised")


# --- verify


def test_verify_on_the_same_data_counts_only_what_was_held_back(
    here: Path, command: CommandLine
) -> None:
    words = ["verify", "model.onnx", "small.onnx", "--data", "samples.npz", "--max-drop", DROP]
    with untouched(here):
        assert_shown(command(*words), "held back", "promised 5.00", ": kept")
        found = assert_document(command(*words, "--json"), "verdict", "held_back", "kept", "random")
    assert (found["held_back"], found["kept"]) == (True, True)
    known = plan_of(here / "small.plan.json")["verdict"]
    assert judged(found["verdict"]) == judged(known)


def test_verify_on_fresh_data_counts_all(here: Path, command: CommandLine) -> None:
    save(here / "fresh.npz", labelled(network(), 150, seed=7))
    words = ["verify", "model.onnx", "small.onnx", "--data", "fresh.npz"]
    ran = command(*words)
    assert_shown(ran, "150 samples", "nothing was promised")
    assert "held back" not in ran.out
    found = assert_document(command(*words, "--json"), "verdict", "held_back", "kept", "random")
    assert (found["held_back"], found["kept"]) == (False, True)
    assert found["verdict"]["samples"] == 150
    assert found["verdict"]["promise"] is None


def test_verify_without_the_plan_counts_all(here: Path, command: CommandLine) -> None:
    (here / "small.plan.json").unlink()
    found = command(
        "verify", "model.onnx", "small.onnx", "--data", "samples.npz", "--json"
    ).document
    assert (found["held_back"], found["verdict"]["samples"]) == (False, SAMPLES)


def test_verify_exits_1_on_a_broken_promise(here: Path, command: CommandLine) -> None:
    onnx.save(network(seed=5), here / "other.onnx")
    words = ["verify", "model.onnx", "other.onnx", "--data", "samples.npz"]
    assert command(*words).code == 0
    ran = command(*words, "--max-drop", DROP)
    assert ran.code == 1
    assert "BROKEN" in ran.out
    ran = command(*words, "--max-drop", DROP, "--json")
    assert (ran.code, ran.document["kept"]) == (1, False)


# --- bench, demo, and all of them


def test_bench(here: Path, command: CommandLine) -> None:
    with untouched(here):
        ran = command("bench", "model.onnx", "small.onnx", "--profile", "batch=4")
    assert_shown(ran, "latency:", "batch 4: x (4, 12, 6)")


@pytest.mark.parametrize("data", [[], ["--data", "samples.npz"], ["--random-data", "3"]])
def test_bench_as_json(data: list[str], here: Path, command: CommandLine) -> None:
    with untouched(here):
        ran = command("bench", "model.onnx", "small.onnx", *data, "--json")
    found = assert_document(ran, "latency")["latency"]
    keys = {"profile", "ratio", "low", "high", "original_ms", "new_ms"}
    assert found.keys() == keys
    assert found["profile"] == "batch 1: x (1, 12, 6)"
    assert 0 < found["low"] <= found["ratio"] <= found["high"]


@pytest.mark.slow
def test_demo(tmp_path: Path, command: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    if not (bundle.MODEL.is_file() and bundle.DATA.is_file()):
        pytest.skip("the demo's files are not there")
    monkeypatch.chdir(tmp_path)
    ran = command("demo")
    assert (ran.code, ran.err) == (0, "")
    assert bundle.STORY in ran.out, "its lines are broken as they were written"
    assert all(word in ran.out for word in ("accuracy", "certified: drop at most", "kept"))
    assert f"blockfold bench  {bundle.MODEL} blockfold-demo.onnx" in ran.out
    assert_fits(ran.out.replace("wrote ", "wrote ./"))
    name = "blockfold-demo"
    ends = ("onnx", "plan.json", "plan.safetensors", "report.html")
    made = [f"{name}.{end}" for end in ends]
    assert sorted(contents(tmp_path)) == made
    found = command(
        "verify", bundle.MODEL, f"{name}.onnx", "--data", bundle.DATA, "--json"
    ).document
    known = plan_of(tmp_path / made[1])["verdict"]
    assert found["held_back"]
    assert judged(found["verdict"]) == judged(known) | {"promise": None}


def test_a_process_of_its_own_says_nothing_more(here: Path) -> None:
    words = ["apply", *CAREFUL, "model.onnx", "small.plan.json", "-o", "out.onnx"]
    assert_shown(subprocess_run(*words, cwd=here), "wrote out.onnx")
    ran = subprocess_run(
        "verify", *CAREFUL, "model.onnx", "out.onnx", "--data", "samples.npz", "--json", cwd=here
    )
    assert_document(ran, "verdict", "held_back", "kept", "random")


def test_nothing_is_left_elsewhere(here: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Neither by this package nor by what it runs on: no caches, no identifiers, no logs."""
    elsewhere = {name: str(tmp_path_factory.mktemp(name)) for name in ("HOME", "TMPDIR")}
    words = ["inspect", *CAREFUL, "model.onnx", "--data", "samples.npz"]
    ran = subprocess_run(*words, cwd=here, environment=elsewhere)
    assert_shown(ran, FOUND)
    assert [contents(Path(folder)) for folder in elsewhere.values()] == [{}, {}]


def test_version(tmp_path: Path) -> None:
    ran = subprocess_run("--version", cwd=tmp_path)
    assert (ran.code, ran.err) == (0, "")
    assert ran.out == f"blockfold, version {importlib.metadata.version('blockfold')}\n"


def test_help_names_every_verb(command: CommandLine) -> None:
    ran = command("--help")
    assert_shown(ran, "inspect", "survey", "optimize", "apply", "verify", "bench", "demo")


@pytest.mark.parametrize(
    "verb", ["inspect", "survey", "optimize", "apply", "verify", "bench", "demo"]
)
def test_help_of_a_verb_fits_and_shows_an_example(verb: str, command: CommandLine) -> None:
    assert_shown(command(verb, "--help"), f"blockfold {verb}", "--json", "--provider")


def test_progress_is_drawn_on_a_terminal_and_leaves_stdout_alone(here: Path) -> None:
    leader, follower = pytest.importorskip("pty").openpty()
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "blockfold",
            "inspect",
            *CAREFUL,
            "model.onnx",
            "--data",
            "samples.npz",
            "--json",
        ],
        cwd=here,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "80"},
        stdout=subprocess.PIPE,
        stderr=follower,
        timeout=120,
        check=True,
    )
    os.close(follower)
    drawn = os.read(leader, 1 << 16).decode()
    os.close(leader)
    assert "survey" in drawn
    assert "200/200" in drawn
    assert Ran(0, done.stdout.decode(), "").document.keys() == {
        "model_sha256",
        "random",
        "streams",
        "spans",
        "refusals",
        "similarities",
        "samples",
    }


def test_rank_tells_the_pareto_set(here: Path, command: CommandLine) -> None:
    shutil.copy(here / "model.onnx", here / "twin.onnx")
    ran = command("rank", here / "model.onnx", here / "twin.onnx", "--data", here / "samples.npz")
    assert ran.code == 0, ran.err
    assert "quality" in ran.out
    assert "*" in ran.out
    ran = command("rank", here / "model.onnx", "--data", here / "samples.npz", "--json")
    (only,) = ran.document["candidates"]
    assert only["is_pareto"]
    assert only["blocks"] == 4
