"""The comparison of outputs finds every difference, and the networks hold what they claim."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest

from blockfold.tests.networks import (
    BUILDERS,
    Arrays,
    built,
    compare,
    residual_cnn,
    residual_mlp,
    run,
    samples,
    tabular,
)

OUTPUTS: Arrays = {
    "a": np.array([[1.0, -2.0], [3.0, 4.0]], np.float32),
    "b": np.array([[0.5, 0.25], [5.0, 6.0]], np.float32),
}

CONTROLS: dict[str, Callable[[], Arrays]] = {
    "scaled": lambda: {**OUTPUTS, "a": OUTPUTS["a"] * np.float32(1.001)},
    "zeroed": lambda: {**OUTPUTS, "a": np.zeros_like(OUTPUTS["a"])},
    "swapped": lambda: {"a": OUTPUTS["b"], "b": OUTPUTS["a"]},
    "rows swapped": lambda: {**OUTPUTS, "b": OUTPUTS["b"][::-1]},
    "missing": lambda: {"a": OUTPUTS["a"]},
    "extra": lambda: {**OUTPUTS, "c": OUTPUTS["a"]},
    "NaN": lambda: {**OUTPUTS, "a": np.full_like(OUTPUTS["a"], np.nan)},
    "Inf": lambda: {**OUTPUTS, "a": np.full_like(OUTPUTS["a"], np.inf)},
    "dtype": lambda: {**OUTPUTS, "a": OUTPUTS["a"].astype(np.float64)},
    "shape": lambda: {**OUTPUTS, "a": OUTPUTS["a"].reshape(-1)},
    "row missing": lambda: {**OUTPUTS, "a": OUTPUTS["a"][:1]},
    "empty": dict,
}


def test_equal_outputs_pass() -> None:
    compare(OUTPUTS, {name: array.copy() for name, array in OUTPUTS.items()}, atol=0, rtol=0)


@pytest.mark.parametrize("name", CONTROLS)
def test_different_outputs_fail_from_either_side(name: str) -> None:
    other = CONTROLS[name]()
    for a, b in ((OUTPUTS, other), (other, OUTPUTS)):
        with pytest.raises(AssertionError):
            compare(a, b, atol=1e-6, rtol=1e-4)


def test_nan_on_both_sides_and_nothing_at_all_fail() -> None:
    nan = CONTROLS["NaN"]()
    with pytest.raises(AssertionError, match="NaN"):
        compare(nan, nan, atol=1e9, rtol=1e9)
    with pytest.raises(AssertionError, match="nothing"):
        compare({}, {}, atol=1, rtol=1)
    with pytest.raises(AssertionError, match="empty"):
        compare({"a": np.zeros((0, 2))}, {"a": np.zeros((0, 2))}, atol=1, rtol=1)


@pytest.mark.parametrize(("atol", "rtol"), [(0.0101, 0.0), (0.0, 0.0101)])
def test_what_the_tolerance_allows_passes_and_no_more(atol: float, rtol: float) -> None:
    one = {"a": np.array([1.0])}
    compare(one, {"a": np.array([1.01])}, atol=atol, rtol=rtol)
    with pytest.raises(AssertionError, match="off by"):
        compare(one, {"a": np.array([1.0103])}, atol=atol, rtol=rtol)


@pytest.mark.parametrize("name", BUILDERS)
def test_every_network_runs_and_reads_its_inputs(name: str) -> None:
    model = built(name)
    one, other = (run(model, samples(model, 4, seed=seed)) for seed in (1, 2))
    with pytest.raises(AssertionError, match="off by"):
        compare(one, other, atol=0, rtol=1e-3)


def affine_error(model: onnx.ModelProto, entry: str, exit_: str) -> float:
    """Root of the share of the exit's variance that the best affine map of the entry leaves."""
    feeds = samples(model, 80)
    taps = [name for name in (entry, exit_) if name not in feeds]
    values = {**feeds, **run(model, feeds, taps)}
    last = 1 if values[entry].ndim == 4 else -1
    rows = [np.moveaxis(values[name], last, -1) for name in (entry, exit_)]
    x, y = (array.reshape(-1, array.shape[-1]).astype(np.float64) for array in rows)
    ones = np.hstack([x, np.ones((len(x), 1))])
    left = y - ones @ np.linalg.lstsq(ones, y, rcond=None)[0]
    return float(np.linalg.norm(left) / np.linalg.norm(y - y.mean(0)))


@pytest.mark.parametrize(
    ("model", "ends"),
    [
        (residual_mlp(affine=(1,)), [("x", "h0"), ("h0", "h1"), ("h1", "h2"), ("h2", "h3")]),
        (residual_cnn(affine=(1,)), [("v1", "z0"), ("h0", "z1"), ("h1", "z2")]),
        (tabular(affine=(1,)), [("x", "h0"), ("h0", "h1"), ("h1", "h2")]),
    ],
    ids=["mlp", "cnn", "tabular"],
)
def test_only_the_planted_block_is_affine(
    model: onnx.ModelProto, ends: list[tuple[str, str]]
) -> None:
    errors = [affine_error(model, entry, exit_) for entry, exit_ in ends]
    assert errors[1] < 1e-5
    assert min(errors[0], *errors[2:]) > 0.05


def test_the_planted_block_is_no_identity() -> None:
    model = residual_mlp(affine=(1,))
    values = run(model, samples(model, 20), ["h0", "h1"])
    with pytest.raises(AssertionError, match="off by"):
        compare({"h": values["h0"]}, {"h": values["h1"]}, atol=0, rtol=0.3)
