"""Max-sliced Wasserstein: POT's value, planted moves, what it cannot see, and gradients."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import ot
import pytest
import torch
from numpy.typing import NDArray

from blockfold.calibration.metrics.sliced_wasserstein import (
    improved_directions,
    lacoot_order,
    max_sliced_wasserstein,
    random_directions,
)
from blockfold.ir.errors import BadInput

Array = NDArray[np.float64]

RNG = np.random.default_rng(0)
X = RNG.standard_normal((24, 7))
Y = np.tanh(X @ RNG.standard_normal((7, 7))) + 0.5


def msw(x: Any, y: Any, directions: Any = None, **options: Any) -> float:
    return float(max_sliced_wasserstein(x, y, directions, **options))


@pytest.mark.parametrize("count", [1, 10, 50])
def test_it_is_that_of_pot(count: int) -> None:
    directions = random_directions(X, count, seed=count)
    theirs = ot.sliced.max_sliced_wasserstein_distance(X, Y, projections=directions, p=2)
    assert msw(X, Y, directions) == pytest.approx(float(theirs), rel=1e-12)


def test_directions_are_unit_vectors_of_every_kind() -> None:
    directions = random_directions(X, 4000, seed=0)
    np.testing.assert_allclose(np.linalg.norm(directions, axis=0), 1.0, rtol=1e-12)
    np.testing.assert_allclose(directions @ directions.T / 4000, np.eye(7) / 7, atol=0.02)
    np.testing.assert_array_equal(random_directions(X, 5, 3), random_directions(X, 5, 3))
    assert not np.array_equal(random_directions(X, 5), random_directions(X, 5))


def test_directions_of_tensors_follow_the_seed_given_or_that_of_torch() -> None:
    x = torch.tensor(X)
    np.testing.assert_allclose(random_directions(x, 5, 3), random_directions(X, 5, 3), rtol=1e-12)
    torch.manual_seed(1)
    first, second = random_directions(x, 5), random_directions(x, 5)
    torch.manual_seed(1)
    assert torch.equal(random_directions(x, 5), first) and not torch.equal(first, second)


def test_a_shift_is_seen_along_its_own_direction() -> None:
    shift = np.array([3.0, 0, 4, 0, 0, 0, 0])
    along, across = (shift / 5)[:, None], np.eye(7)[:, 1:2]
    assert msw(X, X + shift, along) == pytest.approx(5.0)
    assert msw(X, X + shift, across) == pytest.approx(0.0, abs=1e-12)
    assert msw(X, X + shift, np.hstack([across, along])) == pytest.approx(5.0)


def test_ascent_finds_a_shift_whole() -> None:
    rng = np.random.default_rng(1)
    x, shift = rng.standard_normal((30, 400)), rng.standard_normal(400)
    length = float(np.linalg.norm(shift))
    guessed = msw(x, x + shift, seed=0)
    assert guessed < 0.3 * length
    assert msw(x, x + shift, seed=0, count=5, steps=3) == pytest.approx(length, rel=1e-9)


def test_ascent_makes_no_direction_worse() -> None:
    start = random_directions(X, 30, seed=2)
    ends = [improved_directions(X, Y, start, steps=steps) for steps in (0, 1, 10)]
    values = [np.array([msw(X, Y, end[:, k : k + 1]) for k in range(30)]) for end in ends]
    assert (values[1] >= values[0]).all() and (values[2] >= values[1]).all()
    assert values[2].max() > values[0].max()
    np.testing.assert_allclose(np.linalg.norm(ends[2], axis=0), 1.0, rtol=1e-9)
    many = random_directions(X, 20_000, seed=3)
    assert values[2].max() >= msw(X, Y, many) * 0.999


def test_ascent_keeps_the_best_place_where_a_step_leads_down() -> None:
    for seed in range(40):
        rng = np.random.default_rng(seed)
        x, y = rng.standard_normal((2, 5, 3))
        start = random_directions(x, 10, seed)
        end = improved_directions(x, y, start, steps=1)
        for k in range(10):
            assert msw(x, y, end[:, k : k + 1]) >= msw(x, y, start[:, k : k + 1])


def test_a_step_of_ascent_goes_along_the_gradient() -> None:
    start = random_directions(X, 6, seed=7)
    theta = torch.tensor(start, requires_grad=True)
    gaps = (torch.tensor(X) @ theta).sort(0).values - (torch.tensor(Y) @ theta).sort(0).values
    (slope,) = torch.autograd.grad(gaps.square().mean(0).sum(), theta)
    expected = slope / slope.norm(dim=0)
    found = improved_directions(X, Y, start, steps=1)
    moved = ~np.isclose(found, start).all(axis=0)
    assert moved.any()
    np.testing.assert_allclose(found[:, moved], expected.numpy()[:, moved], rtol=1e-9)


def test_random_directions_see_less_of_a_move_in_many_dimensions_unless_scaled() -> None:
    plain, scaled = [], []
    for d in (16, 1024):
        rng = np.random.default_rng(d)
        x, shift = rng.standard_normal((20, d)), rng.standard_normal(d)
        shift /= np.linalg.norm(shift)
        plain.append(msw(x, x + shift, seed=1))
        scaled.append(msw(x, x + shift, seed=1, dimension_scale=True))
    assert plain[0] > 4 * plain[1]
    assert scaled[1] == pytest.approx(scaled[0], rel=0.5)
    assert plain[1] == pytest.approx(math.sqrt(2 * math.log(50) / 1024), rel=0.4)


def test_a_relative_distance_does_not_fall_when_all_shrinks() -> None:
    x, y = np.random.default_rng(11).standard_normal((2, 40, 6))
    directions = random_directions(x, 20, seed=0)
    plain = [max_sliced_wasserstein(s * x, s * y, directions) for s in (1.0, 1e-3)]
    relative = [max_sliced_wasserstein(s * x, s * y, directions, relative=True) for s in (1, 1e-3)]
    assert plain[1] == pytest.approx(1e-3 * plain[0])
    assert relative[1] == pytest.approx(relative[0])
    assert relative[0] == pytest.approx(plain[0] / np.sqrt(x.var(axis=0).mean()))


def test_relative_to_what_never_varies_is_the_distance_itself() -> None:
    x = torch.ones(10, 4, requires_grad=True)
    y = x * torch.arange(10.0)[:, None]
    found = max_sliced_wasserstein(x, y, seed=0, relative=True)
    torch.testing.assert_close(found, max_sliced_wasserstein(x, y, seed=0))
    torch.autograd.backward(found)
    assert x.grad is not None and bool(torch.isfinite(x.grad).all())


def test_the_identity_and_any_other_order_of_rows_are_at_no_distance() -> None:
    assert msw(X, X, seed=0) == 0.0
    assert msw(X, X[::-1].copy(), seed=0) == pytest.approx(0.0, abs=1e-12)
    assert msw(X, Y, seed=0) > 0.1
    assert msw(X, Y, seed=0) == pytest.approx(msw(Y, X, seed=0))
    assert msw(3 * X, 3 * Y, seed=0) == pytest.approx(3 * msw(X, Y, seed=0))


@pytest.mark.parametrize("steps", [0, 5])
def test_tensors_agree_with_arrays(steps: int) -> None:
    for dtype in (np.float32, np.float64):
        x, y = X.astype(dtype), Y.astype(dtype)
        tensors = torch.from_numpy(x), torch.from_numpy(y)
        ours, theirs = msw(x, y, seed=4, steps=steps), msw(*tensors, seed=4, steps=steps)
        assert theirs == pytest.approx(ours, abs=1e-6)


def test_narrow_types_are_widened() -> None:
    x, y = torch.tensor(X, dtype=torch.bfloat16), torch.tensor(Y, dtype=torch.bfloat16)
    found = max_sliced_wasserstein(x, y, seed=0)
    assert found.dtype == torch.float32
    assert float(found) == pytest.approx(msw(X, Y, seed=0), rel=0.02)
    mixed = max_sliced_wasserstein(torch.tensor(X), y, seed=0)
    assert mixed.dtype == torch.float64


@pytest.mark.parametrize("steps", [0, 3])
def test_gradients(steps: int) -> None:
    directions = torch.tensor(random_directions(X[:6, :4], 3, seed=5))
    if steps:
        x, y = torch.tensor(X[:6, :4]), torch.tensor(Y[:6, :4])
        directions = improved_directions(x, y, directions, steps=steps)
    inputs = [torch.tensor(z[:6, :4], requires_grad=True) for z in (X, Y)]
    assert torch.autograd.gradcheck(lambda a, b: max_sliced_wasserstein(a, b, directions), inputs)


def test_the_gradient_at_no_distance_is_0() -> None:
    x = torch.tensor(X, requires_grad=True)
    max_sliced_wasserstein(x, torch.tensor(X), seed=0).backward()
    assert x.grad is not None and bool((x.grad == 0).all())


def test_descent_brings_distributions_together() -> None:
    y = torch.tensor(Y, requires_grad=True)
    x = torch.tensor(X)
    torch.manual_seed(0)
    optimiser = torch.optim.SGD([y], lr=2.0)
    for _ in range(150):
        optimiser.zero_grad()
        max_sliced_wasserstein(x, y, steps=2, seed=None).backward()
        optimiser.step()
    assert msw(x, y.detach(), seed=9) < 0.4 * msw(X, Y, seed=9)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_cuda_agrees() -> None:
    x, y = torch.tensor(X, device="cuda", requires_grad=True), torch.tensor(Y, device="cuda")
    found = max_sliced_wasserstein(x, y, seed=6, steps=3)
    found.backward()
    assert found.is_cuda and random_directions(x, 5).is_cuda
    assert float(found.detach()) == pytest.approx(msw(X, Y, seed=6, steps=3), abs=1e-6)


def test_the_order_of_removal() -> None:
    assert lacoot_order([0.5, 0.1, 0.3, 0.1]) == (1, 3, 2, 0)
    assert lacoot_order([]) == ()
    with pytest.raises(BadInput, match="NaN"):
        lacoot_order([0.5, float("nan")])


def test_what_cannot_be_compared() -> None:
    with pytest.raises(BadInput, match=r"shape \(24, 7\) and an output of shape \(24, 6\)"):
        max_sliced_wasserstein(X, Y[:, :6])
    with pytest.raises(BadInput, match=r"directions of shape \(6, 2\) for 7 features"):
        max_sliced_wasserstein(X, Y, np.zeros((6, 2)))
    with pytest.raises(BadInput, match="0 directions"):
        random_directions(X, 0)
