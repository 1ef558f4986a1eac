"""Temporary folders are gone in the end, whichever way their process ends."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from blockfold.ir import scratch
from blockfold.ir.errors import BadInput
from blockfold.ir.scratch import Scratch

MAKER = """
import sys
from blockfold.ir.scratch import Scratch
kept = Scratch()
(kept.path / "values").write_bytes(bytes(99))
print(kept.path, flush=True)
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return tmp_path


@pytest.fixture
def maker() -> Iterator[subprocess.Popen[str]]:
    """A process with a folder of its own, which it names, until its input ends."""
    words = [sys.executable, "-c", MAKER]
    pipe = subprocess.PIPE
    with subprocess.Popen(words, stdin=pipe, stdout=pipe, text=True) as process:
        yield process
        process.communicate(timeout=60)


def named(process: subprocess.Popen[str]) -> Path:
    assert process.stdout is not None
    return Path(process.stdout.readline().strip())


def test_closed_or_collected_it_is_gone(temporary: Path) -> None:
    first, second = Scratch(), Scratch()
    assert {first.path.parent, second.path.parent} == {temporary}
    first.close()
    first.close()
    assert list(temporary.iterdir()) == [second.path]
    del second
    gc.collect()
    assert not list(temporary.iterdir())


def test_at_exit_it_is_gone(maker: subprocess.Popen[str], temporary: Path) -> None:
    assert named(maker).is_dir()
    maker.communicate(timeout=60)
    assert not list(temporary.iterdir())


def test_the_next_process_removes_what_a_killed_one_left(
    maker: subprocess.Popen[str], temporary: Path
) -> None:
    left = named(maker)
    maker.kill()
    maker.wait(timeout=60)
    assert left.is_dir()
    made = Scratch()
    assert list(temporary.iterdir()) == [made.path]
    made.close()


def test_the_living_are_left_alone(maker: subprocess.Popen[str]) -> None:
    living = named(maker)
    Scratch().close()
    assert (living / "values").stat().st_size == 99


def test_so_is_what_is_not_ours(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = temporary / "elsewhere"
    elsewhere.mkdir()
    (temporary / "blockfold-link.scratch").symlink_to(elsewhere)
    (temporary / "blockfold-results").mkdir()
    (temporary / "blockfold-file.scratch").write_bytes(b"")
    (temporary / "blockfold-theirs.scratch").mkdir()
    before = sorted(temporary.iterdir())
    owner = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: owner + 1)
    Scratch().close()
    assert sorted(temporary.iterdir()) == before
    monkeypatch.undo()
    scratch._sweep.cache_clear()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    Scratch().close()
    gone = {path.name for path in before} - {path.name for path in temporary.iterdir()}
    assert gone == {"blockfold-theirs.scratch"}


def test_a_fork_leaves_its_parents_folder_alone(temporary: Path) -> None:
    code = (
        "import os\nfrom blockfold.ir.scratch import Scratch\nkept = Scratch()\n"
        "child = os.fork()\n"
        "if not child:\n    kept.close()\n    os._exit(0)\n"
        "os.waitpid(child, 0)\nassert kept.path.is_dir()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    assert not list(temporary.iterdir())


def test_without_locks_nothing_is_taken_for_dead(
    temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(_file: int) -> bool:
        raise scratch.NoLocks(38, "Function not implemented")

    monkeypatch.setattr(scratch, "_locked", none)
    left = temporary / "blockfold-left.scratch"
    left.mkdir()
    Scratch().close()
    assert [path.name for path in temporary.iterdir()] == [left.name]


def test_no_room_is_one_clear_line(monkeypatch: pytest.MonkeyPatch, temporary: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(temporary / "absent"))
    with pytest.raises(BadInput, match=r"cannot write temporary files to .*absent.*set TMPDIR"):
        Scratch()
