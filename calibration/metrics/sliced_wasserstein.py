"""Max-sliced Wasserstein distance: how far a block moves the distribution of its input.

    MSW(x, y) = max over directions theta of W_2(x theta, y theta)
    W_2^2(u, v) = 1/n sum_i (u_(i) - v_(i))^2,   u_(i), v_(i) sorted

x and y (n, D) are a block's input and output over a batch, further axes flattened. Range [0, inf);
nearer 0 is more redundant. It depends on scale: compare blocks of one model, never models.

It compares distributions, not pairs: the same rows in another order are at distance 0, so that a
low value alone does not mean that the block is the identity.

Directions are unit vectors, the columns of an array (D, K): given, drawn at random (published: 50,
anew each step), or improved from random ones by steps up the gradient. The best of K random
directions sees only about sqrt(2 ln K / D) of a move, less where D is larger; `dimension_scale`
multiplies by sqrt(D), so that moves of equal length weigh the same in blocks of different D.
Improved directions see the whole move and need no scale.

`relative` divides by the root of the mean variance of x's features, what x spreads along an average
direction. Then a block's distance does not fall when its input shrinks as a whole.
Source: LaCoOT, arXiv 2406.08933.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from array_api_compat import is_torch_array

from ...ir.errors import BadInput
from .arrays import AnyArray, fixed, flat_rows, namespace, safe_root

DIRECTIONS = 50


def max_sliced_wasserstein(
    x: AnyArray,
    y: AnyArray,
    directions: AnyArray | None = None,
    *,
    count: int = DIRECTIONS,
    seed: int | None = None,
    steps: int = 0,
    dimension_scale: bool = False,
    relative: bool = False,
) -> AnyArray:
    """Of x and y, both (n, ...) of one shape: a scalar array.

    `directions` (D, K) are used as they are; without them `count` are drawn (see
    `random_directions`). `steps` of ascent improve either (see `improved_directions`); the gradient
    of the distance takes directions as constants. An x that never varies is `relative` to 1.
    """
    x, y = _pair(x, y)
    xp = namespace(x, y)
    if directions is None:
        directions = random_directions(x, count, seed)
    elif directions.ndim != 2 or directions.shape[0] != x.shape[1]:
        raise BadInput(
            f"directions of shape {tuple(directions.shape)} for {x.shape[1]} features: "
            "give unit vectors as columns, one row per feature"
        )
    if steps:
        directions = improved_directions(x, y, directions, steps=steps)
    largest = safe_root(xp.max(_squared_distances(x, y, directions)))
    if dimension_scale:
        largest = largest * float(x.shape[1]) ** 0.5
    if relative:
        spread = safe_root(xp.mean((x - xp.mean(x, axis=0)) ** 2))
        largest = largest / xp.where(spread > 0, spread, xp.ones_like(spread))
    return largest


def random_directions(x: AnyArray, count: int = DIRECTIONS, seed: int | None = None) -> AnyArray:
    """`count` directions (D, count), uniform on the sphere, for x (n, ...): its library and place.

    With a seed NumPy draws them, the same numbers for every library. Without, those of a torch
    tensor come from torch's own generator on the tensor's device, which `torch.manual_seed` rules.
    """
    if count < 1:
        raise BadInput(f"{count} directions: at least one is needed")
    x = fixed(flat_rows(x, "an array of features"))
    xp = namespace(x)
    shape = (x.shape[1], count)
    if seed is None and is_torch_array(x):
        drawn = x.new_empty(shape).normal_()
    else:
        normal = np.random.default_rng(seed).standard_normal(shape)
        drawn = xp.asarray(normal, dtype=x.dtype, device=x.device)
    return _unit(drawn)


def improved_directions(
    x: AnyArray, y: AnyArray, directions: AnyArray, *, steps: int = 10
) -> AnyArray:
    """Directions (D, K) after `steps` of ascent on W_2 from the given ones; none becomes worse.

    With the order of the sorted projections held, W_2^2 = theta' M theta for a positive M, so a
    step goes to the unit vector along the gradient 2 M theta (power iteration). As the order may
    change on the way, every direction keeps the best place it has seen.
    """
    x, y = _pair(fixed(x), fixed(y))
    xp = namespace(x, y)
    theta = best = directions
    seen = _squared_distances(x, y, theta)
    for _ in range(steps):
        theta = _unit(_gradient(x, y, theta))
        now = _squared_distances(x, y, theta)
        best = xp.where(now > seen, theta, best)
        seen = xp.maximum(now, seen)
    return best


def lacoot_order(distances: Sequence[float]) -> tuple[int, ...]:
    """Blocks in the order of their removal: smallest distance first, the earlier of equal ones.

    LaCoOT puts the identity in the place of one after the other, fine-tunes nothing, and stops
    where the loss of quality is more than allowed.
    """
    if any(distance != distance for distance in distances):
        raise BadInput("a distance is NaN: look for NaN in the features it was computed from")
    return tuple(sorted(range(len(distances)), key=lambda block: (distances[block], block)))


def _pair(x: AnyArray, y: AnyArray) -> tuple[AnyArray, AnyArray]:
    """x and y as (n, D) of one type; refused where their shapes differ."""
    shapes = tuple(x.shape), tuple(y.shape)
    x, y = flat_rows(x, "a block's input"), flat_rows(y, "a block's output")
    if x.shape != y.shape:
        raise BadInput(
            f"an input of shape {shapes[0]} and an output of shape {shapes[1]} are not comparable: "
            "leave out blocks that change the shape"
        )
    xp = namespace(x, y)
    dtype = xp.result_type(x, y)
    return xp.astype(x, dtype, copy=False), xp.astype(y, dtype, copy=False)


def _squared_distances(x: AnyArray, y: AnyArray, directions: AnyArray) -> AnyArray:
    """W_2^2 along each direction: (K,)."""
    xp = namespace(x, y, directions)
    directions = xp.astype(directions, x.dtype, copy=False)
    gaps = xp.sort(x @ directions, axis=0) - xp.sort(y @ directions, axis=0)
    return xp.mean(gaps**2, axis=0)


def _gradient(x: AnyArray, y: AnyArray, directions: AnyArray) -> AnyArray:
    """That of W_2^2 by the directions, but for a factor: (D, K)."""
    xp = namespace(x, y, directions)
    directions = xp.astype(directions, x.dtype, copy=False)
    u, v = x @ directions, y @ directions
    order_u, order_v = xp.argsort(u, axis=0), xp.argsort(v, axis=0)
    gaps = xp.take_along_axis(u, order_u, axis=0) - xp.take_along_axis(v, order_v, axis=0)
    # Each gap goes back to the two rows that it was between
    back_u = xp.take_along_axis(gaps, xp.argsort(order_u, axis=0), axis=0)
    back_v = xp.take_along_axis(gaps, xp.argsort(order_v, axis=0), axis=0)
    return xp.matrix_transpose(x) @ back_u - xp.matrix_transpose(y) @ back_v


def _unit(columns: AnyArray) -> AnyArray:
    """Columns (D, K) of length 1; those of zeros stay."""
    xp = namespace(columns)
    largest = xp.max(xp.abs(columns), axis=0, keepdims=True)
    columns = columns / xp.where(largest > 0, largest, xp.ones_like(largest))
    length = xp.sqrt(xp.sum(columns**2, axis=0, keepdims=True))
    return columns / xp.where(length > 0, length, xp.ones_like(length))
