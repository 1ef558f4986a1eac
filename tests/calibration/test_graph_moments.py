"""Moments that the graph makes are those that NumPy makes of fetched values, padding and all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from blockfold.calibration import graph_moments
from blockfold.calibration.graph_moments import GraphSweep
from blockfold.calibration.runtime import (
    PROVIDERS,
    Runner,
    Runtime,
    choose_runtime,
    open_session,
)
from blockfold.calibration.sources import open_data
from blockfold.calibration.sweep import Pair, Statistics, sweep
from blockfold.ir.errors import BadInput
from blockfold.ir.onnx_file import read
from blockfold.tests.networks import (
    FLOAT,
    Arrays,
    Net,
    fixed_batch,
    masked_encoder,
    residual_cnn,
    residual_mlp,
    samples,
)

CPU = Runtime(threads=1)
TOKENS_PAIRS = [Pair("x", "h0", -1), Pair("h0", "h1", -1), Pair("x", "h1", -1)]


def cuda() -> Runtime | None:
    try:
        return choose_runtime("cuda")
    except BadInput:
        return None


RUNTIMES = [
    pytest.param(CPU, id="cpu"),
    pytest.param(
        cuda(),
        id="cuda",
        marks=pytest.mark.skipif(cuda() is None, reason="CUDA does not work here"),
    ),
]


def both(
    model: onnx.ModelProto,
    data: Arrays,
    pairs: Sequence[Pair],
    runtime: Runtime = CPU,
    *,
    batch: int = 4,
    mask: str | None = None,
) -> tuple[Statistics, Statistics]:
    """From the graph and from NumPy."""
    source = read(model)
    done: list[int] = []
    with open_data(data, source.inputs) as opened:
        every = np.arange(opened.samples)
        gather = GraphSweep(source, runtime, pairs)
        made = gather(opened, every, batch, mask=mask, progress=done.append)
        again = gather(opened, every, batch, mask=mask)
        taps = [name for pair in pairs for name in (pair.x, pair.y)]
        wanted = sweep(Runner(source, CPU, taps), opened, every, pairs, batch, mask=mask)
    assert sum(done) == len(every)
    check(again, made, 1e-5)
    return made, wanted


def check(found: Statistics, wanted: Statistics, tolerance: float = 1e-5) -> None:
    for key in wanted.keys:
        one, other = found.products[key], wanted.products[key]
        assert (one.rows, one.weight) == (other.rows, other.weight)
        scale = np.sqrt(np.outer(*(np.diag(wanted.products[v, v].product) for v in key)))
        assert (np.abs(one.product - other.product) <= tolerance * scale + 1e-30).all()
        for v, mean in zip(key, ("mean_x", "mean_y"), strict=True):
            spread = np.sqrt(np.diag(wanted.products[v, v].product) / other.weight)
            off = np.abs(getattr(one, mean) - getattr(other, mean))
            assert (off <= tolerance * (spread + 1e-30)).all()
    for pair in wanted.pairs:
        assert found.cosine(pair) == pytest.approx(wanted.cosine(pair), abs=tolerance)
        angle = wanted.angular_distance(pair)
        # Where rows are parallel, a rounded cosine of 1 - 2^-24 is an angle of 1e-4
        slack = max(tolerance, 1e-7 if angle > 0.01 else 2e-4)
        assert found.angular_distance(pair) == pytest.approx(angle, abs=slack)


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("batch", [1, 4, 9, 100])
def test_tokens(batch: int, runtime: Runtime) -> None:
    model = residual_mlp(2)
    check(*both(model, samples(model, 17), TOKENS_PAIRS, runtime, batch=batch))


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_feature_maps(runtime: Runtime) -> None:
    model = residual_cnn()
    check(*both(model, samples(model, 9), [Pair("h0", "z1", 1)], runtime))


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_padding_does_not_count(runtime: Runtime) -> None:
    model, pairs = masked_encoder(), [Pair("n0", "m0", -1)]
    data = samples(model, 10)
    for row, length in enumerate([7, 3, 5, 1, 7, 2, 7, 7, 4, 1]):
        data["attention_mask"][row, length:] = 0
    made, wanted = both(model, data, pairs, runtime, mask="attention_mask")
    check(made, wanted)
    unmasked, _ = both(model, data, pairs, runtime)
    with pytest.raises(AssertionError):
        check(unmasked, wanted)


def test_a_mask_of_another_shape_weighs_nothing() -> None:
    """Rows per sample pooled away: the mask's length is not theirs."""
    net = Net()
    net.node("MatMul", "x", net.weight(8, 8), out="wide")
    net.node("Transpose", "wide", perm=[0, 2, 1], out="turned")
    net.node("Relu", "turned", out="y")
    model = net.model(
        {"x": (FLOAT, ("batch", 12, 8)), "mask": (onnx.TensorProto.INT64, ("batch", 12))},
        {"y": (FLOAT, ("batch", 8, 12))},
    )
    data = samples(model, 9)
    data["mask"] = np.zeros((9, 12), np.int64)
    check(*both(model, data, [Pair("turned", "y", -1)], mask="mask"))
    data["mask"][:, :3] = 1
    made, wanted = both(model, data, [Pair("x", "wide", -1)], mask="mask")
    check(made, wanted)
    assert made.products["x", "wide"].rows == 27


