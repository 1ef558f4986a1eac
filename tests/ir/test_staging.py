"""Files that belong together arrive together, wherever a writer is killed, and from one writer."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from blockfold.ir import scratch
from blockfold.ir.errors import BadInput
from blockfold.ir.staging import staged, write_bytes
from blockfold.tests.ir import killed
from blockfold.tests.ir.killed import NAMES, OLD, ROOM, fill


def test_staged_files_arrive_together(tmp_path: Path) -> None:
    target = tmp_path / "out.onnx"
    target.write_bytes(b"old")
    with staged(target) as folder:
        write_bytes(folder / "out.onnx", b"new")
        write_bytes(folder / "out.plan.json", b"plan")
        assert target.read_bytes() == b"old"
        assert tmp_path in folder.parents
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == {
        "out.onnx": b"new",
        "out.plan.json": b"plan",
    }


@pytest.mark.parametrize("error", [ValueError, BadInput, KeyboardInterrupt, SystemExit])
def test_nothing_is_left_of_a_failure(error: type[BaseException], tmp_path: Path) -> None:
    target = tmp_path / "out.onnx"
    target.write_bytes(b"old")

    def work() -> None:
        with staged(target) as folder:
            write_bytes(folder / "out.onnx", b"half")
            raise error("broken off")

    with pytest.raises(error):
        work()
    assert [file.name for file in tmp_path.iterdir()] == ["out.onnx"]
    assert target.read_bytes() == b"old"


def test_a_place_that_cannot_be_written_is_refused_before_the_work(tmp_path: Path) -> None:
    for target, said in (
        (tmp_path / "none" / "out.onnx", "cannot write there: No such file"),
        (tmp_path, "is a folder"),
    ):
        with pytest.raises(BadInput, match=said), staged(target):
            pytest.fail("the work began")


@pytest.mark.skipif(os.name != "posix", reason="a device that is always full")
def test_a_full_disk_is_one_clear_line() -> None:
    with pytest.raises(BadInput, match="No space left on device; choose another place"):
        write_bytes(Path("/dev/full"), bytes(10))


# --- killed at every operation


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.name != ROOM}


@pytest.fixture(scope="module", params=["nothing before", "an older set before"])
def folders(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, list[Path]]:
    """By names of the files written: a folder for every operation that a writer was killed at."""
    older = request.param != "nothing before"
    found = {}
    for kind, names in NAMES.items():
        place = tmp_path_factory.mktemp("killed")
        words = [sys.executable, killed.__file__, str(place), kind, "older" if older else "none"]
        subprocess.run(words, check=True, timeout=60)
        found[kind] = sorted(place.iterdir(), key=lambda path: int(path.name))
        assert len(found[kind]) > 5 * len(names)
    return found


@pytest.mark.parametrize("kind", NAMES)
def test_a_killed_writer_leaves_the_old_or_the_new(
    folders: dict[str, list[Path]], kind: str
) -> None:
    old, new = ({name: make(name) for name in NAMES[kind]} for make in (killed.old, killed.new))
    seen = set()
    for folder in folders[kind]:
        before = old if (folder / OLD).exists() else {}
        left = contents(folder)
        left.pop(OLD, None)
        model = left.get("out.onnx")
        assert model in (before.get("out.onnx"), new["out.onnx"], None)
        if model == new["out.onnx"]:
            assert left == new, "the target is the last of its set"
        elif left != before:  # on the way: the rest lies ready
            assert (folder / ROOM / "ready").is_dir()
            assert model is None or "out.onnx.data" not in new, "no old graph over new weights"
        seen.add("new" if left == new else "old" if left == before else "on the way")
        # whoever comes next, even to fail, mends it and leaves nothing
        committed = left not in (before, new) or (folder / ROOM / "ready").is_dir()
        with pytest.raises(KeyError), staged(folder / "out.onnx"):
            raise KeyError
        left = contents(folder)
        left.pop(OLD, None)
        assert not (folder / ROOM).exists()
        assert left == (new if committed or model == new["out.onnx"] else before)
    assert seen == {"old", "new", "on the way"}


def test_the_next_run_replaces_what_was_left(tmp_path: Path) -> None:
    left = tmp_path / ROOM / "new"
    left.mkdir(parents=True)
    (left / "stranger").write_bytes(b"half")
    with staged(tmp_path / "out.onnx") as folder:
        fill(folder, ["out.onnx"], killed.new)
    assert contents(tmp_path) == {"out.onnx": killed.new("out.onnx")}
    assert not (tmp_path / ROOM).exists()


# --- one writer at a time

HOLDER = """
import sys
from pathlib import Path
from blockfold.ir.staging import staged
with staged(Path(sys.argv[1])):
    print("in", flush=True)
    sys.stdin.read()
