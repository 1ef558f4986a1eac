"""Costs: however many models are timed side by side, each is set against the original."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from blockfold.calibration.flops import flops
from blockfold.calibration.latency import Timing
from blockfold.calibration.runtime import Runtime
from blockfold.calibration.sources import open_data
from blockfold.calibration.splits import split
from blockfold.ir.onnx_file import OnnxModel, read
from blockfold.passes import costs
from blockfold.passes.layout import lay_out
from blockfold.passes.task import make_task
from blockfold.tests.networks import masked_encoder, samples
from blockfold.tools.opening import Settings, profile_of


@pytest.mark.parametrize("many", [1, 2, 8])
def test_groups_of_any_size_give_the_same_costs(many: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sessions that take as long as their FLOPs say, on a machine that slows down by the turn."""
    at_once: list[int] = []

    def turns(models: Sequence[OnnxModel], profile: Any, **_more: Any) -> list[Timing]:
        at_once.append(len(models))
        drift = len(at_once) - 1.0
        return [
            Timing(np.full(3, float(flops(model, Runtime(threads=1), profile.feeds)) + drift))
            for model in models
        ]

    monkeypatch.setattr(costs, "MOST_AT_ONCE", many)
    monkeypatch.setattr(costs, "Runner", lambda model, _runtime: model)
    monkeypatch.setattr(costs, "take_turns", turns)
    source = read(masked_encoder(3))
    with open_data(samples(masked_encoder(3), 20), source.inputs) as opened:
        task = make_task(source, opened, split(opened.samples), Runtime(threads=1), metric="cosine")
        layout, profile = lay_out(task), profile_of(task, Settings())
        timed = costs.measure_costs(task, layout, profile)
        counted = costs.count_costs(task, layout, profile)
    assert timed.unit_ms == pytest.approx(counted.unit_ms)
    assert len(timed.unit_ms) > 1
    for kind, forms in counted.map_ms.items():
        assert timed.map_ms[kind] == pytest.approx(forms)
    assert timed.model_ms == pytest.approx(counted.model_ms, abs=len(at_once))
    assert max(at_once) == min(many, sum(at_once) - len(at_once)) + 1
