"""Rows for least squares out of a value: one per token or pixel, or what a convolution sees."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..ir.errors import BadInput
from ..ir.windows import Window
from .moments import Array

Floats = NDArray[np.floating]
Chosen = NDArray[np.integer]


class NotFinite(BadInput):
    """A value of the model, by name, holds NaN or Inf.

    The data's fault, or that of what was put into the model.
    """

    def __init__(self, value: str, sample: int | None = None) -> None:
        where = "" if sample is None else f", first in sample {sample}"
        super().__init__(
            f"the model's inner value {value!r} holds NaN or Inf on these samples{where}; "
            "check the model and the scale of the data"
        )
        self.value = value


@dataclass(frozen=True)
class Feature:
    """A value as regressors or as a target, channels on `channel_axis`.

    `window` makes patches of it; `pooled` the mean over all positions of a sample, the same for
    each of its rows.
    """

    value: str
    channel_axis: int
    window: Window | None = None
    pooled: bool = False


def rows_of(
    feature: Feature, array: Floats, mask: Array | None = None, chosen: Chosen | None = None
) -> Floats:
    """(rows, channels) of an array, C order over all other axes; patches are (channels k ...).

    mask (n, length) has 0 for padding, which has no part in a pooled mean. `chosen` (m,) are the
    numbers of the rows to take, all where None: no others are then copied.
    """
    if feature.window is not None:
        return patches(array, feature.window, chosen)
    if feature.pooled:
        return pooled_rows(array, feature.channel_axis, mask, chosen)
    return as_rows(array, feature.channel_axis, chosen)


def require_finite(
    rows: Floats,
    value: str,
    weights: Array | None = None,
    samples: NDArray[np.int64] | None = None,
) -> None:
    """NotFinite where rows (n, d) of a value hold NaN or Inf, those of weight 0 aside.

    weights (n,); `samples` are those that the rows belong to, as many to each, for the message.
    """
    if np.isfinite(rows).all():
        return
    bad = ~np.isfinite(rows).reshape(len(rows), -1).all(axis=1)
    if weights is not None:
        bad &= weights != 0
    if not bad.any():
        return
    first = int(bad.argmax())
    sample = None if samples is None else samples[first * len(samples) // len(rows)]
    raise NotFinite(value, sample)


def as_rows(array: Floats, channel_axis: int, chosen: Chosen | None = None) -> Floats:
    """(..., d, ...) with channels on `channel_axis` -> (rows, d), in C order of the other axes."""
    moved = np.moveaxis(array, channel_axis, -1)
    return _taken(moved, moved.ndim - 1, chosen).reshape(-1, moved.shape[-1])


def _taken(array: Floats, axes: int, chosen: Chosen | None) -> Floats:
    """What stands at the chosen places, counted in C order over the first axes; a copy at most."""
    if chosen is None:
        return np.ascontiguousarray(array)
    if array.flags.c_contiguous:
        return array.reshape(-1, *array.shape[axes:])[chosen]
    return array[np.unravel_index(chosen, array.shape[:axes])]


def from_rows(rows: Floats, shape: tuple[int, ...], channel_axis: int) -> Floats:
    """The inverse of `as_rows`: rows (n, d) as an array of that shape."""
    axes = list(shape)
    width = axes.pop(channel_axis)
    return np.moveaxis(rows.reshape(*axes, width), -1, channel_axis)


def pooled_rows(
    array: Floats, channel_axis: int, mask: Array | None, chosen: Chosen | None = None
) -> Floats:
    """Per row of `as_rows`, the mean over all rows of its sample."""
    mean = pooled_mean(array, channel_axis, mask)
    each = array.size // mean.size
    return np.repeat(mean, each, axis=0) if chosen is None else mean[chosen // each]


def pooled_mean(array: Floats, channel_axis: int, mask: Array | None) -> Floats:
    """(n, ...) -> (n, channels): the mean over all rows of a sample; mask (n, length) weighs them.

    A mask that does not fit the axes after the samples is not of these rows and weighs nothing.
    """
    moved = np.moveaxis(array, channel_axis, -1)
    flat = moved.reshape(len(moved), -1, moved.shape[-1])
    flat = flat.astype(np.result_type(flat, np.float32), copy=False)  # float16 ends at 65504
    if mask is not None and moved.shape[:-1] == mask.shape:
        kept = (mask != 0).astype(flat.dtype)
        total = np.maximum(kept.sum(axis=1, keepdims=True), 1)
        if not np.isfinite(flat).all():  # 0 times NaN is NaN
            flat = np.where(kept[:, :, None] != 0, flat, 0)
        mean: Floats = (kept[:, None, :] @ flat)[:, 0] / total
    else:
        mean = flat.mean(axis=1)
    return mean


def patches(array: Floats, window: Window, chosen: Chosen | None = None) -> Floats:
    """What a convolution multiplies its kernel with: (n, c, ...) -> (n positions, c k ...).

    Rows are in C order of (n, positions), columns in that of the kernel (c, k, ...).
    """
    axes = len(window.kernel)
    begins, ends = window.pads[:axes], window.pads[axes:]
    padded = np.pad(array, [(0, 0), (0, 0), *zip(begins, ends, strict=True)])
    reach = [d * (k - 1) + 1 for k, d in zip(window.kernel, window.dilations, strict=True)]
    views = np.lib.stride_tricks.sliding_window_view(padded, reach, axis=tuple(range(2, axes + 2)))
    strides = tuple(slice(None, None, s) for s in window.strides)
    inner = tuple(slice(None, None, d) for d in window.dilations)
    seen = views[(slice(None), slice(None), *strides, *inner)]
    moved = np.moveaxis(seen, 1, axes + 1)
    columns = array.shape[1] * int(np.prod(window.kernel))
    return _taken(moved, axes + 1, chosen).reshape(-1, columns)
