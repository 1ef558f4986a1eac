"""What the solved map owes to the rows alone: not to their order, batches, padding or units.

At the level of gathering and solving; test_moments and test_solve hold what each does by itself.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blockfold.calibration.equations import Equations
from blockfold.calibration.features import pooled_mean
from blockfold.calibration.moments import Array, Moments
from blockfold.calibration.solve import RIDGES, Solution, solve, solve_held_out
from blockfold.calibration.sweep import Pair, Statistics
from blockfold.ir.errors import BadInput

D = 4
SEEDS = st.integers(0, 2**32 - 1)


def rows(count: int, seed: int, width: int = D) -> tuple[Array, Array]:
    """Correlated x (count, width) away from zero, and y about linear in it."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((count, width)) @ rng.standard_normal((width, width)) + 3
    return x, x @ rng.standard_normal((width, width)) + 0.1 * rng.standard_normal((count, width))


def moments(x: Array, y: Array, weights: Array | None = None, size: int = 1000) -> Moments:
    """Of rows taken `size` at a time."""
    found = Equations(["y"])
    for at in range(0, len(x), size):
        part = slice(at, at + size)
        found.add(x[part], [y[part]], None if weights is None else weights[part])
    return found.moments("y")


def solved(found: Moments, ridge: float = 1e-4) -> Solution:
    return solve(found, [ridge])[0]


def close(a: Solution, b: Solution, rtol: float = 1e-8) -> None:
    """Equal to rounding, in float64 and after a condition of at most some thousands."""
    for one, other in ((a.W, b.W), (a.b, b.b)):
        np.testing.assert_allclose(one, other, rtol=rtol, atol=rtol * (1 + np.abs(other).max()))


@settings(max_examples=30, deadline=None)
@given(SEEDS, st.integers(1, 50))
def test_neither_order_nor_batches_count(seed: int, size: int) -> None:
    x, y = rows(50, seed)
    order = np.random.default_rng(seed).permutation(50)
    close(solved(moments(x[order], y[order], size=size)), solved(moments(x, y)))


@settings(max_examples=30, deadline=None)
@given(SEEDS, st.lists(st.integers(0, 3), min_size=40, max_size=40))
def test_weights_are_repetitions_to_the_map_too(seed: int, counts: list[int]) -> None:
    x, y = rows(40, seed)
    weights = np.array(counts, np.float64)
    weights[:10] = 1.0
    again = np.repeat(np.arange(40), weights.astype(int))
    close(solved(moments(x, y, weights, size=7)), solved(moments(x[again], y[again])))


@settings(max_examples=20, deadline=None)
@given(SEEDS, st.integers(2, 4))
def test_data_that_stands_there_several_times_is_the_same_data(seed: int, times: int) -> None:
    x, y = rows(30, seed)
    once, often = moments(x, y), moments(np.tile(x, (times, 1)), np.tile(y, (times, 1)))
    close(solved(often), solved(once))
    assert often.rows == times * once.rows


