"""Fixtures of the tests of the tools; what they are made of is in harness.py."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from blockfold.tests.tools.harness import CommandLine, Files, hurry, write_files
from blockfold.tests.tools.place import Place
from blockfold.tools import api


@pytest.fixture(autouse=True)
def temporary(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """Temporary files go to a folder of their own, which must be empty in the end."""
    folder = tmp_path_factory.mktemp("temporary")
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setenv("TMPDIR", str(folder))
    yield folder
    # torch makes itself a folder of caches where it exports
    assert not [file for file in folder.iterdir() if not file.name.startswith("torchinductor")]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> CommandLine:
    hurry(monkeypatch)
    monkeypatch.setenv("COLUMNS", "80")
    return CommandLine(monkeypatch, capfd)


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """The tiny network and its data. Not to be written to."""
    return write_files(tmp_path_factory.mktemp("given"))


@pytest.fixture(scope="session")
def small(files: Files, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """small.onnx, made of the tiny network, beside its plan. Not to be written to."""
    target = tmp_path_factory.mktemp("made") / "small.onnx"
    with pytest.MonkeyPatch.context() as patch:
        hurry(patch)
        api.optimize_to(target, files.model, files.data, max_drop=0.05, threads=1, provider="cpu")
    return target


@pytest.fixture
def place(tmp_path: Path, files: Files, small: Path) -> Place:
    return Place(tmp_path, files.model, files.data, small)


@pytest.fixture
def here(tmp_path: Path, files: Files, small: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, holding model.onnx, samples.npz, and small.onnx with its plan."""
    for path in (files.model, files.data, *small.parent.iterdir()):
        shutil.copy(path, tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path
