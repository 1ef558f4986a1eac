"""Moments: a monoid that gives what one pass in float64 gives, however the rows are cut up."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blockfold.calibration.moments import Array, Centred, CoMoment, Moments

DX, DY = 3, 2


def rows(n: int, seed: int = 0, offset: float = 0.0) -> tuple[Array, Array]:
    rng = np.random.default_rng(seed)
    mix = rng.standard_normal((DX, DY))
    x = rng.standard_normal((n, DX)) * (1, 3, 0.2) + offset
    return x, (x - offset) @ mix + 0.3 * rng.standard_normal((n, DY)) - offset / 2


def comoment(x: Array, y: Array, weights: Array | None = None) -> CoMoment:
    return CoMoment.of(Centred.of(x, weights), Centred.of(y, weights))


def gathered(x: Array, y: Array, ends: Sequence[int], weights: Array | None = None) -> CoMoment:
    """Batch by batch, cut at `ends`."""
    total = CoMoment.zero(DX, DY)
    parts = [np.split(array, ends) for array in (x, y)]
    weighed = [None] * len(parts[0]) if weights is None else np.split(weights, ends)
    for a, b, w in zip(*parts, weighed, strict=True):
        total.absorb(comoment(a, b, w))
    return total


def same(a: CoMoment, b: CoMoment, rtol: float = 1e-10) -> None:
    assert a.rows == b.rows
    assert a.weight == pytest.approx(b.weight, rel=1e-12)
    for name in ("mean_x", "mean_y", "product"):
        one, other = getattr(a, name), getattr(b, name)
        np.testing.assert_allclose(one, other, rtol=rtol, atol=rtol * (1 + np.abs(other).max()))


@pytest.mark.parametrize("ends", [[], [1], [5, 9], [1, 2, 3, 4], [0, 20, 20, 40]])
def test_batches_give_what_numpy_gives_in_one(ends: list[int]) -> None:
    x, y = rows(40)
    total = gathered(x, y, ends)
    covariance = np.cov(np.hstack([x, y]).T, bias=True)[:DX, DX:]
    assert (total.rows, total.weight) == (40, 40)
    np.testing.assert_allclose(total.product / 40, covariance, rtol=1e-12)
    np.testing.assert_allclose(total.mean_x, x.mean(0), rtol=1e-12)
    np.testing.assert_allclose(total.mean_y, y.mean(0), rtol=1e-12)


def test_weights_are_repetitions() -> None:
    x, y = rows(12)
    weights = np.array([0, 1, 2, 3] * 3, np.float64)
    repeated = [np.repeat(array, weights.astype(int), axis=0) for array in (x, y)]
    weighed, plain = gathered(x, y, [5], weights), comoment(*repeated)
    assert weighed.rows == 9
    assert plain.rows == 18
    plain.rows = 9
    same(weighed, plain)


def test_a_batch_of_no_weight_adds_nothing_whatever_it_holds() -> None:
    x, y = rows(10)
    total = gathered(x, y, [4])
    nothing = comoment(x * 1e6, y * 1e6, np.zeros(10))
    assert (nothing.rows, nothing.weight) == (0, 0.0)
    before = total.copy()
    total.absorb(nothing)
    same(total, before, rtol=1e-15)
    nothing.absorb(before)
    same(nothing, before)
    empty = CoMoment.zero(DX, DY)
    empty.absorb(CoMoment.zero(DX, DY))
    assert empty.weight == 0.0
    assert not empty.product.any()


def test_a_copy_stands_alone() -> None:
    x, y = rows(10)
    total = comoment(x, y)
    copy, before = total.copy(), total.product.copy()
    copy.absorb(comoment(x + 1, y))
    np.testing.assert_array_equal(total.product, before)
    assert total.rows == 10


@pytest.mark.parametrize("weighed", [False, True])
def test_a_huge_offset_in_float32_keeps_the_covariance(weighed: bool) -> None:
    """Massive activations: mean 1e4, spread about 1. Uncentred float32 would be off by 100 %."""
    x, y = (array.astype(np.float32) for array in rows(600, offset=1e4))
    weights = np.tile([1.0, 2.0, 0.0], 200) if weighed else None
    total = CoMoment.zero(DX, DY)
    wide = CoMoment.zero(DX, DY)
    for a, b, w in zip(
        np.split(x, 3),
        np.split(y, 3),
        [None] * 3 if weights is None else np.split(weights, 3),
        strict=True,
    ):
        total.absorb(CoMoment.of(Centred.of(a, w), Centred.of(b, w)))
        wide.absorb(comoment(a.astype(np.float64), b.astype(np.float64), w))
    exact = np.cov(
        np.hstack([x, y]).astype(np.float64).T,
        bias=True,
        aweights=weights,
    )[:DX, DX:]
    scale = np.abs(exact).max()
    np.testing.assert_allclose(total.product / total.weight, exact, rtol=0, atol=1e-5 * scale)
    np.testing.assert_allclose(wide.product / wide.weight, exact, rtol=0, atol=1e-9 * scale)
    raw = (x.T @ y) / 600 - np.outer(x.mean(0), y.mean(0))
    if not weighed:
        assert np.abs(raw - exact).max() > 0.01 * scale


def test_half_precision_rows_do_not_overflow() -> None:
    x = np.full((400, 2), 300, np.float16)
    x[::2] += np.float16(8)
    total = CoMoment.of(Centred.of(x), Centred.of(x))
    np.testing.assert_allclose(total.product / 400, np.full((2, 2), 16.0), rtol=1e-6)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(0, 30), min_size=1, max_size=5),
    st.integers(0, 3),
    st.integers(0, 2**32 - 1),
)
def test_shards_merged_in_any_grouping_give_one_run(
    sizes: list[int], pivot: int, seed: int
) -> None:
    x, y = rows(sum(sizes) + 2, seed, offset=float(seed % 100))
    rng = np.random.default_rng(seed)
    weights = rng.integers(0, 3, len(x)).astype(np.float64)
    weights[0] = 1
    ends = np.cumsum(sizes).tolist()
    whole = comoment(x, y, weights)
    same(gathered(x, y, ends, weights), whole)
    parts = [
        comoment(a, b, w)
        for a, b, w in zip(*(np.split(array, ends) for array in (x, y, weights)), strict=True)
    ]
    left, right = CoMoment.zero(DX, DY), CoMoment.zero(DX, DY)
    for part in parts[:pivot]:
        left.absorb(part)
    for part in reversed(parts[pivot:]):
        right.absorb(part)
    right.absorb(left)
    same(right, whole)


def test_the_error_formula_is_the_error() -> None:
    x, y = rows(50, seed=3)
    moments = Moments.of(comoment(x, x), comoment(x, y), comoment(y, y))
    rng = np.random.default_rng(1)
    W, b = rng.standard_normal((DX, DY)), rng.standard_normal(DY)
    for bias in (b, np.zeros(DY)):
        direct = np.square(y - x @ W - bias).sum(1).mean()
        assert moments.error(W, bias) == pytest.approx(direct, rel=1e-12)
    assert moments.error(W, None) == pytest.approx(np.square(y - x @ W).sum(1).mean(), rel=1e-12)
    assert moments.variance == pytest.approx(y.var(0).sum(), rel=1e-12)


def test_the_error_of_the_identity() -> None:
    x, _ = rows(30)
    y = x + np.array([1.0, 0.0, 2.0]) + 0.1 * np.random.default_rng(0).standard_normal(x.shape)
    moments = Moments.of(comoment(x, x), comoment(x, y), comoment(y, y))
    assert moments.error(None, None) == pytest.approx(np.square(y - x).sum(1).mean(), rel=1e-12)
    same_ = Moments.of(*[comoment(x, x)] * 3)
    assert same_.error(None, None) == 0.0
