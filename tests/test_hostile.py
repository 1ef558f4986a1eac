"""Files of somebody else's making: readers refuse them with our own errors, and do nothing else.

A short campaign for each reader; `python -m blockfold.tests.fuzz` runs long ones. What they found
is planted in test_hostile_models, test_hostile_data and test_hostile_plans.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from blockfold.ir.errors import BadInput
from blockfold.tests.fuzz.campaign import campaign, feed, input_of
from blockfold.tests.fuzz.targets import TARGETS, Target
from blockfold.tests.fuzz.watch import MEMORY_BYTES, Watch

RUNS = {"model": 250, "npz": 400, "npy": 400, "plan": 150, "tensors": 250, "statistics": 250}


@pytest.mark.parametrize("name", TARGETS)
def test_damaged_files_are_refused_or_read(name: str) -> None:
    report = campaign(name, RUNS[name])
    assert [found for found, _ in report.findings.values()] == []
    assert report.inputs == RUNS[name] == report.taken + report.refused
    assert report.refused > report.inputs / 3
    assert report.taken > 0


@pytest.mark.parametrize("name", TARGETS)
def test_the_seeds_themselves_are_taken(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for content in TARGETS[name].seeds():
        TARGETS[name].feed(content, folder)


def test_an_input_is_made_again_from_its_number() -> None:
    for target in TARGETS.values():
        seeds = target.seeds()
        made = [input_of(target, 0, number, seeds) for number in range(20)]
        assert made == [input_of(target, 0, number, seeds) for number in range(20)]
        assert len(set(made)) > 10


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> tuple[Watch, Path]:
    folder = tmp_path_factory.mktemp("watched") / "in"
    folder.mkdir()
    return Watch(folder), folder


def _take_nothing(_content: bytes, _folder: Path) -> None:
    pass


def _refuse(_content: bytes, _folder: Path) -> None:
    raise BadInput("no")


def _open_outside(_content: bytes, folder: Path) -> None:
    (folder.parent / "secret").write_text("")


def _import_what_it_says(_content: bytes, folder: Path) -> None:
    (folder / "blockfold_canary.py").write_text("")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        importlib.import_module("blockfold_canary")
    del sys.modules["blockfold_canary"]


def _unpickle(_content: bytes, folder: Path) -> None:
    np.save(folder / "o.npy", np.array([Path()]), allow_pickle=True)
    np.load(folder / "o.npy", allow_pickle=True)


def _take_memory(_content: bytes, _folder: Path) -> None:
    np.ones(2 * MEMORY_BYTES, np.uint8)


def _crash(content: bytes, _folder: Path) -> None:
    content[len(content)]


@pytest.mark.parametrize(
    ("planted", "found"),
    [
        (_open_outside, "Forbidden"),
        (_import_what_it_says, "import of blockfold_canary"),
        (_unpickle, "pickle.find_class"),
        (_crash, "IndexError"),
    ],
)
def test_planted_faults_are_found(
    planted: Callable[[bytes, Path], None], found: str, watched: tuple[Watch, Path]
) -> None:
    assert found in (feed(_target(planted), b"", *watched) or "")


def test_memory_taken_is_seen(watched: tuple[Watch, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """The peak is the process's and may stand higher already, from other tests: it is read anew."""
    peaks = iter([0, 2 * MEMORY_BYTES])
    monkeypatch.setattr("blockfold.tests.fuzz.watch._peak_bytes", lambda: next(peaks))
    assert "MiB taken" in (feed(_target(_take_memory), b"", *watched) or "")


def test_a_sound_reader_passes_the_watch(watched: tuple[Watch, Path]) -> None:
    assert feed(_target(_take_nothing), b"", *watched) is None
    assert feed(_target(_refuse), b"", *watched) == ""


def _target(reader: Callable[[bytes, Path], None]) -> Target:
    return replace(TARGETS["npy"], feed=reader)


def test_a_process_that_dies_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    report = campaign("npy", 2)
    assert report.inputs == 2
    ((said, _),) = report.findings.values()
    assert said.startswith("the process ended with 1")
