"""Probing: what a surrogate alone would do, found without building a model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import onnx
import pytest

from blockfold.calibration.runtime import Runtime
from blockfold.calibration.sources import open_data
from blockfold.calibration.splits import split
from blockfold.ir.onnx_file import read
from blockfold.passes import probe as probing
from blockfold.passes.costs import CostModel, Costs
from blockfold.passes.layout import lay_out
from blockfold.passes.probe import Option, Probe
from blockfold.passes.recipe import Healing, Recipe
from blockfold.passes.task import make_task, thinned
from blockfold.passes.trial import Trials
from blockfold.tests.networks import (
    Arrays,
    labelled,
    masked_encoder,
    residual_cnn,
    residual_mlp,
    samples,
)

PLANTED = 2


@contextmanager
def probed(
    model: onnx.ModelProto, data: Arrays, metric: str | None = None
) -> Iterator[tuple[Trials, tuple[Option, ...]]]:
    source = read(model)
    with open_data(data, source.inputs) as opened:
        splits = split(opened.samples)
        task = make_task(source, opened, splits, Runtime(threads=1), metric=metric)
        layout = lay_out(task)
        costs = CostModel(layout.anatomies, Costs(1.0, {}, {}))
        with Trials(task, layout, costs, None) as trials:
            yield trials, Probe(layout, trials.walk, trials.forms, costs, 1.0).options()


def test_a_planted_block_does_no_damage_as_a_map() -> None:
    model = residual_mlp(4, affine=(PLANTED,))
    with probed(model, labelled(model, 240)) as (_, options):
        found = {(o.wish.span.name, o.wish.form): o for o in options}
        planted = found[f"blocks.{PLANTED}", "affine"]
        dropped = found[f"blocks.{PLANTED}", "identity"]
    assert planted.error < 1e-6 < 1e-3 < dropped.error
    assert planted.damage < 1e-6 < dropped.damage
    whole = [o for o in options if o.wish.span.blocks == 1.0 and o.wish.form == "affine"]
    assert min(whole, key=lambda o: o.damage) is planted


def emptied(model: onnx.ModelProto, block: int) -> onnx.ModelProto:
    """The same network with a block that adds nothing to the stream."""
    makers = {node.output[0]: node for node in model.graph.node}
    bias = makers[makers[f"h{block}"].input[1]]
    gone = {bias.input[1], makers[bias.input[0]].input[1]}
    for tensor in model.graph.initializer:
        if tensor.name in gone:
            zeros = np.zeros(tuple(tensor.dims), np.float32)
            tensor.CopyFrom(onnx.numpy_helper.from_array(zeros, tensor.name))
    return model


def test_a_block_that_does_nothing_does_not_make_what_ends_there_look_harmless(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Left out it does no damage, which does not tell what an error at its end would do."""
    monkeypatch.setattr(probing, "MEASURED_PER_UNIT", 0)
    model = emptied(residual_mlp(4), PLANTED)
    with probed(model, labelled(model, 240)) as (_, options):
        there = [o for o in options if o.wish.span.exit == f"h{PLANTED}"]
        exact = [o for o in there if o.error < 1e-6]
        rough = [o for o in there if o.error > 1e-2]
    assert {o.wish.form for o in exact} >= {"identity", "affine"}
    assert max(o.damage for o in exact) < 1e-6
    assert len(rough) > 3
    assert min(o.damage for o in rough) > 1e-5


def test_every_stretch_of_up_to_four_blocks_is_probed() -> None:
    model = residual_mlp(6)
    with probed(model, labelled(model, 240)) as (_, options):
        lengths = {o.wish.span.stop - o.wish.span.start for o in options}
        assert lengths == {1, 2, 3, 4}
        assert len({o.wish for o in options}) == len(options)
        assert any(o.measured for o in options)


MODELS = {
    "mlp": (residual_mlp(3), labelled(residual_mlp(3), 160), None),
    "maps": (residual_cnn(blocks=3), labelled(residual_cnn(blocks=3), 160), None),
    "padded": (masked_encoder(3), samples(masked_encoder(3), 160), "cosine"),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_measured_damage_is_that_of_the_model(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its twin: the same surrogate walked over all of select, solved on all of fit."""
    model, data, metric = MODELS[name]
    monkeypatch.setattr(probing, "MOST_SELECT", 10**6)
    with probed(model, data, metric) as (trials, options):
        measured = [o for o in options if o.measured][:6]
        assert {o.wish.form for o in measured} - {"identity"}
        recipes = [Recipe((o.wish,), Healing(refit=None)) for o in measured]
        for option, trial in zip(measured, trials.fit(recipes), strict=True):
            (replacement,) = trial.replacements
            assert option.error == pytest.approx(replacement.predicted_error, rel=0.3, abs=1e-5)
            assert option.damage == pytest.approx(trial.damage, rel=0.3, abs=1e-5)


def test_what_is_not_measured_follows_from_the_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probing, "MEASURED_PER_UNIT", 0)
    model = residual_mlp(4)
    with probed(model, labelled(model, 240)) as (_, options):
        pass
    known = {o.wish.span.exit: o for o in options if o.measured}
    for option in options:
        base = known[option.wish.span.exit]
        assert option.damage == pytest.approx(base.damage * option.error / base.error, rel=1e-6)
    assert len(known) == sum(o.measured for o in options) < len(options)


def test_thinning_spreads_over_all() -> None:
    few = np.arange(5)
    assert thinned(few, 9) is few
    many = thinned(np.arange(100, 200), 5)
    assert many.tolist() == [100, 125, 150, 174, 199]
