"""`--drop-cache` on the command line, on a decoder with a planted block."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

import blockfold
from blockfold.ir.errors import BadInput
from blockfold.passes.layout import CACHES_MAY_GO
from blockfold.tests.decoders import cached_decoder, steps_of
from blockfold.tests.tools.harness import CommandLine, save

DATA = ("--data", "data", "--output", "logits", "--metric", "kl")


@pytest.fixture
def decoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the current folder as model.onnx, with steps of a generation in data/."""
    model = cached_decoder()
    onnx.save(model, tmp_path / "model.onnx")
    (tmp_path / "data").mkdir()
    for number, step in enumerate(steps_of(model, 60)):
        save(tmp_path / "data" / f"{number}.npz", step)
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("decoder")
def test_a_cache_goes_with_its_block(command: CommandLine) -> None:
    seen = command("inspect", "model.onnx")
    assert seen.code == 0
    assert CACHES_MAY_GO in " ".join(seen.out.split())
    assert CACHES_MAY_GO not in " ".join(
        command("inspect", "model.onnx", "--drop-cache").out.split()
    )
    ran = command("optimize", "model.onnx", "--drop-cache", "--remove", "1", "-o", "s.onnx", *DATA)
    assert (ran.code, ran.err) == (0, "")
    said = " ".join(ran.out.split())
    assert "caches dropped: 2 inputs, 2 outputs" in said
    assert "less depth harms generative reasoning most" in said
    verified = command("verify", "model.onnx", "s.onnx", *DATA)
    assert verified.code == 0
    assert "on the samples held back" in " ".join(verified.out.split())
    assert command("bench", "model.onnx", "s.onnx", *DATA[:2]).code == 0


def test_a_module_keeps_its_outputs() -> None:
    torch = pytest.importorskip("torch")
    with pytest.raises(BadInput, match="drop_cache: a captured module keeps its inputs"):
        blockfold.optimize(torch.nn.Linear(2, 2), {"input": [[0.0, 1.0]]}, drop_cache=True)
