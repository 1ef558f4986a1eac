"""What the tests of the tools share: a tiny network with a planted block, data, a command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from blockfold.calibration import latency
from blockfold.tests.networks import FLOAT, LOGITS, TOKENS, Net, labelled
from blockfold.tools import cli

WIDTH = 6
BLOCKS = 4
PLANTED = 2
"""The block that is exactly affine: its ReLU never cuts anything off."""

SAMPLES = 400
DROP = "5%"
"""What the tests allow: certain on half of SAMPLES where nothing was lost."""

CAREFUL = ("--provider", "cpu", "--threads", "1")
VERBS = ("inspect", "survey", "optimize", "apply", "verify", "bench", "rank", "demo")


def network(planted: int | None = PLANTED, *, seed: int = 0) -> onnx.ModelProto:
    """x (batch, TOKENS, WIDTH), four blocks x + relu(x U + a) V + b, their mean, logits.

    Unlike the affine blocks of tests.networks the planted one is made as the others are, so that
    replacing it saves weights.
    """
    net = Net(seed, gain=1.2)
    h, hidden = "x", 2 * WIDTH
    for i in range(BLOCKS):
        net.scope = f"/blocks.{i}"
        high = np.float32(60 if i == planted else 0)
        shift = net.constant(net.rng.standard_normal(hidden).astype(np.float32) * 0.3 + high)
        wide = net.node("Add", net.node("MatMul", h, net.weight(WIDTH, hidden)), shift)
        down = net.weight(hidden, WIDTH)
        back = -high * numpy_helper.to_array(net.initializers[-1]).sum(0)
        branch = net.node("MatMul", net.node("Relu", wide), down)
        h = net.node("Add", h, net.node("Add", branch, net.constant(back)), out=f"h{i}")
    net.head(h, WIDTH)
    return net.model({"x": (FLOAT, ("batch", TOKENS, WIDTH))}, LOGITS)


def margin(outputs: Any, labels: Any) -> Any:
    """A metric of the user's own: how far the label's logit is above the mean."""
    return outputs[np.arange(len(labels)), labels] - outputs.mean(-1)


def unsure(outputs: Any, _labels: Any) -> Any:
    """A metric that cannot make up its mind."""
    return np.full(len(outputs), np.nan)


@dataclass(frozen=True)
class Files:
    """A folder with model.onnx and samples.npz."""

    folder: Path
    model: Path
    data: Path


def save(path: Path, arrays: Mapping[str, Any]) -> Path:
    """An .npz of the arrays."""
    np.savez(path, **arrays)
    return path


def write_files(folder: Path, model: onnx.ModelProto | None = None) -> Files:
    proto = network() if model is None else model
    files = Files(folder, folder / "model.onnx", folder / "samples.npz")
    files.model.write_bytes(proto.SerializeToString())
    save(files.data, labelled(proto, SAMPLES))
    return files


@dataclass(frozen=True)
class Ran:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> dict[str, Any]:
        """The one JSON document on stdout."""
        found = json.loads(self.out, parse_constant=_refuse)
        assert isinstance(found, dict)
        return found


def _refuse(word: str) -> None:
    raise AssertionError(f"{word} is no JSON")


class CommandLine:
    """Runs `blockfold ARGUMENTS` in this process, on one thread of the CPU unless they say else.

    What native code writes to stdout and stderr is seen too.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch, self._capfd = monkeypatch, capfd

    def __call__(self, *arguments: str | Path) -> Ran:
        self._capfd.readouterr()
        words = list(map(str, arguments))
        if words and words[0] in VERBS:
            words[1:1] = CAREFUL
        self._monkeypatch.setattr(sys, "argv", ["blockfold", *words])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        out, err = self._capfd.readouterr()
        assert isinstance(stop.value.code, int)
        return Ran(stop.value.code, out, err)


def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time sessions over a few runs only."""
    for timing in (latency.take_turns, latency.take_turns_alone):
        haste = timing.__kwdefaults__
        assert haste is not None
        monkeypatch.setitem(haste, "rounds", 3)
        monkeypatch.setitem(haste, "round_seconds", 0.002)


def subprocess_run(
    *arguments: str | Path, cwd: Path, environment: Mapping[str, str] | None = None
) -> Ran:
    """`python -m blockfold ARGUMENTS`, a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "blockfold", *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, **(environment or {})},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return Ran(done.returncode, done.stdout, done.stderr)


def judged(verdict: Mapping[str, Any]) -> dict[str, Any]:
    """A verdict without the chance it was given before, which only a search can tell."""
    return {name: value for name, value in verdict.items() if not name.startswith("chance")}


def contents(folder: Path) -> dict[str, bytes | None]:
    """Every file below a folder, hidden ones too, with its bytes; folders with None."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


@contextmanager
def untouched(*folders: Path) -> Iterator[None]:
    """Asserts that what is done meanwhile leaves these folders, and the temporary one, as is."""
    watched = (*folders, Path(tempfile.gettempdir()))
    before = [contents(folder) for folder in watched]
    yield
    for folder, was in zip(watched, before, strict=True):
        now = contents(folder)
        assert now.keys() == was.keys(), f"{folder}: {now.keys() ^ was.keys()} came or went"
        changed = [name for name in was if now[name] != was[name]]
        assert not changed, f"{folder}: {changed} changed"