def test_nan_in_padding_is_nothing() -> None:
    net = Net()
    net.node("Log", "x", out="log")
    net.node("Relu", "log", out="y")
    model = net.model(
        {"x": (FLOAT, ("batch", 5, 8)), "mask": (onnx.TensorProto.INT64, ("batch", 5))},
        {"y": (FLOAT, ("batch", 5, 8))},
    )
    data = {"x": np.random.default_rng(0).random((17, 5, 8)).astype(np.float32) + 0.1}
    data["mask"] = np.ones((17, 5), np.int64)
    data["x"][:, 3:], data["mask"][:, 3:] = -1.0, 0
    check(*both(model, data, [Pair("x", "log", -1)], mask="mask"))


def test_batches_that_are_filled_up_count_once() -> None:
    model = fixed_batch(residual_mlp(2), 4)
    check(*both(model, samples(residual_mlp(2), 14), TOKENS_PAIRS))


def test_huge_means_keep_their_spread() -> None:
    """In float32 a value of 3e4 and its square leave nothing of a spread of 1."""
    net = Net()
    high = net.node("Add", "x", net.constant(np.full(8, 3e4, np.float32)), out="high")
    net.node("Add", high, net.node("Relu", net.node("Sub", high, "x")), out="y")
    model = net.model({"x": (FLOAT, ("batch", 5, 8))}, {"y": (FLOAT, ("batch", 5, 8))})
    made, wanted = both(model, samples(model, 40), [Pair("high", "y", -1)])
    check(made, wanted, 1e-3)
    variance = np.diag(made.products["high", "high"].product) / made.products["high", "high"].weight
    assert (variance > 0.5).all()
    assert (variance < 2.0).all()


@pytest.mark.parametrize("code", ["FLOAT16", "DOUBLE"])
def test_other_dtypes(code: str) -> None:
    net = Net()
    dtype = getattr(onnx.TensorProto, code)
    net.node("Tanh", "x", out="h")
    net.node("Tanh", "h", out="y")
    model = net.model({"x": (dtype, ("batch", 5, 8))}, {"y": (dtype, ("batch", 5, 8))})
    rows = np.random.default_rng(0).standard_normal((40, 5, 8))
    data = {"x": rows.astype(helper.tensor_dtype_to_np_dtype(dtype))}
    made, wanted = both(model, data, [Pair("h", "y", -1)])
    check(made, wanted, 1e-12 if code == "DOUBLE" else 1e-5)


def test_nan_in_a_later_batch_is_refused_by_name() -> None:
    net = Net()
    net.node("Log", "x", out="bad")
    net.node("IsNaN", "bad", out="nan")
    net.node("Where", "nan", net.constant(np.zeros(1, np.float32)), "bad", out="y")
    model = net.model({"x": (FLOAT, ("batch", 5, 8))}, {"y": (FLOAT, ("batch", 5, 8))})
    data = {"x": np.ones((12, 5, 8), np.float32)}
    data["x"][11, 4, 7] = -1.0
    with pytest.raises(BadInput, match="inner value 'bad' holds NaN or Inf"):
        both(model, data, [Pair("x", "bad", -1)])


def test_nothing_but_sums_leaves_the_session(monkeypatch: pytest.MonkeyPatch) -> None:
    """Outputs are bound once, to values on the device, and only the sums are outputs at all."""
    model = residual_mlp(2)
    opened: list[list[str]] = []

    def watching(*given: Any, **more: Any) -> Any:
        session = open_session(*given, **more)
        opened.append([out.name for out in session.get_outputs()])
        shapes = [out.shape for out in session.get_outputs()]
        assert all(isinstance(length, int) and length <= 8 for s in shapes for length in s)
        return session

    monkeypatch.setattr(graph_moments, "open_session", watching)
    both(model, samples(model, 17), TOKENS_PAIRS)
    (names,) = opened
    assert all(name.startswith(graph_moments.PREFIX) for name in names)
    assert len(names) == 2 * 3 + 6 + 2 * 3


def test_cuda_takes_this_way_and_the_cpu_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    from blockfold.passes import sweep as room
    from blockfold.tests.passes.test_evidence import DATA, MODEL, opened

    made: list[str] = []
    monkeypatch.setattr(room, "GraphSweep", lambda *_given: made.append("graph"))
    monkeypatch.setattr(room, "Runner", lambda *_given, **_more: made.append("runner"))
    with opened(MODEL, DATA) as task:
        room.Sweep(task, TOKENS_PAIRS)
        object.__setattr__(task, "runtime", Runtime(PROVIDERS["cuda"]))
        room.Sweep(task, TOKENS_PAIRS)
    assert made == ["runner", "graph"]


def test_the_way_of_cuda_gives_the_same_evidence(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of it on the CPU, which is told to be CUDA."""
    from blockfold.passes import sweep as room
    from blockfold.tests.passes.test_evidence import assert_same, gathered, saw

    wanted = saw(gathered())
    monkeypatch.setattr(room, "PROVIDERS", {"cuda": PROVIDERS["cpu"]})
    assert_same(saw(gathered()), wanted)
