"""Normal equations: the same as least squares on the rows themselves, however they came."""

from __future__ import annotations

import numpy as np
import pytest

from blockfold.calibration.equations import Equations
from blockfold.calibration.features import Feature, as_rows, from_rows, patches, rows_of
from blockfold.calibration.solve import solve
from blockfold.ir.errors import BadInput
from blockfold.ir.windows import Window

RNG = np.random.default_rng(3)
X = RNG.standard_normal((60, 4)) * [1, 3, 0.2, 1] + 5
Y = X @ RNG.standard_normal((4, 2)) + 0.3 * RNG.standard_normal((60, 2))
PICKED = np.arange(60) % 7 == 0


def gathered(batches: int, picked: bool = True) -> Equations:
    found = Equations(["y"])
    for at in np.array_split(np.arange(60), batches):
        found.add(X[at], [Y[at]], None, PICKED[at] if picked else None)
    return found


@pytest.mark.parametrize("emphasis", [1.0, 5.0])
def test_emphasis_is_as_if_rows_stood_there_several_times(emphasis: float) -> None:
    counts = np.where(PICKED, int(emphasis), 1)
    many = np.repeat(X, counts, axis=0), np.repeat(Y, counts, axis=0)
    ones = np.hstack([many[0], np.ones((len(many[0]), 1))])
    expected = np.linalg.lstsq(ones, many[1], rcond=None)[0]
    moments = gathered(4).moments("y", emphasis)
    found = solve(moments, [1e-13], np.zeros((4, 2)))[0]
    np.testing.assert_allclose(found.W, expected[:4], atol=1e-8)
    np.testing.assert_allclose(found.b, expected[4], atol=1e-7)
    residual = float(np.square(many[1] - ones @ expected).sum() / len(ones))
    assert moments.error(found.W, found.b) == pytest.approx(residual, rel=1e-8)


def test_emphasis_changes_the_solution() -> None:
    one, other = (gathered(1).moments("y", weight).Cxy for weight in (1.0, 5.0))
    assert np.abs(one - other).max() > 1e-3


def test_shards_merge_to_the_whole() -> None:
    whole, parts = gathered(1), [Equations(["y"]), Equations(["y"])]
    for part, at in zip(parts, (slice(0, 25), slice(25, 60)), strict=True):
        part.add(X[at], [Y[at]], None, PICKED[at])
    merged = parts[0].merged(parts[1]).moments("y", 3.0)
    for name in ("Cxx", "Cxy", "Cyy", "mean_x", "mean_y"):
        expected = getattr(whole.moments("y", 3.0), name)
        np.testing.assert_allclose(getattr(merged, name), expected, rtol=1e-10, atol=1e-12)
    with pytest.raises(ValueError, match="different targets"):
        parts[0].merged(Equations(["z"]))


def test_no_weight_is_refused() -> None:
    empty = Equations(["y"])
    empty.add(X, [Y], np.zeros(60))
    with pytest.raises(BadInput, match="hides every row"):
        empty.moments("y")


@pytest.mark.parametrize(
    "window",
    [
        Window((3, 3), (1, 1), (1, 1, 1, 1), (1, 1)),
        Window((3, 2), (2, 1), (0, 1, 2, 0), (1, 2)),
    ],
)
def test_patches_are_what_a_convolution_multiplies(window: Window) -> None:
    torch = pytest.importorskip("torch")
    maps = RNG.standard_normal((2, 3, 7, 8)).astype(np.float32)
    kernel = RNG.standard_normal((5, 3, *window.kernel)).astype(np.float32)
    top, left, bottom, right = window.pads
    padded = torch.nn.functional.pad(torch.from_numpy(maps), (left, right, top, bottom))
    expected = torch.nn.functional.conv2d(
        padded, torch.from_numpy(kernel), stride=window.strides, dilation=window.dilations
    ).numpy()
    found = patches(maps, window) @ kernel.reshape(5, -1).T
    np.testing.assert_allclose(found, as_rows(expected, 1), atol=1e-4)


@pytest.mark.parametrize(("shape", "axis"), [((2, 5, 3), -1), ((2, 3, 4, 5), 1)])
def test_rows_go_back_to_where_they_came_from(shape: tuple[int, ...], axis: int) -> None:
    array = RNG.standard_normal(shape)
    np.testing.assert_array_equal(from_rows(as_rows(array, axis), shape, axis), array)


def test_a_pooled_mean_leaves_padding_out() -> None:
    array = RNG.standard_normal((2, 4, 3))
    mask = np.array([[1, 1, 0, 0], [1, 1, 1, 1]], np.float64)
    found = rows_of(Feature("x", -1, pooled=True), array, mask).reshape(2, 4, 3)
    np.testing.assert_allclose(found[0], np.tile(array[0, :2].mean(0), (4, 1)))
    np.testing.assert_allclose(found[1], np.tile(array[1].mean(0), (4, 1)))
    unmasked = rows_of(Feature("x", -1, pooled=True), array).reshape(2, 4, 3)
    assert np.abs(unmasked[0] - found[0]).max() > 0.1


@pytest.mark.parametrize(
    ("feature", "shape"),
    [
        (Feature("x", -1), (3, 4, 5)),
        (Feature("x", 1), (3, 5, 4, 2)),
        (Feature("x", 1, pooled=True), (3, 5, 4, 2)),
        (Feature("x", 1, Window((3, 3), (1, 1), (1, 1, 1, 1), (1, 1))), (3, 5, 4, 4)),
        (Feature("x", 1, Window((3, 3), (2, 2), (1, 1, 1, 1), (1, 1))), (3, 5, 4, 4)),
    ],
)
@pytest.mark.parametrize("contiguous", [True, False])
def test_chosen_rows_are_those_of_all_rows(
    feature: Feature, shape: tuple[int, ...], contiguous: bool
) -> None:
    array = RNG.standard_normal(shape)
    array = array if contiguous else np.asfortranarray(array)
    rows = rows_of(feature, array)
    chosen = np.array([0, 2, 5, len(rows) - 1])
    np.testing.assert_array_equal(rows_of(feature, array, None, chosen), rows[chosen])
