"""Verdicts and forecasts: what is compared, what is promised, and that luck is not expected."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import onnx
import pytest
from scipy.special import softmax

from blockfold.calibration.quality import METRICS, Judge, Scores
from blockfold.calibration.runtime import Runtime
from blockfold.calibration.sources import open_data
from blockfold.calibration.splits import split
from blockfold.ir.errors import BadInput, Unsupported
from blockfold.ir.onnx_file import read
from blockfold.passes.bounds import bootstrap_upper
from blockfold.passes.optimize import require_enough_samples
from blockfold.passes.task import Task, make_task
from blockfold.passes.verify import (
    Forecast,
    forecast,
    foretell,
    judge,
    samples_needed,
    verify,
)
from blockfold.tests.networks import (
    CLASSES,
    FLOAT,
    TOKENS,
    Arrays,
    Net,
    labelled,
    residual_mlp,
    run,
    samples,
)

MODEL = residual_mlp(2, d=4)


@contextmanager
def task_of(
    data: Arrays,
    model: onnx.ModelProto = MODEL,
    metric: str | Judge | None = None,
    output: str | None = None,
    fractions: tuple[float, float, float] = (0.25, 0.25, 0.5),
) -> Iterator[Task]:
    source = read(model)
    with open_data(data, source.inputs) as opened:
        splits = split(opened.samples, fractions=fractions, groups=opened.groups)
        runtime = Runtime(threads=1)
        yield make_task(source, opened, splits, runtime, metric=metric, output=output)


def scores(worse: int, better: int, rest: int) -> Scores:
    before = np.repeat([1.0, 0.0, 1.0], [worse, better, rest])
    after = np.repeat([0.0, 1.0, 1.0], [worse, better, rest])
    return Scores(before, after)


def test_a_model_loses_nothing_against_itself() -> None:
    data = labelled(MODEL, 240)
    with task_of(data) as task:
        verdict = verify(task, task.model, task.splits.certify, 0.05)
    assert (verdict.metric, verdict.output, verdict.samples) == ("accuracy", "logits", 120)
    assert (verdict.before, verdict.after, verdict.drop) == (1.0, 1.0, 0.0)
    assert (verdict.worse, verdict.better, verdict.largest_damage) == (0, 0, 0.0)
    assert verdict.kept
    assert verdict.bound.certified
    assert 0 < verdict.bound.upper <= 0.05


def test_another_model_is_found_out() -> None:
    other = residual_mlp(2, d=4, seed=3)
    with task_of(labelled(MODEL, 240)) as task:
        verdict = verify(task, read(other), task.splits.certify, 0.05)
    assert verdict.before == 1.0
    assert verdict.drop > 0.3
    assert verdict.worse == round(verdict.drop * verdict.samples)
    assert not verdict.kept


@pytest.mark.parametrize("metric", ["accuracy", "agreement"])
def test_a_promise_is_kept_by_its_bound_and_not_by_the_drop(metric: str) -> None:
    with task_of(labelled(MODEL, 60), metric=metric) as task:
        seen = scores(1, 0, 99)
        assert judge(task, seen, 0.2).kept
        broken = judge(task, seen, 0.011)
        assert broken.drop == pytest.approx(0.01)
        assert broken.bound.upper > 0.011
        assert not broken.kept
        assert judge(task, seen, None).kept


def test_counts_of_worse_and_better_samples() -> None:
    with task_of(labelled(MODEL, 60)) as task:
        verdict = judge(task, scores(3, 2, 95), None)
    assert (verdict.worse, verdict.better) == (3, 2)
    assert verdict.drop == pytest.approx(0.01)
    assert verdict.largest_damage == 1.0


@pytest.mark.parametrize("metric", ["cosine", "nmse", "kl"])
def test_other_metrics_are_estimated(metric: str) -> None:
    with task_of(samples(MODEL, 60), metric=metric) as task:
        damage = np.linspace(0, 0.1, 50)
        verdict = judge(task, Scores(np.ones(50), 1 - damage), 0.06)
        assert not verdict.bound.certified
        assert verdict.drop == pytest.approx(0.05)
        assert 0.05 < verdict.bound.upper < 0.07


def sequences(count: int, seed: int) -> Scores:
    """Sequences of 1 to 60 tokens; each loses 2 nats in all and each token up to 0.1 more.

    The rise of their perplexity is SEQUENCES_RISE.
    """
    rng = np.random.default_rng(seed)
    tokens = rng.integers(1, 61, count).astype(np.float64)
    before = -rng.gamma(4.0, 0.5, count)
    return Scores(before, before - 2 / tokens - 0.1 * rng.random(count), tokens=tokens)


SEQUENCES_RISE = float(np.expm1(2 / 30.5 + 0.05))


def test_perplexity_is_estimated_by_sequences() -> None:
    seen = sequences(120, 0)
    with task_of(labelled(MODEL, 240), metric="perplexity") as task:
        verdict = judge(task, seen, 0.13)
        expected = forecast(task, seen, 0.13)
    assert (verdict.bound.certified, verdict.samples, verdict.worse) == (False, 120, 120)
    assert verdict.bound.estimate == verdict.drop == pytest.approx(SEQUENCES_RISE, rel=0.1)
    assert verdict.after / verdict.before - 1 == pytest.approx(verdict.drop)
    assert verdict.drop < verdict.bound.upper < verdict.drop + 0.02
    assert verdict.largest_damage > 3
    # on as many samples as certify has, the forecast is the bound
    assert expected.upper - verdict.drop == pytest.approx(
        verdict.bound.upper - verdict.drop, rel=0.2
    )
    assert 0.05 < expected.chance < 0.95


def token_model(seed: int) -> onnx.ModelProto:
    """x (batch, TOKENS, 4) to logits (batch, TOKENS, CLASSES)."""
    net = Net(seed)
    net.node("MatMul", "x", net.weight(4, CLASSES), out="logits")
    wide = ("batch", TOKENS)
    return net.model({"x": (FLOAT, (*wide, 4))}, {"logits": (FLOAT, (*wide, CLASSES))})


def test_perplexity_of_two_models_on_tokens() -> None:
    original, new = token_model(0), token_model(1)
    data, rng = samples(original, 60), np.random.default_rng(0)
    labels = rng.integers(0, CLASSES, (60, TOKENS))
    labels[rng.random(labels.shape) < 0.4] = -100
    with task_of(data | {"labels": labels}, original, "perplexity") as task:
        verdict = verify(task, read(new), task.splits.certify, None)
        held = task.splits.certify
    wanted = []
    for model in (original, new):
        chances = softmax(run(model, data)["logits"][held].astype(np.float64), -1)
        of_labels = np.take_along_axis(chances, np.maximum(labels[held], 0)[..., None], -1)[..., 0]
        wanted.append(np.exp(-np.log(of_labels[labels[held] >= 0]).mean()))
    assert [verdict.before, verdict.after] == pytest.approx(wanted)
    assert verdict.drop == pytest.approx(wanted[1] / wanted[0] - 1)
    assert abs(verdict.drop) > 0.01


def test_the_limit_of_perplexity_holds_its_level() -> None:
    """And one on the mean over sequences would be of something else."""
    limits, others = [], []
    for seed in range(200):
        seen = sequences(60, seed)
        limits.append(bootstrap_upper(seen.units, seen.statistic, draws=300))
        others.append(bootstrap_upper(seen.damage, draws=300))
    assert 0.90 <= np.mean(np.array(limits) >= SEQUENCES_RISE) <= 0.99
    assert np.median(limits) < 1.25 * SEQUENCES_RISE
    assert np.median(others) > 2 * SEQUENCES_RISE


def peak(outputs: np.ndarray, _labels: object) -> np.ndarray:
    """How far the highest logit stands out."""
    scores: np.ndarray = outputs.max(-1) - outputs.mean(-1)
    return scores


def test_a_function_is_estimated() -> None:
    other = read(residual_mlp(2, d=4, seed=3))
    with task_of(samples(MODEL, 60), metric=peak) as task:
        own = verify(task, task.model, task.splits.certify, 0.05)
        verdict = verify(task, other, task.splits.certify, None)
    assert (own.metric, own.drop, own.kept) == (f"{__name__}:peak", 0.0, True)
    assert not verdict.bound.certified
    assert verdict.drop == pytest.approx(verdict.before - verdict.after)
    assert verdict.bound.upper > verdict.drop != 0


@pytest.mark.parametrize("metric", [*METRICS, peak])
def test_what_belongs_together_counts_once(metric: str | Judge) -> None:
    """Every sample twice, in pairs, says what each of them once does, and no more surely."""
    once, other = labelled(MODEL, 80), read(residual_mlp(2, d=4, seed=3))
    twice = {name: np.repeat(array, 2, axis=0) for name, array in once.items()}
    alone = {"groups": np.arange(80)}
    pairs, apart = {"groups": np.repeat(np.arange(80), 2)}, {"groups": np.arange(160)}
    found = []
    for data in (once | alone, twice | pairs, twice | apart):
        with task_of(data, metric=metric) as task:
            assert not task.is_exact
            verdict = verify(task, other, np.arange(task.data.samples), None)
            assert not verdict.bound.certified
            found.append((verdict, forecast(task, sequences(40, 0), 0.3)))
    (single, told), (paired, told_of_pairs), (doubled, told_of_more) = found
    assert (single.samples, paired.samples, doubled.samples) == (80, 80, 160)
    assert single.drop == pytest.approx(paired.drop)
    assert single.bound.upper == pytest.approx(paired.bound.upper)
    assert doubled.bound.upper < single.bound.upper, "as if there were more of them"
    assert told == told_of_pairs
    assert told_of_more.upper < told.upper


@pytest.mark.parametrize("metric", [*METRICS, peak])
def test_only_single_samples_that_are_right_or_wrong_are_certified(metric: str | Judge) -> None:
    with task_of(labelled(MODEL, 60), metric=metric) as task:
        assert task.is_exact == (metric in ("accuracy", "agreement"))
        verdict = verify(task, task.model, task.splits.certify, None)
    assert verdict.bound.certified == task.is_exact
    assert verdict.drop == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(("more", "unit"), [({}, "samples"), ({"groups": np.arange(12)}, "groups")])
def test_one_sample_has_no_limit(more: Arrays, unit: str) -> None:
    with (
        task_of(samples(MODEL, 12) | more, metric="cosine") as task,
        pytest.raises(BadInput, match=f"limit on cosine needs at least 2 {unit}; give more data"),
    ):
        verify(task, task.model, np.arange(1), None)


def test_a_forecast_takes_a_gain_for_luck() -> None:
    """More better than worse samples on select promise no better than as many of both."""
    with task_of(labelled(MODEL, 240)) as task:
        lucky, even = (forecast(task, scores(2, better, 58 - better), 0.2) for better in (20, 2))
        assert lucky == even
        assert lucky.upper > 0
        worse = forecast(task, scores(6, 2, 52), 0.2)
    assert worse.upper > even.upper
    assert worse.chance < even.chance


def test_a_forecast_of_no_damage_is_the_bound_of_no_damage() -> None:
    with task_of(labelled(MODEL, 240)) as task:
        seen = forecast(task, scores(0, 0, 60), 0.05)
        kept = judge(task, scores(0, 0, 120), 0.05)
    assert seen.upper == pytest.approx(kept.bound.upper, abs=0.005)
    assert 0.8 < seen.chance <= 1


def test_a_mean_below_zero_is_luck_too() -> None:
    with task_of(samples(MODEL, 240), metric="nmse") as task:
        up, down = (np.linspace(-1, 1, 60) + shift for shift in (0.0, -0.5))
        even, lucky = (forecast(task, Scores(np.zeros(60), -damage), 0.3) for damage in (up, down))
    assert lucky.upper == pytest.approx(even.upper)
    assert 0 < even.upper < 0.3
    assert 0.5 < even.chance < 1


def test_without_a_promise_nothing_can_be_broken() -> None:
    with task_of(labelled(MODEL, 60)) as task:
        assert forecast(task, scores(30, 0, 30), None).chance == 1.0
    with task_of(samples(MODEL, 60), metric="cosine") as task:
        assert forecast(task, scores(30, 0, 30), None).chance == 1.0
        flat = Scores(np.zeros(9), np.zeros(9))
        assert forecast(task, flat, 0.01) == Forecast(0.0, 1.0)


@pytest.mark.parametrize("promise", [0.02, 0.05, 0.11])
@pytest.mark.parametrize(
    "fractions", [(0.25, 0.25, 0.5), (0.3, 0.3, 0.4), (0.34, 0.33, 0.33), (0.1, 0.2, 0.7)]
)
def test_the_number_of_samples_that_a_refusal_states_is_enough(
    promise: float, fractions: tuple[float, float, float]
) -> None:
    data = samples(MODEL, 24)
    with task_of(data, metric="agreement", fractions=fractions) as task:
        needed = samples_needed(task, promise)
        with pytest.raises(BadInput, match=f"needs at least {needed} samples to certify") as caught:
            require_enough_samples(task, promise)
        stated = int(str(caught.value).split("give at least ")[1].split()[0])
    held = len(split(stated, fractions=fractions).certify)
    assert held >= needed
    assert len(split(stated - 4, fractions=fractions).certify) < needed
    assert "allow more" in str(caught.value)


def test_defaults_fit_the_model_and_the_data() -> None:
    with task_of(labelled(MODEL, 12)) as task:
        assert (task.metric, task.output, task.mask) == ("accuracy", "logits", None)
    with task_of(samples(MODEL, 12)) as task:
        assert task.metric == "agreement"


@pytest.mark.parametrize(
    ("metric", "output", "said"),
    [
        ("accuracy", None, "--metric accuracy needs labels"),
        ("perplexity", None, "--metric perplexity needs labels"),
        ("numpy:pi", None, "--metric numpy:pi: is a float; give a function"),
        ("beauty", None, "--metric beauty: unknown; it is one of accuracy, agreement"),
        (None, "pooled", "--output pooled: no such floating output; there is logits"),
    ],
)
def test_what_does_not_fit_is_refused(metric: str | None, output: str | None, said: str) -> None:
    with (
        pytest.raises(BadInput, match=said),
        task_of(samples(MODEL, 12), metric=metric, output=output),
    ):
        pytest.fail("the task was made")


def test_a_model_without_a_floating_output_is_unsupported() -> None:
    net = Net()
    net.node("ArgMax", "x", out="best", axis=1, keepdims=0)
    ends = {"x": (FLOAT, ("batch", 4))}, {"best": (onnx.TensorProto.INT64, ("batch",))}
    model = net.model(*ends)
    with (
        pytest.raises(Unsupported, match="no floating output"),
        task_of(samples(model, 12), model),
    ):
        pytest.fail("the task was made")


@pytest.mark.parametrize("exact", ["accuracy", "agreement", None])
def test_harm_expected_is_at_least_what_is_given_and_never_beyond_all(exact: str | None) -> None:
    """A line through other plans may say more than that every sample gets worse."""
    seen = scores(2, 1, 97)
    uppers = [foretell(seen, 200, 0.1, exact, least).upper for least in (0.0, 0.2, 0.99, 1.0, 7.0)]
    assert uppers == sorted(uppers)
    assert uppers[0] < uppers[1] < uppers[2]
    assert foretell(seen, 200, 0.1, exact, 7.0).chance < 0.01
    if exact is not None:
        assert uppers[-1] == uppers[-2] <= 1.0
