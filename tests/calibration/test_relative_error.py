"""The error of rows against a truth."""

from __future__ import annotations

import numpy as np
import pytest

from blockfold.calibration.relative_error import RelativeError


def test_the_error_is_a_share_of_the_variance_and_leaves_padding_out() -> None:
    rng = np.random.default_rng(0)
    truth = rng.standard_normal((60, 4)) + 5.0
    made = truth + 0.1 * rng.standard_normal((60, 4))
    padding = np.repeat([1.0, 0.0], [40, 20])
    error = RelativeError()
    for rows in (slice(0, 25), slice(25, 60)):
        error.add(truth[rows], np.where(padding[rows, None] > 0, made[rows], 1e6), padding[rows])
    expected = np.square(made[:40] - truth[:40]).sum() / (40 * truth[:40].var(0).sum())
    assert error.value == pytest.approx(expected)


def test_a_truth_without_variance_has_its_plain_squared_error() -> None:
    error = RelativeError()
    error.add(np.ones((5, 2)), np.full((5, 2), 1.5), None)
    assert error.value == pytest.approx(0.5)
