"""Canonical correlations and the bound on the affine error: against QR and the solver."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blockfold.calibration.metrics.cca import Canonical, canonical_correlations, nbl_bound
from blockfold.calibration.moments import Array, Centred, CoMoment, Moments
from blockfold.calibration.solve import solve


def moments_of(x: Array, y: Array) -> Moments:
    a, b = Centred.of(x), Centred.of(y)
    return Moments.of(CoMoment.of(a, a), CoMoment.of(a, b), CoMoment.of(b, b))


def optimal(moments: Moments) -> float:
    """The normalised error of the solver's map without ridge, on the rows it was solved on."""
    dx, dy = moments.Cxy.shape
    best = solve(moments, [0.0], prior=np.zeros((dx, dy)))[0]
    return moments.error(best.W, best.b) / moments.variance


def literal(x: Array, y: Array) -> Array:
    """Canonical correlations from the rows: cosines between the two column spaces."""
    bases = [np.linalg.qr(z - z.mean(0))[0] for z in (x, y)]
    return np.linalg.svd(bases[0].T @ bases[1], compute_uv=False)


def pair(seed: int, dx: int, dy: int, rank: int, noise: float) -> tuple[Array, Array]:
    """y tells `rank` directions of x, its features of very different variance."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((60, dx)) @ rng.standard_normal((dx, dx))
    told = x @ rng.standard_normal((dx, rank)) @ rng.standard_normal((rank, dy))
    y = told + noise * rng.standard_normal((60, dy))
    return x + 5.0, y * np.geomspace(1.0, 30.0, dy) - 2.0


def test_they_are_the_cosines_between_column_spaces() -> None:
    x, y = pair(0, 5, 4, 3, 2.0)
    found = canonical_correlations(moments_of(x, y))
    np.testing.assert_allclose(found, literal(x, y), atol=1e-9)
    assert (np.diff(found) <= 0).all() and found[0] <= 1.0


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 7),
    st.integers(1, 7),
    st.integers(1, 7),
    st.sampled_from([0.0, 1e-3, 1.0, 30.0]),
)
def test_the_bound_holds_and_the_weighted_sum_is_the_error(
    seed: int, dx: int, dy: int, rank: int, noise: float
) -> None:
    moments = moments_of(*pair(seed, dx, dy, rank, noise))
    error, canonical = optimal(moments), Canonical.of(moments)
    assert nbl_bound(moments) == canonical.error == pytest.approx(error, abs=1e-7)
    assert nbl_bound(moments) >= error - 1e-9
    assert canonical.worst >= canonical.error - 1e-12
    published = float((1 - canonical.correlations**2).sum()) + canonical.rest
    assert canonical.worst <= published + 1e-12
    assert 0.0 <= canonical.error <= 1.0 and 0.0 <= canonical.worst <= 1.0
    if noise == 0.0:
        assert error < 1e-7 and canonical.worst < 1e-6


def test_it_tells_a_block_that_is_nearly_affine_from_one_that_is_not() -> None:
    near, far = (nbl_bound(moments_of(*pair(1, 6, 6, 6, noise))) for noise in (0.05, 10.0))
    assert near < 0.01 < 0.2 < far


def test_shares_and_variances_are_all_of_y() -> None:
    canonical = Canonical.of(moments_of(*pair(2, 3, 6, 3, 1.0)))
    assert len(canonical.correlations) == 6
    assert (canonical.correlations[3:] == 0).all()
    assert canonical.shares.sum() == pytest.approx(1.0)
    assert canonical.variances.sum() == pytest.approx(1.0)
    assert canonical.rest == pytest.approx(0.0, abs=1e-12)


def test_affine_maps_of_either_side_change_no_correlation() -> None:
    x, y = pair(3, 4, 4, 4, 2.0)
    A, B = np.random.default_rng(4).standard_normal((2, 4, 4))
    found = canonical_correlations(moments_of(x @ A - 7, y @ B + 3))
    np.testing.assert_allclose(found, literal(x, y), atol=1e-9)


def test_a_rotation_of_y_changes_no_error() -> None:
    x, y = pair(5, 4, 4, 2, 2.0)
    Q, _ = np.linalg.qr(np.random.default_rng(6).standard_normal((4, 4)))
    plain, turned = (Canonical.of(moments_of(x, z)) for z in (y, y @ Q))
    assert turned.error == pytest.approx(plain.error, rel=1e-9)
    assert turned.worst == pytest.approx(plain.worst, rel=1e-9)


def test_what_x_tells_nothing_of_has_error_1() -> None:
    x, y = pair(7, 3, 3, 3, 0.0)
    moments = moments_of(np.ones_like(x), y)
    assert (canonical_correlations(moments) == 0).all()
    assert Canonical.of(moments).error == pytest.approx(1.0)
    assert nbl_bound(moments) == pytest.approx(1.0)


def test_a_constant_y_has_nothing_to_explain() -> None:
    moments = moments_of(pair(8, 3, 3, 3, 0.0)[0], np.full((60, 2), 4.0))
    assert len(canonical_correlations(moments)) == 0
    assert nbl_bound(moments) == 0.0


def test_features_that_repeat_are_cut_not_divided_by() -> None:
    x, y = pair(9, 4, 4, 4, 1.0)
    twice = moments_of(np.hstack([x, x]), np.hstack([y, -y]))
    once = moments_of(x, y)
    found = canonical_correlations(twice)
    np.testing.assert_allclose(found, canonical_correlations(once), atol=1e-7)
    assert Canonical.of(twice).error == pytest.approx(optimal(once), rel=1e-6)
    assert Canonical.of(twice).worst == pytest.approx(Canonical.of(once).worst, rel=1e-6)


def test_the_bound_of_known_correlations() -> None:
    rho = np.array([0.9, 0.5])
    moments = Moments(100, np.zeros(2), np.zeros(2), np.eye(2), np.diag(rho), np.eye(2))
    assert nbl_bound(moments) == pytest.approx((0.19 + 0.75) / 2)
    # y's loud feature told well, its quiet one badly, and the worst case that has both correlations
    loud = np.diag([2.0, 1.0])
    told = Moments(100, np.zeros(2), np.zeros(2), np.eye(2), np.diag(rho) @ loud, loud @ loud)
    assert nbl_bound(told) == pytest.approx((4 * 0.19 + 1 * 0.75) / 5)
    assert Canonical.of(told).worst == pytest.approx((4 * 0.75 + 1 * 0.19) / 5)
