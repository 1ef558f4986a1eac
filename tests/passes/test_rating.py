"""Ratings: every metric finds a block that does nothing, and shortlists what it rates lowest."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnx
import pytest

import blockfold
from blockfold.calibration.runtime import Runtime
from blockfold.calibration.sources import open_data
from blockfold.calibration.splits import split
from blockfold.ir.errors import BadInput
from blockfold.ir.onnx_file import read
from blockfold.passes import score as scoring
from blockfold.passes.budget import Budget
from blockfold.passes.costs import CostModel, Costs
from blockfold.passes.layout import lay_out
from blockfold.passes.rating import METRICS, Metric, rating
from blockfold.passes.score import Redundancy, measure
from blockfold.passes.search import Search
from blockfold.passes.task import make_task
from blockfold.passes.trial import Trials
from blockfold.tests.networks import (
    FLOAT,
    LOGITS,
    TOKENS,
    Arrays,
    Net,
    labelled,
    residual_cnn,
    residual_mlp,
    samples,
)

QUICK: dict[str, Any] = {"threads": 1, "provider": "cpu"}
IDLE, BLOCKS = 2, 4


def idle(d: int = 8) -> onnx.ModelProto:
    """Of four blocks the third multiplies by zero what a rectifier that is always on gives it."""
    net = Net()
    h = "x"
    for i in range(BLOCKS):
        net.scope = f"/blocks.{i}"
        z = net.linear(net.norm(h, d), d, 2 * d)
        if i == IDLE:
            z = net.node("Add", z, net.constant(np.full(2 * d, 100.0, np.float32)))
        branch = net.linear(net.node("Relu", z), 2 * d, d)
        if i == IDLE:
            branch = net.node("Mul", branch, net.constant(np.zeros(1, np.float32)))
        h = net.node("Add", h, branch, out=f"h{i}")
    net.head(h, d)
    return net.model({"x": (FLOAT, ("batch", TOKENS, d))}, LOGITS)


@contextmanager
def searching(model: onnx.ModelProto, data: Arrays, metric: Metric) -> Iterator[Search]:
    source = read(model)
    with open_data(data, source.inputs) as opened:
        task = make_task(source, opened, split(opened.samples), Runtime(threads=1))
        layout = lay_out(task)
        costs = CostModel(layout.anatomies, Costs(1.0, {}, {}))
        with Trials(task, layout, costs, None) as trials:
            yield Search(trials, Budget.of(remove=1), rank_by=metric)


def surveyed(model: onnx.ModelProto, data: Arrays) -> tuple[Redundancy, ...]:
    survey = blockfold.inspect(model, data, **QUICK).survey
    assert survey is not None
    return survey.spans


@pytest.fixture(scope="module")
def spans() -> tuple[Redundancy, ...]:
    return surveyed(idle(), labelled(idle(), 240))


@pytest.mark.parametrize("metric", METRICS)
def test_a_block_that_does_nothing_is_rated_lowest(
    metric: Metric, spans: tuple[Redundancy, ...]
) -> None:
    rated = {one.span.name: rating(metric, one) for one in spans}
    known = {name: value for name, value in rated.items() if value is not None}
    assert len(known) == BLOCKS
    lowest = min(known, key=known.__getitem__)
    if metric == "modularity":  # another may even sort the classes worse than before
        assert known[f"blocks.{IDLE}"] == pytest.approx(0.0, abs=1e-9)
    else:
        assert lowest == f"blocks.{IDLE}"
    assert len({round(value, 6) for value in known.values()}) > 1


def test_too_few_samples_leave_metrics_of_batches_untold() -> None:
    few = surveyed(residual_mlp(), samples(residual_mlp(), 8))
    told = {metric for metric in METRICS if rating(metric, few[0]) is not None}
    assert set(METRICS) - told == {"cka", "sliced-w2", "modularity", "entropy"}


def test_spans_measured_in_parts_are_those_measured_at_once(
    monkeypatch: pytest.MonkeyPatch, spans: tuple[Redundancy, ...]
) -> None:
    monkeypatch.setattr(scoring, "MOST_NUMBERS", 2 * 4 * 8**2)
    assert [len(part) for part in scoring._parts([one.span for one in spans])] == [2, 2]
    apart = surveyed(idle(), labelled(idle(), 240))
    for one, other in zip(spans, apart, strict=True):
        for metric in METRICS:
            assert rating(metric, one) == rating(metric, other)


def test_no_spans_are_no_work() -> None:
    with searching(residual_mlp(2), samples(residual_mlp(2), 80), "cka") as search:
        assert measure(search.task, search.trials.layout, [], "nothing") == []


def test_the_search_considers_what_the_metric_rates_lowest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("blockfold.passes.probe.MEASURED_PER_UNIT", 1)
    with searching(idle(), labelled(idle(), 240), "block-influence") as search:
        trials = search.run()
        units = len(search.trials.layout.anatomies[0].units)
    assert 0 < len(search.options) <= units
    assert all(option.measured for option in search.options)
    assert f"blocks.{IDLE}" in {option.wish.span.name for option in search.options}
    best = min(trials, key=lambda trial: trial.damage)
    assert [wish.span.name for wish in best.recipe.wishes] == [f"blocks.{IDLE}"]


def test_a_metric_shortlists_spans_of_the_main_job() -> None:
    model = residual_mlp(4, affine=(2,))
    result = blockfold.optimize(model, labelled(model, 320), remove=1, rank_by="nbl", **QUICK)
    assert result.plan.rank_by == "nbl"
    assert [decision.name for decision in result.plan.decisions] == ["blocks.2"]


def test_feature_maps_that_shrink_are_not_rated_but_no_obstacle() -> None:
    model = residual_cnn((6, 8), downsampling=True)
    with searching(model, labelled(model, 160), "cka") as search:
        search.run()
    assert search.options
    assert not any(option.wish.span.strides for option in search.options)


def test_a_metric_that_is_told_of_no_span_is_refused() -> None:
    model = residual_mlp()
    data = samples(model, 120)
    with pytest.raises(BadInput, match=r"--rank-by modularity: .* also labels"):
        blockfold.optimize(model, data, remove=1, metric="nmse", rank_by="modularity", **QUICK)


def test_wrong_metrics_are_refused() -> None:
    with pytest.raises(BadInput, match="one of block-redundancy, block-influence"):
        blockfold.optimize(residual_mlp(2), None, rank_by="magic")  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="--method rba has a rule of its own"):
        blockfold.optimize(residual_mlp(2), None, rank_by="cka", method="rba")
