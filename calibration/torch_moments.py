"""Moments of tensors where they lie: sums in float64 on their device, one copy to the host.

Rows minus a fixed shift, the mean of the first batch, are multiplied in float32 (float64 where they
are), with TF32 off; padding counts by its weight of 0. Nothing waits for the device before the end.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import torch

from .sums import Sums
from .sweep import Pair, Statistics


class DeviceStatistics:
    """As `Statistics`, of tensors of one device."""

    def __init__(self, pairs: Sequence[Pair]) -> None:
        self._empty = Statistics(pairs)
        self._axis = {v: pair.channel_axis for pair in pairs for v in (pair.x, pair.y)}
        self._shifts: dict[str, torch.Tensor] = {}
        self._total: torch.Tensor | None = None

    @torch.no_grad()
    def add(self, taps: Mapping[str, torch.Tensor], mask: torch.Tensor | None) -> None:
        """Take one batch; mask (rows, length) has 0 for padding."""
        rows = {v: _as_rows(taps[v], self._axis[v]) for v in self._empty.values}
        weights = {v: _weights(mask, taps[v], self._axis[v], rows[v]) for v in self._empty.values}
        if mask is not None:  # what stands in padding may be NaN, which 0 times is no 0
            rows = {v: torch.where(weights[v] > 0, rows[v], 0.0) for v in self._empty.values}
        if not self._shifts:
            self._shifts = {v: _mean(rows[v], weights[v]) for v in self._empty.values}
        shifted = {v: (rows[v] - self._shifts[v]) * weights[v] for v in self._empty.values}
        norms = {v: (rows[v] * rows[v]).sum(1).sqrt() for v in self._empty.values}
        with _whole_float32():
            parts = [
                *(weights[v].sum(dtype=torch.float64) for v in self._empty.values),
                *(shifted[v].sum(0, dtype=torch.float64) for v in self._empty.values),
                *(shifted[x].T @ shifted[y] for x, y in self._empty.keys),
            ]
        for p in self._empty.pairs:
            cosines = _cosines(rows[p.x], rows[p.y], norms[p.x], norms[p.y])
            angles = cosines.clamp(-1.0, 1.0).acos() / math.pi
            both = torch.stack([cosines, angles]) * weights[p.x][:, 0]
            parts.append(both.sum(1, dtype=torch.float64))
        if self._total is None:
            sizes = sum(part.numel() for part in parts)
            self._total = torch.zeros(sizes, dtype=torch.float64, device=parts[0].device)
        at = 0
        for part in parts:
            self._total[at : at + part.numel()] += part.reshape(-1)
            at += part.numel()

    def statistics(self) -> Statistics:
        """The sums, off the device, as moments. BadInput names a value that holds NaN or Inf."""
        if self._total is None:
            return Statistics(self._empty.pairs)
        shifts = torch.cat([self._shifts[v].double() for v in self._empty.values])
        host = torch.cat([shifts, self._total]).cpu().numpy()
        widths = {v: len(self._shifts[v]) for v in self._empty.values}
        at = 0

        def take(*shape: int) -> np.ndarray:
            nonlocal at
            at += math.prod(shape)
            return host[at - math.prod(shape) : at].reshape(shape)

        moved = {v: take(widths[v]) for v in self._empty.values}
        weights = {v: float(take(1)[0]) for v in self._empty.values}
        rows = {v: take(widths[v]) for v in self._empty.values}
        products = {(x, y): take(widths[x], widths[y]) for x, y in self._empty.keys}
        turns = {pair: take(2) for pair in self._empty.pairs}
        cosines, angles = ({p: float(both[at]) for p, both in turns.items()} for at in (0, 1))
        sums = Sums(weights, rows, products, cosines, angles)
        return sums.statistics(self._empty.pairs, moved)


def _as_rows(value: torch.Tensor, channel_axis: int) -> torch.Tensor:
    """(..., d, ...) -> (rows, d), in float32 at least."""
    moved = value.movedim(channel_axis, -1)
    flat = moved.reshape(-1, moved.shape[-1])
    return flat if flat.dtype == torch.float64 else flat.float()


def _weights(
    mask: torch.Tensor | None, value: torch.Tensor, channel_axis: int, rows: torch.Tensor
) -> torch.Tensor:
    """(rows, 1), as of `row_weights`: 0 for padding where the mask fits, else 1."""
    axes = list(value.shape)
    del axes[channel_axis]
    if mask is None or tuple(axes[:2]) != tuple(mask.shape):
        return rows.new_ones(len(rows), 1)
    kept = (mask != 0).to(rows.dtype).reshape(*mask.shape, *[1] * (len(axes) - 2))
    return kept.expand(axes).reshape(-1, 1)


def _mean(rows: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """(d,): the weighted mean, in the dtype of the rows; 0 of no rows."""
    total = weights.sum(dtype=torch.float64).clamp(min=1.0)
    return ((rows * weights).sum(0, dtype=torch.float64) / total).to(rows.dtype)


def _cosines(
    x: torch.Tensor, y: torch.Tensor, x_norms: torch.Tensor, y_norms: torch.Tensor
) -> torch.Tensor:
    """Row by row (rows,), as of metrics/cosine: 0 where one row is zero, 1 where both are."""
    norms = x_norms * y_norms
    told = norms > 0
    quotient = (x * y).sum(1) / torch.where(told, norms, 1.0)
    both = ((x_norms == 0) & (y_norms == 0)).to(quotient.dtype)
    return torch.where(told, quotient, both)


@contextmanager
def _whole_float32() -> Iterator[None]:
    """Within: products of float32 are not rounded to TF32 on the way."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
