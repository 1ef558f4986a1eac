"""Optimization after optimization in one process: nothing is held on to."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import pytest

from blockfold.tests.tools.harness import Files, hurry
from blockfold.tools.benchmarks.soak import Held, soak


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_files_and_handles_do_not_grow(
    files: Files, tmp_path: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hurry(monkeypatch)
    first, *rest = soak(str(files.model), str(files.data), 5, tmp_path, 0.05)
    # model, plan, tensors and report
    assert {(held.handles, held.files) for held in rest} == {(first.handles, 4)}
    assert not list(temporary.iterdir())


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_what_grows_is_seen(tmp_path: Path) -> None:
    before = Held.now(tmp_path)
    with tempfile.TemporaryFile(dir=tmp_path), (tmp_path / "left").open("wb"):
        now = Held.now(tmp_path)
    assert (now.handles - before.handles, now.files - before.files) == (2, 1)
    kept = bytearray(64 * 2**20)
    assert Held.now(tmp_path).memory_bytes - before.memory_bytes > len(kept) / 2
