"""Architectures of `transformers` as modules: both front ends make the same optimized model."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch

import blockfold
from blockfold.calibration.runtime import Runner, Runtime
from blockfold.ir.onnx_file import OnnxModel
from blockfold.tests.tools.harness import hurry
from blockfold.tools.modules import ModuleResult, captured
from blockfold.tools.support.zoo import ZOO

ROWS = 160
NAMES = ("BERT", "ViT", "GPT-2", "Llama", "ConvNeXt", "ResNet")
SUBJECTS = {subject.name: subject for subject in ZOO}


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_both_front_ends_agree(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    hurry(monkeypatch)
    subject = SUBJECTS[name]
    data = {key: np.asarray(rows) for key, rows in subject.inputs(ROWS, 9).items()}
    module = subject.make()
    result = blockfold.optimize(module, data, remove=1.5, metric="nmse", threads=1, provider="cpu")
    assert isinstance(result, ModuleResult)
    held = {key: rows[-20:] for key, rows in data.items()}
    theirs = _first(result.onnx, held)
    with torch.no_grad():
        made: Any = result.model(**{key: torch.from_numpy(rows) for key, rows in held.items()})
    ours = np.asarray(made if isinstance(made, torch.Tensor) else made[0])
    size = np.abs(theirs).max()
    assert np.abs(ours - theirs).max() < 1e-4 * size
    again = captured(result.model, None, result.inputs, result.dynamic_shapes).onnx
    assert np.abs(_first(again, held) - theirs).max() < 1e-4 * size
    assert _histogram(again) == _histogram(result.onnx)


def _first(model: OnnxModel, feeds: dict[str, np.ndarray]) -> np.ndarray:
    return next(iter(Runner(model, Runtime(threads=1))(feeds).values()))


def _histogram(model: OnnxModel) -> Counter[str]:
    return Counter(node.op for node in model.graph.nodes)
