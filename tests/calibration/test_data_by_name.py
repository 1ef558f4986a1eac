"""Calibration data named by module:attribute."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from blockfold.calibration.sources import open_data
from blockfold.tests.feeding import (
    INPUTS,
    Arrays,
    refusal,
)

pytestmark = pytest.mark.usefixtures("spools")


MODULE = """
import numpy as np
from onnxruntime.quantization import CalibrationDataReader

ITEMS = [{"ids": np.full((2, 4), at), "x": np.ones((2, 3))} for at in range(3)]

def generate():
    import beside_it
    yield from ITEMS

class Reader(CalibrationDataReader):
    def __init__(self):
        self.items = iter(ITEMS)

    def get_next(self):
        return next(self.items, None)

reader = Reader()

class Box:
    items = ITEMS

def broken():
    yield ITEMS[0]
    raise ValueError("lost\\nand found")

def fails():
    raise RuntimeError("no data today")

NUMBER = 3
TEXT = "a.npz"
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    folder = tmp_path / "here"
    folder.mkdir()
    name = "calib_of_test_data"
    (folder / f"{name}.py").write_text(MODULE)
    (folder / "beside_it.py").touch()
    (folder / "calib_broken.py").write_text("import nothing_of_this_name\n")
    (folder / "calib_exits.py").write_text("raise SystemExit(0)\n")
    monkeypatch.chdir(folder)
    yield name
    for stale in (name, "beside_it", "calib_broken", "calib_exits"):
        sys.modules.pop(stale, None)


@pytest.mark.parametrize("attribute", ["ITEMS", "generate", "Reader", "reader", "Box.items"])
def test_text_names_an_iterable(module: str, attribute: str) -> None:
    with open_data(f"{module}:{attribute}", INPUTS) as data:
        ids = [batch.feeds["ids"][0, 0] for batch in data.batches(np.arange(6), 2)]
    assert ids == [0, 1, 2]
    assert str(Path.cwd()) not in sys.path


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("{}:broken", "item 1|ValueError: lost and found"),
        ("{}:fails", "calling it failed|RuntimeError: no data today"),
        ("{}:genrate", "no 'genrate'|is it 'generate'"),
        ("{}:NUMBER", "is a int|give a path"),
        ("{}:TEXT", "is a str|give a path"),
        ("no_such_module:data", "importing module 'no_such_module' failed"),
        ("calib_broken:data", "importing module 'calib_broken' failed|nothing_of_this_name"),
        ("calib_exits:data", "importing module 'calib_exits' failed|SystemExit"),
    ],
)
def test_text_that_gives_nothing(module: str, spec: str, words: str) -> None:
    said = refusal(spec.format(module))
    assert spec.format(module) in said
    for word in words.split("|"):
        assert word in said
    assert str(Path.cwd()) not in sys.path


def test_the_current_folder_is_importable_only_where_text_was_given(module: str) -> None:
    def generate() -> Iterator[Arrays]:
        import beside_it  # type: ignore[import-not-found]

        yield from beside_it.ITEMS

    assert "No module named 'beside_it'" in refusal(generate)
    assert "No module named" not in refusal(f"{module}:NUMBER")
