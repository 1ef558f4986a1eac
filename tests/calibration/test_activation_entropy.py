"""Activation entropy, angular distance and block influence: known values, ranges, scales."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blockfold.calibration.metrics.activation_entropy import SideCounts, activation_entropy
from blockfold.calibration.metrics.angular import angular_distance, block_influence, row_angles
from blockfold.calibration.metrics.block_redundancy import block_redundancy
from blockfold.calibration.moments import Centred, CoMoment, Moments
from blockfold.ir.errors import BadInput

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("on", range(9))
def test_the_published_formula(on: int) -> None:
    z = np.where(np.arange(8) < on, 1.5, -0.5)[:, None]
    p = on / 8
    expected = 0.0 if p in (0, 1) else -p * np.log2(p) - (1 - p) * np.log2(1 - p)
    assert activation_entropy(z) == pytest.approx(expected, abs=1e-12)


def test_a_linear_layer_has_0_and_one_that_always_switches_1() -> None:
    z = RNG.standard_normal((50, 6))
    sure = np.abs(z) * np.array([1, -1, 1, -1, 1, 1.0])
    assert activation_entropy(sure) == 0.0
    assert not np.signbit(activation_entropy(sure))
    assert activation_entropy(np.vstack([z, -z])) == 1.0
    half = np.hstack([np.vstack([sure, sure]), np.vstack([z, -z])])
    assert activation_entropy(half) == pytest.approx(0.5)


def test_zero_counts_as_off() -> None:
    assert activation_entropy(np.zeros((4, 2))) == 0.0
    assert activation_entropy(np.array([[0.0], [1.0]])) == 1.0


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(1e-3, 1e3))
def test_range_scale_and_side(seed: int, scale: float) -> None:
    z = np.random.default_rng(seed).standard_normal((9, 4)) + 0.4
    found = activation_entropy(z)
    assert 0.0 <= found <= 1.0
    assert activation_entropy(scale * z) == found
    assert activation_entropy(-z) == pytest.approx(found, abs=1e-12)


def test_batches_add_up_and_maps_name_their_axis() -> None:
    maps = RNG.standard_normal((6, 3, 5, 5)) + np.array([0, 1, -2.0])[:, None, None]
    counts = SideCounts()
    for start in (0, 2, 4):
        counts.add(maps[start : start + 2], axis=1)
    rows = maps.transpose(0, 2, 3, 1).reshape(-1, 3)
    assert counts.rows == 150
    assert counts.entropy == activation_entropy(rows) == activation_entropy(maps, axis=1)
    assert counts.unit_entropies.shape == (3,)
    assert counts.unit_entropies[0] > counts.unit_entropies[2]
    with pytest.raises(BadInput, match="5 units after batches of 3"):
        counts.add(maps)


def test_what_has_no_entropy() -> None:
    with pytest.raises(BadInput, match="no rows"):
        _ = SideCounts().entropy
    with pytest.raises(BadInput, match="NaN"):
        activation_entropy(np.array([[np.nan, 1.0]]))


def test_known_angles() -> None:
    x = np.array([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 0.0]])
    y = np.array([[5.0, 0.0], [0.0, 2.0], [-3.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    np.testing.assert_allclose(row_angles(x, y), [0.0, 0.5, 1.0, 0.25, 0.0], atol=1e-7)
    assert angular_distance(x, y) == pytest.approx(1.75 / 5)
    assert block_influence(x, y) == pytest.approx(1 - (1 + 0 - 1 + 0.5**0.5 + 1) / 5)


def test_the_identity_is_wholly_redundant() -> None:
    x = RNG.standard_normal((200, 7))
    a = Centred.of(x)
    square = CoMoment.of(a, a)
    assert angular_distance(x, x) == pytest.approx(0.0, abs=1e-7)
    assert block_influence(x, x) == pytest.approx(0.0, abs=1e-12)
    assert block_redundancy(Moments.of(square, square, square)) == 0.0


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_angles_are_never_nan_and_know_no_length(dtype: type[np.floating]) -> None:
    x, y = RNG.standard_normal((2, 500, 3)).astype(dtype)
    found = row_angles(x, y)
    assert ((found >= 0) & (found <= 1)).all()
    np.testing.assert_allclose(row_angles(4 * x, y), found, atol=2e-3)
    np.testing.assert_allclose(row_angles(-x, y), 1 - found, atol=1e-6)
    assert np.isfinite(row_angles(x, x)).all()


def test_means_of_nothing() -> None:
    empty = np.zeros((0, 3))
    for mean in (angular_distance, block_influence):
        with pytest.raises(BadInput, match="no rows"):
            mean(empty, empty)
