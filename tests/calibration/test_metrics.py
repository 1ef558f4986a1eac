"""Redundancy metrics: what the identity scores, ranges, and rows of zeros."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from blockfold.calibration.metrics.affine_r2 import affine_r2
from blockfold.calibration.metrics.block_redundancy import block_redundancy
from blockfold.calibration.metrics.cosine import row_cosines, row_norms
from blockfold.calibration.moments import Array, Centred, CoMoment, Moments
from blockfold.calibration.solve import Solution, solve


def moments_of(x: Array, y: Array) -> Moments:
    a, b = Centred.of(x), Centred.of(y)
    return Moments.of(CoMoment.of(a, a), CoMoment.of(a, b), CoMoment.of(b, b))


def mapping(W: Array, b: Array) -> Solution:
    return Solution(W, b, ridge=0.0, rows=40, rank=len(b), condition=1.0)


def cosines(x: NDArray[np.floating], y: NDArray[np.floating]) -> Array:
    return row_cosines(x, y)


X = np.random.default_rng(0).standard_normal((40, 3))


def test_the_identity_is_wholly_redundant() -> None:
    moments = moments_of(X, X)
    assert block_redundancy(moments) == 0.0
    np.testing.assert_allclose(cosines(X, X), 1.0, rtol=1e-12)
    assert affine_r2(moments, solve(moments, [1e-3])[0]) == pytest.approx(1.0)


def test_block_redundancy_is_minus_the_squared_step() -> None:
    moments = moments_of(X, X + np.array([1.0, 2.0, 0.0]))
    assert block_redundancy(moments) == pytest.approx(-5.0)
    assert block_redundancy(moments, per_feature=True) == pytest.approx(-5.0 / 3)
    farther = moments_of(X, X + np.array([2.0, 2.0, 0.0]))
    assert block_redundancy(farther) < block_redundancy(moments) < 0


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(1e-3, 1e3))
def test_ranges_and_scales(seed: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    x, y = rng.standard_normal((9, 4)), rng.standard_normal((9, 4))
    found = cosines(x, y)
    assert (np.abs(found) <= 1 + 1e-12).all()
    np.testing.assert_allclose(cosines(scale * x, y), found, atol=1e-9)
    np.testing.assert_allclose(cosines(-x, y), -found, atol=1e-12)
    moments, scaled = moments_of(x, y), moments_of(scale * x, scale * y)
    assert block_redundancy(moments) <= 0
    assert block_redundancy(scaled) == pytest.approx(scale**2 * block_redundancy(moments), rel=1e-6)
    solution = solve(moments, [0.0])[0]
    assert affine_r2(moments, solution) <= 1 + 1e-12


def test_cosines_of_known_rows() -> None:
    x = np.array([[1.0, 0.0], [1.0, 1.0], [2.0, 0.0]])
    y = np.array([[0.0, 3.0], [2.0, 2.0], [-1.0, 0.0]])
    np.testing.assert_allclose(cosines(x, y), [0.0, 1.0, -1.0], atol=1e-12)


def test_rows_of_zeros_agree_with_each_other_only() -> None:
    x = np.array([[0.0, 0.0], [0.0, 0.0], [1.0, 2.0]])
    y = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 0.0]])
    np.testing.assert_array_equal(cosines(x, y), [1.0, 0.0, 0.0])


@pytest.mark.parametrize(("dtype", "size"), [(np.float16, 6e4), (np.float32, 1e18)])
def test_narrow_types_do_not_overflow(dtype: type[np.floating], size: float) -> None:
    big = np.full((1, 4), size, dtype)
    np.testing.assert_allclose(cosines(big, big), 1.0, rtol=1e-3)
    assert np.isfinite(row_norms(big)).all()


def test_a_constant_explains_nothing_and_a_wrong_map_less() -> None:
    y = X @ np.diag([1.0, 2.0, 3.0]) + 1
    moments = moments_of(X, y)
    mean = mapping(np.zeros((3, 3)), y.mean(0))
    assert affine_r2(moments, mean) == pytest.approx(0.0, abs=1e-12)
    wrong = mapping(-np.eye(3), y.mean(0))
    assert affine_r2(moments, wrong) < 0


def test_a_value_that_never_varies() -> None:
    flat = moments_of(X, np.zeros_like(X))
    exact = mapping(np.zeros((3, 3)), np.zeros(3))
    assert affine_r2(flat, exact) == 1.0
    off = mapping(np.zeros((3, 3)), np.ones(3))
    assert affine_r2(flat, off) == float("-inf")
