"""A place to work in, and what every refusal must look like there."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from blockfold.tests.networks import Arrays
from blockfold.tests.tools.harness import DROP, SAMPLES, CommandLine, Ran, save, untouched

NOT_MET, BAD_INPUT, UNSUPPORTED, BUG, INTERRUPTED = 1, 2, 3, 4, 130

Words = list[str | Path]
Case = Callable[["Place"], Words]
"""Makes a command that must be refused."""


@dataclass(frozen=True)
class Place:
    """A folder to work in, with a sound model and sound data elsewhere."""

    folder: Path
    model: Path
    data: Path
    small: Path

    @property
    def target(self) -> Path:
        return self.folder / "out.onnx"

    def file(self, name: str, content: bytes) -> Path:
        path = self.folder / name
        path.write_bytes(content)
        return path

    def onnx(self, proto: onnx.ModelProto) -> Path:
        return self.file("other.onnx", proto.SerializeToString())

    def npz(self, **arrays: Any) -> Path:
        return save(self.folder / "given.npz", arrays)

    def arrays(self, count: int = SAMPLES) -> Arrays:
        with np.load(self.data) as sound:
            return {name: sound[name][:count].copy() for name in sound.files}

    def optimize(
        self, *more: str | Path, model: Path | None = None, data: Path | None = None
    ) -> Words:
        """An optimization that would succeed."""
        words: Words = ["optimize", model or self.model, "--data", data or self.data]
        return [*words, "-o", self.target, "--max-drop", DROP, *more]

    def plan(self, change: Callable[[dict[str, Any]], object] | None = None) -> Path:
        """A copy of the plan, with its tensors, changed if so wished."""
        content = json.loads(self.small.with_suffix(".plan.json").read_text())
        if change is not None:
            change(content)
        tensors = self.small.with_suffix(".plan.safetensors").read_bytes()
        self.file("p.plan.safetensors", tensors)
        return self.file("p.plan.json", json.dumps(content).encode())

    def apply(self, plan: Path, *more: str | Path, model: Path | None = None) -> Words:
        return ["apply", model or self.model, plan, "-o", self.target, *more]


def assert_one_line(ran: Ran, code: int, words: Sequence[str]) -> str:
    """One line on stderr that begins as it should and holds the words; the exit code."""
    assert ran.code == code, ran
    (line,) = ran.err.splitlines()
    assert line.startswith("blockfold: ")
    missing = [word for word in words if word.lower() not in line.lower()]
    assert not missing, f"{missing} not in: {line}"
    assert "Traceback" not in line
    assert len(line) < 900
    return line.removeprefix("blockfold: ")


def assert_refused(
    make: Case, code: int, words: Sequence[str], place: Place, command: CommandLine
) -> None:
    """The command is refused so, for people and for programs, and no file is touched."""
    arguments = make(place)
    with untouched(place.folder, place.model.parent, place.small.parent):
        ran = command(*arguments)
        line = assert_one_line(ran, code, words)
        assert ran.out == ""
        # and once more for a program
        ran = command(*arguments, "--json")
        if code == NOT_MET:  # what was tried is told, and nothing else is there
            place.target.with_suffix(".report.html").unlink(missing_ok=True)
    assert_one_line(ran, code, words)
    assert ran.document.keys() == {"error", "exit_code"}
    assert ran.document["exit_code"] == code
    if code == BAD_INPUT:  # other lines hold measured figures
        assert ran.document["error"] == line


class Cases:
    """Commands that must end with a code and a line holding some words: register, then test all.

    It is a decorator for functions that give the command; `test()` is what pytest collects.
    """

    def __init__(self) -> None:
        self._all: list[Any] = []

    def __call__(self, code: int, *words: str, name: str = "") -> Callable[[Case], Case]:
        def register(make: Case) -> Case:
            self._all.append(pytest.param(make, code, words, id=name or make.__name__))
            return make

        return register

    def test(self) -> Callable[..., None]:
        @pytest.mark.parametrize(("make", "code", "words"), self._all)
        def one_clear_line(
            make: Case, code: int, words: Sequence[str], place: Place, command: CommandLine
        ) -> None:
            assert_refused(make, code, words, place, command)

        return one_clear_line