@pytest.mark.parametrize("garbage", [0.0, 1e30, np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_what_stands_in_padding_changes_nothing(garbage: float, dtype: type) -> None:
    """To the last bit: it is not multiplied by zero, it is left out."""
    x, y = rows(40, 1)
    x, y = x.astype(dtype), y.astype(dtype)
    weights = (np.arange(40) % 3 > 0).astype(np.float64)
    found, clean = Equations(["y"]), Equations(["y"])
    is_kept = weights[:, None] > 0
    u: Array = np.where(is_kept, x, garbage).astype(dtype)
    v: Array = np.where(is_kept, y, garbage).astype(dtype)
    found.add(u, [v], weights)
    clean.add(x, [y], weights)
    a, b = solved(found.moments("y")), solved(clean.moments("y"))
    assert (a.W.tobytes(), a.b.tobytes()) == (b.W.tobytes(), b.b.tobytes())
    kept = solved(moments(x[weights > 0], y[weights > 0]))
    close(a, kept, 1e-8 if dtype is np.float64 else 1e-3)


@settings(max_examples=30, deadline=None)
@given(SEEDS, st.integers(-60, 60))
def test_units_do_not_count(seed: int, power: int) -> None:
    """x and y in other units, by 2^k: the same map, exactly; the pull is relative to tr(Cxx)."""
    x, y = rows(40, seed)
    scale = 2.0**power
    for ridge in (1e-6, 1e-2, 1.0):
        plain, scaled = solved(moments(x, y), ridge), solved(moments(scale * x, scale * y), ridge)
        close(Solution(scaled.W, scaled.b / scale, ridge, 0, 0, 0.0), plain, 1e-9)
        assert scaled.rank == plain.rank


def test_without_a_ridge_channels_may_have_units_of_their_own() -> None:
    """x S gives S^-1 W: what the map makes is the same. With a pull it cannot be."""
    x, y = rows(60, 3)
    S = np.diag([1e-2, 1.0, 10.0, 100.0])
    plain, scaled = (solve(moments(a, y), [0.0])[0] for a in (x, x @ S))
    np.testing.assert_allclose(x @ S @ scaled.W + scaled.b, x @ plain.W + plain.b, rtol=1e-6)
    pulled = [solved(moments(a, y), 0.1) for a in (x, x @ S)]
    assert np.abs(S @ pulled[1].W - pulled[0].W).max() > 1e-2


@settings(max_examples=30, deadline=None)
@given(SEEDS, st.integers(1, D))
def test_where_x_does_not_vary_the_map_is_as_it_was(seed: int, rank: int) -> None:
    """Of a stream of lower rank W is found where there is variance, and stays W0 elsewhere."""
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(rng.standard_normal((D, D)))[0]
    x = rng.standard_normal((60, rank)) @ basis[:, :rank].T + rng.standard_normal(D)
    W = rng.standard_normal((D, D))
    found = solved(moments(x, x @ W), 1e-9)
    assert found.rank == rank
    np.testing.assert_allclose(x @ found.W + found.b, x @ W, atol=1e-5)
    idle = basis[:, rank:].T
    np.testing.assert_allclose(idle @ found.W, idle, atol=1e-3)


@pytest.mark.parametrize("spread", [1e-20, 1e-10, 1e-5])
def test_a_channel_that_hardly_varies(spread: float) -> None:
    """Whatever its variance is next to the others', the map is finite and no worse than without."""
    x, y = rows(80, 5)
    x = x - x.mean(0)
    x[:, 2] *= spread / x[:, 2].std()
    rest = solved(moments(np.delete(x, 2, 1), np.delete(y, 2, 1)))
    for found in solve(moments(x, y)):
        assert np.isfinite(found.W).all()
        assert np.isfinite(found.b).all()
    best = solve(moments(x, y))[0]
    errors = [
        np.square(y[:, [0, 1, 3]] - made).sum()
        for made in (
            (x @ best.W + best.b)[:, [0, 1, 3]],
            np.delete(x, 2, 1) @ rest.W + rest.b,
        )
    ]
    assert errors[0] <= 1.01 * errors[1]


def test_a_stream_of_tiny_variance_is_solved_in_its_own_scale() -> None:
    """Variance 1e-20 all over: the same map as of the stream 1e10 times as large."""
    x, y = rows(60, 6)
    x, y = x - x.mean(0), y - y.mean(0)
    close(solved(moments(1e-10 * x, 1e-10 * y)), solved(moments(x, y)), 1e-8)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("ridge", RIDGES)
def test_one_huge_row_is_one_row(dtype: type, ridge: float) -> None:
    """A row a million times as large rules the moments, as least squares must have it: it is met,
    and W is finite and no larger than what made it."""
    x, y = rows(60, 7)
    W = np.linalg.lstsq(x, y, rcond=None)[0]
    y = x @ W
    x[0], y[0] = 1e6 * x[0], 1e6 * y[0]
    found = solved(moments(x.astype(dtype), y.astype(dtype)), ridge)
    assert np.linalg.norm(found.W) < 2 * np.linalg.norm(W) + np.sqrt(D)
    if ridge <= 1e-4:
        np.testing.assert_allclose(x[0] @ found.W + found.b, y[0], rtol=1e-3)


@pytest.mark.parametrize("count", [1, 2, D - 1, D])
def test_fewer_rows_than_channels(count: int) -> None:
    """The rows are met, the rank is stated, and what they say nothing of stays as it was."""
    x, y = rows(count, 8)
    for ridge in RIDGES:
        found = solved(moments(x, y), ridge)
        assert np.isfinite(found.W).all()
        assert found.rank <= count - 1
        assert found.rows == count
    found = solved(moments(x, y), 1e-10)
    np.testing.assert_allclose(x @ found.W + found.b, y, atol=1e-3 * np.abs(y).max())
    if count == 1:
        np.testing.assert_allclose(found.W, np.eye(D))


def test_the_ridge_is_found_whatever_the_units_and_the_order() -> None:
    x, y = rows(12, 9)
    held_x, held_y = rows(300, 9)
    order: Sequence[int] = np.random.default_rng(0).permutation(12).tolist()
    plain = solve_held_out(moments(x, y), moments(held_x, held_y))
    turned = solve_held_out(moments(x[order], y[order]), moments(held_x, held_y, size=17))
    scaled = solve_held_out(moments(8 * x, 8 * y), moments(8 * held_x, 8 * held_y))
    assert plain.ridge == turned.ridge == scaled.ridge


@pytest.mark.parametrize("garbage", [np.nan, np.inf])
def test_padding_counts_in_no_statistic_of_a_sweep(garbage: float) -> None:
    """Means over a sample and cosines included."""
    rng = np.random.default_rng(4)
    x, y = (rng.standard_normal((3, 5, D)).astype(np.float32) for _ in range(2))
    mask = np.ones((3, 5))
    mask[0, 2:], mask[2, 4:] = 0, 0
    pair = Pair("x", "y", -1)
    dirty = [np.where(mask[:, :, None] > 0, a, np.float32(garbage)) for a in (x, y)]
    found, clean = Statistics([pair]), Statistics([pair])
    found.add(dict(zip("xy", dirty, strict=True)), mask)
    clean.add({"x": x, "y": y}, mask)
    assert found.cosine(pair) == clean.cosine(pair)
    assert found.moments(pair).Cxy.tobytes() == clean.moments(pair).Cxy.tobytes()
    np.testing.assert_array_equal(pooled_mean(dirty[0], -1, mask), pooled_mean(x, -1, mask))


def test_nan_and_inf_are_named_by_value_and_sample() -> None:
    fine = np.ones((3, 5, D), np.float32)
    mask = np.ones((3, 5))
    mask[1, 4] = 0
    statistics, samples = Statistics([Pair("x", "y", -1)]), np.array([7, 11, 40])
    for at, said in (((1, 4), None), ((1, 3), 11), ((2, 0), 40)):
        broken = fine.copy()
        broken[at] = np.inf
        if said is None:
            statistics.add({"x": fine, "y": broken}, mask, samples)
            continue
        with pytest.raises(
            BadInput, match=f"inner value 'y' holds NaN or Inf .* in sample {said};"
        ):
            statistics.add({"x": fine, "y": broken}, mask, samples)
