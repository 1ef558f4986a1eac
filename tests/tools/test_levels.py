"""How onnxruntime runs a model decides nothing: levels of optimisation, threads, batches.

There is no option for the level, so the sessions' own is set behind our back.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from safetensors.numpy import load

from blockfold.tests.tools.harness import Files
from blockfold.tools import api, comparing
from blockfold.tools.results import Result

NONE = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
ALL = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
SESSION = onnxruntime.SessionOptions

WAYS: dict[str, tuple[Any, dict[str, Any]]] = {
    "no optimisation": (NONE, {"threads": 1}),
    "all optimisation": (ALL, {"threads": 1}),
    "two threads": (ALL, {"threads": 2}),
    "batches of 7": (ALL, {"threads": 1, "batch": 7}),
}


def at_level(level: Any) -> Callable[[], Any]:
    def made() -> Any:
        options = SESSION()
        options.graph_optimization_level = level
        return options

    return made


@pytest.mark.parametrize("way", WAYS)
def test_the_verdict_is_the_same(
    way: str, files: Files, small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is counted is equal; float32 logits differ by rounding, and flip no class here."""
    plain = comparing.verify(files.model, small, files.data, provider="cpu", threads=1).verdict
    level, settings = WAYS[way]
    monkeypatch.setattr(onnxruntime, "SessionOptions", at_level(level))
    found = comparing.verify(files.model, small, files.data, provider="cpu", **settings).verdict
    assert found == plain


@pytest.fixture(scope="module")
def decided(files: Files, small: Path) -> Result:
    return decide(files, small, threads=1)


def decide(files: Files, small: Path, **settings: Any) -> Result:
    """The costs are given, so that only the data decides."""
    costs = small.with_suffix(".plan.json")
    return api.optimize(files.model, files.data, remove=1, costs=costs, provider="cpu", **settings)


@pytest.mark.parametrize("way", WAYS)
def test_the_decisions_are_the_same(
    way: str, decided: Result, files: Files, small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Maps to rounding of float32 activations."""
    level, settings = WAYS[way]
    monkeypatch.setattr(onnxruntime, "SessionOptions", at_level(level))
    found = decide(files, small, **settings)
    assert [(d.name, d.surrogate) for d in found.plan.decisions] == [
        (d.name, d.surrogate) for d in decided.plan.decisions
    ]
    maps, wanted = (load(result.optimized.tensors) for result in (found, decided))
    assert maps.keys() == wanted.keys()
    for name, tensor in maps.items():
        scale = np.abs(wanted[name]).max()
        np.testing.assert_allclose(tensor, wanted[name], rtol=0, atol=1e-3 * scale)
