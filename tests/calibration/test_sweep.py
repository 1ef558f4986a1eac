"""One pass over the data gives what NumPy gives on the tapped values; padding does not count."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from blockfold.calibration.features import as_rows
from blockfold.calibration.runtime import Runner, Runtime
from blockfold.calibration.sources import open_data
from blockfold.calibration.sweep import Pair, Statistics, observe_shapes, sweep
from blockfold.ir.errors import BadInput
from blockfold.ir.onnx_file import read
from blockfold.tests.networks import (
    FLOAT,
    TOKENS,
    Arrays,
    Net,
    fixed_batch,
    masked_encoder,
    residual_cnn,
    residual_mlp,
    run,
    samples,
)

CPU = Runtime(threads=1)


def gather(
    model: onnx.ModelProto,
    data: Arrays,
    pairs: list[Pair],
    *,
    batch: int = 4,
    mask: str | None = None,
    chosen: list[int] | None = None,
) -> Statistics:
    source = read(model)
    taps = [name for pair in pairs for name in (pair.x, pair.y)]
    done: list[int] = []
    with open_data(data, source.inputs) as opened:
        rows = np.arange(opened.samples) if chosen is None else np.array(chosen)
        statistics = sweep(
            Runner(source, CPU, taps), opened, rows, pairs, batch, mask=mask, progress=done.append
        )
    assert sum(done) == len(rows)
    return statistics


def check(statistics: Statistics, pair: Pair, x: np.ndarray, y: np.ndarray) -> None:
    """Compare with NumPy on rows x and y (rows, d)."""
    x, y = x.astype(np.float64), y.astype(np.float64)
    found = statistics.moments(pair)
    assert found.rows == len(x)
    whole = np.cov(np.hstack([x, y]).T, bias=True)
    d = x.shape[1]
    for name, wanted in (
        ("Cxx", whole[:d, :d]),
        ("Cxy", whole[:d, d:]),
        ("Cyy", whole[d:, d:]),
        ("mean_x", x.mean(0)),
        ("mean_y", y.mean(0)),
    ):
        scale = np.abs(wanted).max()
        np.testing.assert_allclose(getattr(found, name), wanted, rtol=0, atol=1e-5 * scale)
    cosine = (x * y).sum(1) / np.linalg.norm(x, axis=1) / np.linalg.norm(y, axis=1)
    assert statistics.cosine(pair) == pytest.approx(cosine.mean(), abs=1e-6)
    angle = np.arccos(np.clip(cosine, -1, 1)).mean() / np.pi
    assert statistics.angular_distance(pair) == pytest.approx(angle, abs=1e-5)


@pytest.mark.parametrize("batch", [1, 4, 100])
def test_statistics_of_tokens_equal_numpy(batch: int) -> None:
    model = residual_mlp(2)
    data = samples(model, 11)
    pairs = [Pair("x", "h0", -1), Pair("h0", "h1", -1)]
    statistics = gather(model, data, pairs, batch=batch)
    values = {**data, **run(model, data, ["h0", "h1"])}
    for pair in pairs:
        check(statistics, pair, *(values[v].reshape(-1, 8) for v in (pair.x, pair.y)))


def test_statistics_of_feature_maps_equal_numpy() -> None:
    model = residual_cnn()
    data = samples(model, 6)
    pair = Pair("h0", "z1", 1)
    values = run(model, data, ["h0", "z1"])
    rows = [values[v].transpose(0, 2, 3, 1).reshape(-1, 6) for v in ("h0", "z1")]
    check(gather(model, data, [pair]), pair, rows[0], rows[1])
    np.testing.assert_array_equal(as_rows(values["h0"], 1), rows[0])


def test_only_the_given_samples_count() -> None:
    model = residual_mlp(1)
    data = samples(model, 9)
    pair = Pair("x", "h0", -1)
    values = {**data, **run(model, data, ["h0"])}
    rows = [values[v][[1, 4, 8]].reshape(-1, 8) for v in ("x", "h0")]
    check(gather(model, data, [pair], chosen=[8, 1, 4]), pair, rows[0], rows[1])


def test_padded_rows_do_not_count() -> None:
    model = masked_encoder()
    data = samples(model, 6)
    lengths = [7, 3, 5, 1, 7, 2]
    for row, length in enumerate(lengths):
        data["attention_mask"][row, length:] = 0
    pair = Pair("n0", "m0", -1)
    statistics = gather(model, data, [pair], mask="attention_mask")
    kept = data["attention_mask"].astype(bool)
    values = run(model, data, ["n0", "m0"])
    check(statistics, pair, values["n0"][kept], values["m0"][kept])
    assert statistics.moments(pair).rows == sum(lengths)
    unmasked = gather(model, data, [pair])
    assert unmasked.moments(pair).rows == 42
    assert np.abs(unmasked.moments(pair).Cxx - statistics.moments(pair).Cxx).max() > 1e-3


def test_a_fixed_batch_padded_with_copies_gives_the_same() -> None:
    model, pair = residual_mlp(1), Pair("x", "h0", -1)
    data = samples(model, 10)
    free = gather(model, data, [pair]).moments(pair)
    fixed = gather(fixed_batch(model, 4), data, [pair]).moments(pair)
    assert fixed.rows == free.rows == 10 * TOKENS
    for name in ("Cxx", "Cxy", "Cyy", "mean_x", "mean_y"):
        np.testing.assert_allclose(getattr(fixed, name), getattr(free, name), rtol=1e-5, atol=1e-6)


def test_statistics_of_two_halves_merge_into_those_of_all() -> None:
    model = residual_mlp(1)
    data = samples(model, 10)
    pair = Pair("x", "h0", -1)
    one, two = (gather(model, data, [pair], chosen=list(part)) for part in (range(3), range(3, 10)))
    before = one.moments(pair).Cxx.copy()
    both, whole = one.merged(two), gather(model, data, [pair])
    assert both.moments(pair).rows == whole.moments(pair).rows
    np.testing.assert_allclose(
        both.moments(pair).Cxy, whole.moments(pair).Cxy, rtol=1e-5, atol=1e-6
    )
    assert both.cosine(pair) == pytest.approx(whole.cosine(pair), abs=1e-6)
    angle = whole.angular_distance(pair)
    assert both.angular_distance(pair) == pytest.approx(angle, abs=1e-6)
    assert one.angular_distance(pair) != pytest.approx(angle, abs=1e-6)
    np.testing.assert_array_equal(one.moments(pair).Cxx, before)
    with pytest.raises(ValueError, match="different pairs"):
        one.merged(Statistics([Pair("x", "x", -1)]))


def test_a_watch_is_shown_every_batch_of_the_pass() -> None:
    model = read(residual_mlp(1))
    data = samples(model.proto, 7)
    seen: list[tuple[list[int], int]] = []
    with open_data(data, model.inputs) as opened:
        runner = Runner(model, CPU, ["x", "h0"])
        pairs = [Pair("x", "h0", -1)]
        sweep(
            runner,
            opened,
            np.arange(7),
            pairs,
            4,
            watch=lambda batch, values: seen.append((batch.samples.tolist(), len(values["h0"]))),
        )
    assert seen == [([0, 1, 2, 3], 4), ([4, 5, 6], 3)]


def test_nan_inside_the_model_is_refused_by_name() -> None:
    """The logarithm of a negative number, far from any output that would show it."""
    net = Net()
    bad = net.node("Log", net.node("MatMul", "x", net.weight(4, 4)), out="bad")
    zero = net.node("Where", net.node("IsNaN", bad), net.constant(np.zeros(1, np.float32)), bad)
    net.node("MatMul", zero, net.weight(4, 4), out="y")
    io = (FLOAT, ("batch", 4))
    model = net.model({"x": io}, {"y": io})
    data = samples(model, 8)
    assert np.isfinite(run(model, data)["y"]).all()
    with pytest.raises(BadInput, match="the model's inner value 'bad' holds NaN or Inf"):
        gather(model, data, [Pair("x", "bad", -1)])


def test_infinity_is_refused_too() -> None:
    statistics = Statistics([Pair("a", "b", -1)])
    fine = np.ones((3, 2), np.float32)
    with pytest.raises(BadInput, match="inner value 'b'"):
        statistics.add({"a": fine, "b": fine * np.inf}, None)


def test_shapes_are_observed_on_batches_of_different_size() -> None:
    model = read(residual_mlp(1))
    with open_data(samples(model.proto, 5), model.inputs) as opened:
        runner = Runner(model, CPU, ["h0", "pooled"])
        found = observe_shapes(runner, opened, np.arange(5), ["h0", "pooled"])
    assert found == {"h0": [(1, 12, 8), (2, 12, 8)], "pooled": [(1, 8), (2, 8)]}


def test_a_mask_that_hides_everything_is_refused() -> None:
    model, pair = masked_encoder(), Pair("n0", "m0", -1)
    data = samples(model, 6)
    data["attention_mask"][:] = 0
    with pytest.raises(BadInput, match="the mask hides every row of 'n0'; check the mask"):
        gather(model, data, [pair], mask="attention_mask").moments(pair)
