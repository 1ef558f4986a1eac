"""A span by itself: what it takes there is what it takes inside the whole model."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnx
import pytest

from blockfold.calibration import latency
from blockfold.calibration.flops import flops
from blockfold.calibration.latency import Profile
from blockfold.calibration.runtime import Runner, Runtime
from blockfold.calibration.sources import open_data
from blockfold.calibration.splits import split
from blockfold.ir.onnx_file import OnnxModel, read
from blockfold.passes import costs, section
from blockfold.passes.costs import Costs, blank, count_costs, measure_costs, weigh
from blockfold.passes.layout import Layout, lay_out
from blockfold.passes.pipeline import build
from blockfold.passes.section import sections_of
from blockfold.passes.surrogates import Wish
from blockfold.passes.task import Task, make_task
from blockfold.tests.adversaries import encoder_decoder, half_precision
from blockfold.tests.networks import (
    fixed_batch,
    masked_encoder,
    residual_cnn,
    residual_mlp,
    samples,
    two_streams,
)
from blockfold.tools import opening

NETWORKS: dict[str, Callable[[], onnx.ModelProto]] = {
    "mlp": lambda: residual_mlp(3, affine=(1,)),
    "fixed batch": lambda: fixed_batch(residual_mlp(2), 4),
    "masked": masked_encoder,
    "feature maps": residual_cnn,
    "two streams": two_streams,
    "encoder and decoder": encoder_decoder,
    "half precision": half_precision,
}


@contextmanager
def opened(model: onnx.ModelProto) -> Iterator[tuple[Task, Layout, Profile]]:
    source = read(model)
    with open_data(samples(model, 40), source.inputs) as data:
        task = make_task(source, data, split(40), Runtime(threads=1))
        yield task, lay_out(task), opening.profile_of(task, opening.Settings())


def offered(layout: Layout) -> list[Wish]:
    """What is measured of a model: units of every kind with every surrogate that is timed."""
    asked: list[Wish] = []

    def savings(changes: Sequence[Wish]) -> tuple[float, Sequence[float]]:
        asked.extend(changes)
        return 1.0, [0.0 for _ in changes]

    weigh(layout, savings)
    return asked


@pytest.mark.parametrize("name", NETWORKS)
def test_a_section_gives_what_the_whole_gives(name: str) -> None:
    with opened(NETWORKS[name]()) as (task, layout, profile):
        wishes = offered(layout)
        exits = [wish.span.exit for wish in wishes]
        whole = Runner(task.plain, task.runtime, list(dict.fromkeys(exits)))(profile.feeds)
        for wish, cut in zip(wishes, sections_of(task, wishes, profile.feeds), strict=True):
            exit_ = wish.span.exit
            assert wish.span.entry in cut.model.graph.inputs
            assert cut.model.graph.outputs == (exit_,)
            made = Runner(cut.model, task.runtime)(cut.feeds)[exit_]
            np.testing.assert_allclose(made, whole[exit_], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", NETWORKS)
def test_units_weigh_alike_in_sections_and_in_the_whole(name: str) -> None:
    """By FLOPs, which no noise disturbs."""
    with opened(NETWORKS[name]()) as (task, layout, profile):

        def in_sections(changes: Sequence[Wish]) -> tuple[float, Sequence[float]]:
            saved = []
            for wish, cut in zip(changes, sections_of(task, changes, profile.feeds), strict=True):
                there = Wish(cut.span, wish.form)
                changed = build(cut.model, [blank(cut.model, there)])
                before, after = (
                    flops(model, task.runtime, cut.feeds) for model in (cut.model, changed)
                )
                saved.append(float(before - after))
            return float(flops(task.plain, task.runtime, profile.feeds)), saved

        whole = count_costs(task, layout, profile)
        assert weigh(layout, in_sections) == whole
        assert any(whole.unit_ms.values())


def test_of_large_models_no_two_are_open_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Side by side they are two; a section and its change are small."""
    found: list[Costs] = []
    most: list[float] = []
    for room in (latency.SIDE_BY_SIDE_BYTES, 1):
        monkeypatch.setattr(latency, "SIDE_BY_SIDE_BYTES", room)
        with opened(residual_mlp(4)) as (task, layout, profile), counted(monkeypatch) as peak:
            found.append(measure_costs(task, layout, profile))
            timings = latency.time_models([task.model, task.model], task.runtime, profile)
            assert all(timing.median_ms > 0 for timing in timings)
            most.append(max(peak) / task.model.size_bytes)
    assert [set(costs.unit_ms) for costs in found] == [set(found[0].unit_ms)] * 2
    assert most[0] > 1.7
    assert most[1] < 1.1


@contextmanager
def counted(patch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """What the models of all sessions weigh together, after every opening."""
    held, peak = weakref.WeakKeyDictionary[Runner, int](), [0]

    class Counted(Runner):
        def __init__(self, model: OnnxModel, *given: Any, **named: Any) -> None:
            super().__init__(model, *given, **named)
            held[self] = model.size_bytes
            peak.append(sum(held.values()))

    with patch.context() as here:
        for module in (costs, latency, section):
            here.setattr(module, "Runner", Counted)
        yield peak
