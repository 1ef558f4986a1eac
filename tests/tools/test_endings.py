"""However a run ends, by a fault of ours or from outside, it says so and leaves nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from blockfold.passes import optimize as main_job
from blockfold.tests.tools.harness import CAREFUL, CommandLine, Ran, subprocess_run, untouched
from blockfold.tests.tools.place import BAD_INPUT, BUG, INTERRUPTED, Place, assert_one_line
from blockfold.tools import api

# --- faults of our own, and interruptions


def test_a_bug_is_owned(
    place: Place, command: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("two and\ntwo is five")

    monkeypatch.setattr(api, "inspect", broken)
    ran = command("inspect", place.model)
    *trace, last = ran.err.splitlines()
    assert (ran.code, ran.out) == (BUG, "")
    assert trace[0].startswith("Traceback")
    assert last.startswith("blockfold: a bug in blockfold")
    assert "two is five" in last
    ran = command("inspect", place.model, "--json")
    assert (ran.code, ran.document["exit_code"]) == (BUG, BUG)
    assert "two is five" in ran.document["error"]


def after_ctrl_c(ran: Ran) -> Ran:
    """The command line first ends the line on which a terminal shows ^C."""
    assert ran.err.startswith("\n")
    return replace(ran, err=ran.err[1:])


@pytest.mark.parametrize("stop", [KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("where", ["lay_out", "rewrite", "verify", "measure_latency"])
def test_a_sudden_end_leaves_no_debris(
    where: str,
    stop: type[BaseException],
    place: Place,
    command: CommandLine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def ended(*_: object, **__: object) -> None:
        raise stop

    monkeypatch.setattr(main_job, where, ended)
    place.file("out.onnx", b"an older file")
    with untouched(place.folder, place.model.parent):
        ran = command(*place.optimize())
    assert ran.out == ""
    if stop is KeyboardInterrupt:
        assert_one_line(after_ctrl_c(ran), INTERRUPTED, ["interrupted", "no file is half-written"])
    else:
        assert ran.code == BUG


def test_ctrl_c_in_earnest(place: Place, temporary: Path) -> None:
    words = [sys.executable, "-m", "blockfold", *map(str, place.optimize(*CAREFUL))]
    place.file("out.onnx", b"an older file")
    with (
        untouched(place.folder),
        subprocess.Popen(
            words,
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # a shell that runs the tests in the background has it ignored
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        ) as process,
    ):
        waited = time.monotonic() + 60
        while not any(temporary.glob("blockfold-*/*.npy")) and process.poll() is None:
            assert time.monotonic() < waited
            time.sleep(0.01)
        assert any(place.folder.glob(".out.onnx.*")), "the search is on, nothing is written yet"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    ran = after_ctrl_c(Ran(process.returncode, out.decode(), err.decode()))
    assert_one_line(ran, INTERRUPTED, ["interrupted", "no file is half-written"])
    assert ran.out == ""
    assert not list(temporary.iterdir())


# --- a process of its own: nothing is added on the way out


@pytest.mark.parametrize("as_json", [False, True])
def test_bad_input_in_a_process_of_its_own(place: Place, as_json: bool) -> None:
    arguments = place.optimize(data=place.npz(y=place.arrays()["x"]))
    with untouched(place.folder):
        ran = subprocess_run(*arguments, *(["--json"] if as_json else []), cwd=place.folder)
    assert_one_line(ran, BAD_INPUT, ["given.npz", "'y'", "missing 'x'"])
    if as_json:
        assert ran.document["exit_code"] == BAD_INPUT
    else:
        assert ran.out == ""


def test_a_reader_that_hangs_up_is_no_bug(place: Place) -> None:
    """As in `blockfold inspect model.onnx --json | head -1`."""
    words = [sys.executable, "-m", "blockfold", "inspect", str(place.model), "--json"]
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(words, stdout=write, stderr=subprocess.PIPE, timeout=60, check=False)
    os.close(write)
    assert b"bug" not in done.stderr
    assert done.returncode != BUG
