"""The solver: planted maps are recovered, the identity is the limit, errors are what they claim."""

from __future__ import annotations

import numpy as np
import pytest

from blockfold.calibration.moments import Array, Centred, CoMoment, Moments
from blockfold.calibration.solve import LEAST_RIDGE, RIDGES, solve, solve_held_out

D = 5


def moments_of(x: Array, y: Array) -> Moments:
    a, b = Centred.of(x), Centred.of(y)
    return Moments.of(CoMoment.of(a, a), CoMoment.of(a, b), CoMoment.of(b, b))


def planted(
    rows: int = 200, noise: float = 0.0, seed: int = 0
) -> tuple[Array, Array, Array, Array]:
    """x, y = x W + b + noise, W, b."""
    rng = np.random.default_rng(7)
    W, b = rng.standard_normal((D, D)), rng.standard_normal(D) * 4
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rows, D)) * (1, 2, 3, 0.5, 1) + 2
    return x, x @ W + b + noise * rng.standard_normal((rows, D)), W, b


def test_a_planted_map_is_recovered() -> None:
    x, y, W, b = planted()
    (found,) = solve(moments_of(x, y), [1e-12])
    np.testing.assert_allclose(found.W, W, atol=1e-8)
    np.testing.assert_allclose(found.b, b, atol=1e-8)
    assert found.rank == D
    assert found.condition == pytest.approx(np.linalg.cond(np.cov(x.T)), rel=1e-8)


def test_without_a_ridge_it_is_least_squares() -> None:
    x, y, _, _ = planted(noise=1.0)
    (found,) = solve(moments_of(x, y), [0.0])
    ones = np.hstack([x, np.ones((len(x), 1))])
    wanted = np.linalg.lstsq(ones, y, rcond=None)[0]
    np.testing.assert_allclose(np.vstack([found.W, found.b]), wanted, atol=1e-10)


@pytest.mark.parametrize("ridge", [1e-6, 0.1, 3.0])
def test_a_ridge_solves_the_equation_of_the_module(ridge: float) -> None:
    x, y, _, _ = planted(noise=1.0)
    moments = moments_of(x, y)
    (found,) = solve(moments, [ridge])
    pull = ridge * np.trace(moments.Cxx) / D * np.eye(D)
    np.testing.assert_allclose(
        (moments.Cxx + pull) @ found.W, moments.Cxy + pull, rtol=1e-9, atol=1e-9
    )
    np.testing.assert_allclose(found.b, y.mean(0) - x.mean(0) @ found.W, rtol=1e-12)


def test_a_great_ridge_gives_the_identity() -> None:
    x, y, _, _ = planted(noise=1.0)
    far, farther = solve(moments_of(x, y), [1e3, 1e9])
    assert np.abs(farther.W - np.eye(D)).max() < 1e-7
    assert np.abs(far.W - np.eye(D)).max() > 1e-4
    np.testing.assert_allclose(farther.b, y.mean(0) - x.mean(0), atol=1e-6)


def test_a_rank_deficient_stream_stays_finite_and_fits() -> None:
    """Two channels are copies, one never varies: x has rank 3."""
    x, _, W, b = planted()
    x[:, 1], x[:, 4] = x[:, 0], 7.0
    y = x @ W + b
    for found in solve(moments_of(x, y)):
        assert np.isfinite(found.W).all()
        assert np.isfinite(found.b).all()
        assert found.rank == 3
        assert np.isfinite(found.condition)
    first = solve(moments_of(x, y), [1e-10])[0]
    np.testing.assert_allclose(x @ first.W + first.b, y, atol=1e-6)


def test_a_stream_that_never_varies_gives_the_mean() -> None:
    x = np.full((20, D), 3.0)
    y = np.random.default_rng(0).standard_normal((20, D))
    (found,) = solve(moments_of(x, y), [1e-3])
    assert (found.rank, found.condition) == (0, float("inf"))
    np.testing.assert_allclose(x @ found.W + found.b, np.tile(y.mean(0), (20, 1)), atol=1e-12)


def test_the_predicted_error_is_the_error_on_held_out_rows() -> None:
    x, y, _, _ = planted(noise=0.5)
    held_x, held_y, _, _ = planted(80, noise=0.5, seed=9)
    for found in solve(moments_of(x, y)):
        direct = np.square(held_y - held_x @ found.W - found.b).sum(1).mean()
        assert moments_of(held_x, held_y).error(found.W, found.b) == pytest.approx(direct, rel=1e-9)


def test_the_ridge_of_least_held_out_error_is_chosen() -> None:
    """y is x plus noise and rows are few: pulling towards the identity must help."""
    rng = np.random.default_rng(2)
    x, held = rng.standard_normal((8, D)), rng.standard_normal((500, D))
    y, held_y = (a + rng.standard_normal(a.shape) for a in (x, held))
    fit, select = moments_of(x, y), moments_of(held, held_y)
    chosen = solve_held_out(fit, select)
    errors = {s.ridge: select.error(s.W, s.b) for s in solve(fit)}
    assert chosen.ridge == min(errors, key=lambda ridge: errors[ridge])
    assert chosen.ridge == max(RIDGES)
    smooth = solve_held_out(moments_of(*planted()[:2]), moments_of(*planted()[:2]))
    assert smooth.ridge == min(RIDGES)


def test_widths_that_differ_have_no_identity() -> None:
    x, y, _, _ = planted()
    with pytest.raises(ValueError, match="5 channels and y 3"):
        solve(moments_of(x, y[:, :3]))


def flat_direction(rows: int = 400, seed: int = 0) -> tuple[Array, Array]:
    """x whose last channel hardly varies, and y that this channel tells a little of."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rows, D))
    weak = 0.2 * rng.standard_normal(rows)
    x[:, -1] = 0.005 * weak
    return x, x[:, :-1] @ np.ones((D - 1, D)) + weak[:, None] + rng.standard_normal((rows, D))


def test_weights_do_not_grow_for_a_little_less_error() -> None:
    """The smallest ridge of all is best by a few percent, with weights of 200."""
    fit, held = (moments_of(*flat_direction(seed=seed)) for seed in (0, 1))
    errors = {found.ridge: held.error(found.W, found.b) for found in solve(fit, RIDGES)}
    assert min(errors, key=errors.__getitem__) < LEAST_RIDGE
    (loose,) = solve(fit, [1e-6])
    assert np.abs(loose.W).max() > 50
    chosen = solve_held_out(fit, held, least=LEAST_RIDGE)
    assert chosen.ridge >= LEAST_RIDGE
    assert np.abs(chosen.W).max() < 25
    assert held.error(chosen.W, chosen.b) < 1.1 * min(errors.values())


def test_an_exact_map_has_its_weights_whatever_their_size() -> None:
    x, _ = flat_direction()
    x[:, -1] *= 10
    y = x.copy()
    y[:, 0] += 200 * x[:, -1]
    chosen = solve_held_out(moments_of(x, y), moments_of(x, y), least=LEAST_RIDGE)
    assert chosen.ridge < LEAST_RIDGE
    assert chosen.W[-1, 0] == pytest.approx(200, rel=0.1)
