"""Whatever befalls a run, the files are the old ones or the new, and a line says why."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest

from blockfold.ir.staging import staged
from blockfold.passes import costs
from blockfold.passes import optimize as main_job
from blockfold.tests.tools.harness import CAREFUL, CommandLine, Files, network, untouched
from blockfold.tests.tools.place import BAD_INPUT, Place, assert_one_line
from blockfold.tools.benchmarks import accidents

# --- the disk is full


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Makes a file system of so many bytes; only root may."""
    made = []

    def make(size_bytes: int) -> Path:
        folder = tmp_path / "disk"
        folder.mkdir()
        words = ["mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "none", str(folder)]
        if os.name != "posix" or subprocess.run(words, capture_output=True, check=False).returncode:
            pytest.skip("may not mount a file system here")
        made.append(folder)
        return folder

    yield make
    for folder in made:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("room", ["model", "plan"])
def test_a_full_disk_at_the_target(
    room: str, disk: Callable[[int], Path], place: Place, command: CommandLine
) -> None:
    page = 4096
    whole = -(-place.small.stat().st_size // page) * page
    folder = disk(2 * page + (whole - page if room == "model" else whole + page))
    (folder / "out.onnx").write_bytes(b"an older file")
    with untouched(folder):
        ran = command(*place.optimize("-o", folder / "out.onnx"))
    assert_one_line(ran, BAD_INPUT, ["cannot write there", "No space left", "another place"])


def test_a_full_disk_for_temporary_files(
    disk: Callable[[int], Path],
    place: Place,
    command: CommandLine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = disk(3 * 4096)
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    with untouched(place.folder, folder):
        ran = command(*place.optimize())
    assert_one_line(ran, BAD_INPUT, ["temporary files", "No space left", "TMPDIR"])


def test_files_that_may_not_grow(place: Place) -> None:
    """A limit of the system's, as a quota is."""
    words = [sys.executable, "-m", "blockfold", *map(str, place.optimize(*CAREFUL))]
    limit = 4096
    with untouched(place.folder):
        done = subprocess.run(
            words,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    assert done.returncode == BAD_INPUT
    assert "temporary files" in done.stderr
    assert "File too large" in done.stderr


# --- what is read changes meanwhile


def external(place: Place) -> Path:
    proto = network()
    onnx.save(
        proto,
        str(place.folder / "model.onnx"),
        save_as_external_data=True,
        location="weights",
        size_threshold=0,
    )
    return place.folder / "model.onnx"


def folder_of_npy(place: Place) -> Path:
    folder = place.folder / "arrays"
    folder.mkdir()
    for name, array in place.arrays().items():
        np.save(folder / f"{name}.npy", array)
    return folder


def rewritten(path: Path) -> None:
    """Another byte, in place."""
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last[0] ^ 1]))


def replaced(path: Path) -> None:
    """A new file of the same bytes under the name, as an editor saves."""
    other = path.with_name("other")
    other.write_bytes(path.read_bytes())
    other.replace(path)


@pytest.mark.parametrize(
    ("what", "change"),
    [
        ("model.onnx", rewritten),
        ("given.npz", replaced),
        ("weights", rewritten),
        ("weights", Path.unlink),
        ("arrays/x.npy", rewritten),
        ("arrays/x.npy", Path.unlink),
    ],
)
def test_a_file_that_changes_while_in_use(
    what: str,
    change: Callable[[Path], None],
    place: Place,
    command: CommandLine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = external(place)
    data = folder_of_npy(place) if "npy" in what else place.npz(**place.arrays())
    real = costs.measure_costs

    def changing(*given: object) -> object:
        found = real(*given)  # type: ignore[arg-type]
        change(place.folder / what)
        return found

    monkeypatch.setattr(main_job, "measure_costs", changing)
    ran = command(*place.optimize(model=model, data=data))
    assert_one_line(ran, BAD_INPUT, [what.split("/")[-1], "while in use", "again"])
    assert not list(place.folder.glob("*out*"))


def test_a_file_that_stands_still_is_no_concern(place: Place, command: CommandLine) -> None:
    """Else the cases above could fail for some reason that all of them share."""
    ran = command(*place.optimize(model=external(place), data=folder_of_npy(place)))
    assert ran.code == 0, ran


# --- two runs, one target


def test_a_second_run_is_refused_while_the_first_is_at_it(
    place: Place, command: CommandLine
) -> None:
    with staged(place.target):
        for words in (place.optimize(), place.apply(place.plan())):
            ran = command(*words)
            assert_one_line(ran, BAD_INPUT, ["out.onnx", "another run is writing it", "wait"])


def test_a_model_beside_the_plan_of_another(place: Place, command: CommandLine) -> None:
    """As a run that was killed between its renames leaves them."""
    place.target.write_bytes(place.small.read_bytes())
    plan = place.plan(lambda content: content.update(sha256="0" * 64))
    plan.rename(place.target.with_suffix(".plan.json"))
    plan.with_suffix(".safetensors").rename(place.target.with_suffix(".plan.safetensors"))
    with untouched(place.folder):
        ran = command("verify", place.model, place.target, "--data", place.data)
    assert_one_line(ran, BAD_INPUT, ["out.plan.json", "not the plan of that model", "--plan"])


# --- killed and interrupted at random times: the short form of tools/benchmarks/accidents


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["kill", "ctrl-c"])
def test_runs_that_are_killed(kind: str, files: Files) -> None:
    words = [sys.executable, "-m", accidents.__name__, str(files.model), str(files.data)]
    words += ["--runs", "2", "--signal", kind]
    words += [f"--option={word}" for word in (*CAREFUL, "--max-drop", "5%")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "after one more run: nothing" in done.stdout


def test_the_loop_tells_a_mixture_from_a_whole(place: Place) -> None:
    (place.folder / "out").mkdir()
    (place.folder / "tmp").mkdir()
    looked_at = accidents.Place(place.folder, [])
    assert looked_at.found() == "absent"
    for suffix in (".onnx", ".plan.json", ".plan.safetensors"):
        copy = looked_at.target.with_suffix(suffix)
        copy.write_bytes(place.small.with_suffix(suffix).read_bytes())
    assert (looked_at.found(), looked_at.found()) == ("new", "old")
    plan = looked_at.target.with_suffix(".plan.json")
    plan.write_text(plan.read_text().replace('"seed": 0', '"seed": 1'))
    assert looked_at.found() == "new"  # an edited plan is still that model's
    other = place.plan(lambda content: content.update(sha256="0" * 64))
    other.rename(plan)
    assert looked_at.found() == "WRONG"
    looked_at.room.mkdir()
    (place.folder / "tmp" / "left").mkdir()
    assert looked_at.debris() == [looked_at.room.name, "left"]


def test_ctrl_c_during_the_import(tmp_path: Path) -> None:
    """The command line says nothing and ends as interrupted, however early."""
    code = (
        "import sys, signal\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "class Now:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'click':\n"
        "            signal.raise_signal(signal.SIGINT)\n"
        "sys.meta_path.insert(0, Now())\n"
        "from blockfold.__main__ import main\n"
        "main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, timeout=60, check=False, cwd=tmp_path
    )
    assert (done.returncode, done.stdout, done.stderr) == (128 + signal.SIGINT, b"", b"")