"""


@contextmanager
def holder(target: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that is writing the target, until its input ends."""
    words = [sys.executable, "-c", HOLDER, str(target)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"in\n"
        yield process
        process.communicate(timeout=60)


def test_a_second_writer_is_refused_while_the_first_lives(tmp_path: Path) -> None:
    target = tmp_path / "out.onnx"
    with holder(target):
        with pytest.raises(BadInput, match="another run is writing it"), staged(target):
            pytest.fail("two at once")
        with staged(tmp_path / "other.onnx"):
            pass
    with staged(target):
        pass


def test_in_one_process_too(tmp_path: Path) -> None:
    target = tmp_path / "out.onnx"
    with (
        staged(target) as folder,
        pytest.raises(BadInput, match="another run is writing it"),
        staged(target),
    ):
        pytest.fail("two at once")
    assert not folder.exists()


def test_the_dead_hold_nothing(tmp_path: Path) -> None:
    target = tmp_path / "out.onnx"
    with holder(target) as process:
        process.kill()
        process.wait(timeout=60)
        assert (tmp_path / ROOM).is_dir()
        with staged(target) as folder:
            write_bytes(folder / "out.onnx", b"new")
    assert contents(tmp_path) == {"out.onnx": b"new"}


def no_locks(_file: int) -> bool:
    raise scratch.NoLocks(38, "Function not implemented")


def test_without_locks_what_lies_there_is_left_to_the_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scratch, "_locked", no_locks)
    target = tmp_path / "out.onnx"
    with staged(target) as folder:
        write_bytes(folder / "out.onnx", b"new")
        with pytest.raises(BadInput, match="remove that folder if none is"), staged(target):
            pytest.fail("two at once")
    assert contents(tmp_path) == {"out.onnx": b"new"}


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "new").mkdir(parents=True)
    (tmp_path / ROOM).symlink_to(elsewhere)
    with pytest.raises(BadInput, match="in the way"), staged(tmp_path / "out.onnx"):
        pytest.fail("followed")
    assert (elsewhere / "new").is_dir()


def test_a_folder_in_the_way_of_a_side_file_is_found_before_anything_is_replaced(
    tmp_path: Path,
) -> None:
    (tmp_path / "out.plan.json").mkdir()
    write_bytes(tmp_path / "out.onnx", b"old")
    with (
        pytest.raises(BadInput, match=r"out\.plan\.json: is a folder, in the way"),
        staged(tmp_path / "out.onnx") as folder,
    ):
        fill(folder, NAMES["model"], killed.new)
    assert (tmp_path / "out.onnx").read_bytes() == b"old"
    assert not (tmp_path / ROOM).exists()


# --- Ctrl-C


@pytest.fixture
def heeding() -> Iterator[None]:
    """Ctrl-C is heeded, which it is not where a shell runs the tests in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heeding")
def test_ctrl_c_waits_for_the_short_work() -> None:
    done = []
    with pytest.raises(KeyboardInterrupt), scratch.undisturbed():
        signal.raise_signal(signal.SIGINT)
        done.append(1)
    assert done == [1]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_only_the_main_thread_is_ever_interrupted() -> None:
    def work() -> None:
        with scratch.undisturbed():
            done.append(1)

    done: list[int] = []
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == [1]
