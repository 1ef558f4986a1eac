"""Rows for least squares out of a value: one per token or pixel, or what a convolution sees."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..ir.onnx_linear import Window

Floats = NDArray[np.floating]


@dataclass(frozen=True)
class Feature:
    """A value as regressors or as a target, channels on `channel_axis`; `window` makes patches."""

    value: str
    channel_axis: int
    window: Window | None = None


def rows_of(feature: Feature, array: Floats) -> Floats:
    """(rows, channels) of an array, C order over all other axes; patches are (channels k ...)."""
    if feature.window is None:
        return as_rows(array, feature.channel_axis)
    return patches(array, feature.window)


def as_rows(array: Floats, channel_axis: int) -> Floats:
    """(..., d, ...) with channels on `channel_axis` -> (rows, d), in C order of the other axes."""
    moved = np.moveaxis(array, channel_axis, -1)
    return np.ascontiguousarray(moved).reshape(-1, moved.shape[-1])


def patches(array: Floats, window: Window) -> Floats:
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
    return np.ascontiguousarray(moved).reshape(-1, array.shape[1] * int(np.prod(window.kernel)))
