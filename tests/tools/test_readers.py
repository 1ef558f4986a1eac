"""Readers made for onnxruntime's own quantization serve as data as they are."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import blockfold
from blockfold.tests.networks import Arrays
from blockfold.tests.tools.harness import SAMPLES, CommandLine, Files
from blockfold.tests.tools.place import BAD_INPUT, Words, assert_one_line

QUICK: dict[str, Any] = {"provider": "cpu", "threads": 1}
READER = '''
"""A reader as onnxruntime's documentation has it."""

import numpy as np
from onnxruntime.quantization import CalibrationDataReader


class Reader(CalibrationDataReader):
    def __init__(self, path="samples.npz", labelled=True, size=64):
        arrays = np.load(path)
        names = [name for name in arrays.files if labelled or name != "labels"]
        count = len(arrays[names[0]])
        self.batches = [
            {name: arrays[name][at : at + size] for name in names} for at in range(0, count, size)
        ]
        self.rewind()

    def get_next(self):
        return next(self.left, None)

    def rewind(self):
        self.left = iter(self.batches)


ready = Reader()
bare = Reader(labelled=False)


def spent():
    reader = Reader()
    while reader.get_next():
        pass
    return reader
'''


@pytest.fixture
def readers(files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A module with readers, in the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "samples.npz").write_bytes(files.data.read_bytes())
    (tmp_path / "blockfold_readers.py").write_text(READER)
    importlib.invalidate_caches()
    yield importlib.import_module("blockfold_readers")
    del sys.modules["blockfold_readers"]


@pytest.mark.usefixtures("command")
def test_a_reader_is_the_data_it_reads(readers: Any, files: Files) -> None:
    from onnxruntime.quantization import CalibrationDataReader

    assert isinstance(readers.ready, CalibrationDataReader)
    found = blockfold.optimize(files.model, readers.ready, max_drop=0.05, **QUICK)
    known = blockfold.optimize(files.model, files.data, max_drop=0.05, **QUICK)
    assert found.verdict.metric == "accuracy"  # by its labels
    assert found.plan.data == known.plan.data
    assert found.model.SerializeToString() == known.model.SerializeToString()


@pytest.mark.usefixtures("command")
def test_without_labels_outputs_are_compared(readers: Any, files: Files, arrays: Arrays) -> None:
    found = blockfold.optimize(files.model, readers.bare, max_drop=0.05, **QUICK)
    assert found.verdict.metric == "agreement"
    bare = {name: array for name, array in arrays.items() if name != "labels"}
    known = blockfold.optimize(files.model, bare, max_drop=0.05, **QUICK)
    assert found.plan.data == known.plan.data


@pytest.mark.usefixtures("command")
def test_a_reader_is_spent_once_and_again_after_rewind(readers: Any, files: Files) -> None:
    assert blockfold.inspect(files.model, readers.ready, **QUICK).survey is not None
    with pytest.raises(blockfold.BadInput, match=r"no samples; .* rewind"):
        blockfold.inspect(files.model, readers.ready, **QUICK)
    readers.ready.rewind()
    assert blockfold.inspect(files.model, readers.ready, **QUICK).survey is not None


@pytest.mark.usefixtures("readers")
def test_a_reader_on_the_command_line(files: Files, command: CommandLine) -> None:
    words: Words = ["verify", files.model, files.model, "--data"]
    for name, metric in {"ready": "accuracy", "Reader": "accuracy", "bare": "agreement"}.items():
        found = command(*words, f"blockfold_readers:{name}", "--json").document["verdict"]
        assert (found["samples"], found["metric"]) == (SAMPLES, metric)
    ran = command(*words, "blockfold_readers:spent")
    assert_one_line(ran, BAD_INPUT, ["no samples", "rewind"])


@pytest.fixture
def arrays(files: Files) -> Arrays:
    with np.load(files.data) as given:
        return {name: given[name] for name in given.files}
