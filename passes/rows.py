"""Rows: what least squares needs of the values that two tapes hold, padding left out.

Regressors come from the compressed model's tape, targets from the original's. A solved problem is
applied to the same columns that it was solved on.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..calibration.equations import Equations
from ..calibration.features import as_rows, from_rows, require_finite, rows_of
from ..calibration.masks import row_weights
from ..calibration.moments import Array, Centred, CoMoment
from ..calibration.runtime import cut_rows
from ..calibration.solve import Solution
from ..calibration.tape import Piece, Tape
from .stops import Stop
from .surrogates import Problem
from .task import Task

Floats = NDArray[np.floating]

ENOUGH_ROWS_PER_COLUMN = 40
"""Rows to solve on while plans are compared; the chosen one is solved on all."""


class Rows:
    """The rows of one task's data."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self._variances: dict[str, float] = {}

    def equations(
        self, tape: Tape, truth: Tape, asked: Problem, picked: Sequence[int], *, whole: bool = True
    ) -> Equations:
        """Normal equations of a problem: regressors from one tape, the target "y" from another.

        Unless `whole`, only as many rows are taken as the columns need, at random, beside all that
        are picked; each stands for those left out.
        """
        found = Equations(["y"])
        axis, share = asked.target.channel_axis, 1.0
        for at, (now, then) in enumerate(zip(tape.batches(), truth.batches(), strict=True)):
            value = then.real(asked.target.value)
            x, given = self.columns(asked, now, real=True)
            y = as_rows(value, axis)
            weights = self.padding(now, value.shape, axis)
            require_finite(y, asked.target.value, weights, now.samples)
            y = y if given is None else less(y, given)
            chosen = picked_rows(picked, value.shape, axis)
            if at == 0 and not whole:
                expected = len(y) / len(now.samples) * len(tape.samples)
                share = min(1.0, ENOUGH_ROWS_PER_COLUMN * x.shape[1] / expected)
            if share < 1.0:
                drawn = np.random.default_rng(at).random(len(y)) < share
                if chosen is not None:
                    drawn |= chosen
                scale = np.full(len(y), 1 / share)
                if chosen is not None:
                    scale[chosen] = 1.0
                weights = scale if weights is None else scale * weights
                x, y, weights = x[drawn], y[drawn], weights[drawn]
                chosen = None if chosen is None else chosen[drawn]
            found.add(x, [y], weights, chosen)
        return found

    def variance(self, stop: Stop, truth: Tape) -> float:
        """Trace of the covariance of the original's value at a stop, padding apart."""
        if stop.value not in self._variances:
            total: CoMoment | None = None
            for piece in truth.batches():
                value = piece.real(stop.value)
                weights = self.padding(piece, value.shape, stop.channel_axis)
                rows = Centred.of(as_rows(value, stop.channel_axis), weights)
                part = CoMoment.of(rows, rows)
                total = part if total is None else total
                if total is not part:
                    total.absorb(part)
            assert total is not None
            self._variances[stop.value] = float(np.trace(total.product)) / total.weight
        return self._variances[stop.value]

    def columns(self, asked: Problem, piece: Piece, *, real: bool) -> tuple[Floats, Floats | None]:
        """Regressors (rows, p) of a problem and what is given beside them (rows, d).

        `real`: without the rows that only fill up a fixed batch.
        """
        take = piece.real if real else piece.values.__getitem__
        mask = self.task.padding(piece)
        mask = mask[: len(piece.samples)] if mask is not None and real else mask
        parts = [rows_of(feature, take(feature.value), mask) for feature in asked.features]
        for feature, part in zip(asked.features if real else (), parts, strict=False):
            shape, axis = piece.real(feature.value).shape, feature.channel_axis
            weights = None if feature.window else self.padding(piece, shape, axis)
            require_finite(part, feature.value, weights, piece.samples)
        x = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)
        given = asked.given
        return x, None if given is None else rows_of(given, take(given.value), mask)

    def applied(
        self, piece: Piece, asked: Problem, solution: Solution, shape: tuple[int, ...]
    ) -> Floats:
        """What a solved problem makes of a batch, as an array of that shape.

        Raises NotFinite where that is more than the type of the stream can hold, padding aside.
        """
        held, axis = piece.values[asked.features[0].value].dtype, asked.target.channel_axis
        x, given = self.columns(asked, piece, real=False)
        W, b = solution.W.astype(np.float32), solution.b.astype(np.float32)
        rows: Floats = x.astype(np.float32) @ W + b
        rows = rows if given is None else rows + given
        with np.errstate(over="ignore"):
            made = from_rows(rows.astype(held), shape, axis)
        real = cut_rows(made, len(piece.samples), piece.size)
        weights = self.padding(piece, real.shape, axis)
        require_finite(as_rows(real, axis), asked.target.value, weights, piece.samples)
        return made

    def padding(self, piece: Piece, shape: tuple[int, ...], channel_axis: int) -> Array | None:
        """Weights (rows,) of a value without filling, 0 for padding."""
        mask = self.task.padding(piece)
        if mask is None:
            return None
        return row_weights(mask[: len(piece.samples)], shape, channel_axis)


def less(y: Floats, given: Floats) -> Floats:
    """y - given (rows, d), in single precision at least: float16 would round what is left."""
    return np.subtract(y, given, dtype=np.result_type(y, given, np.float32))


def picked_rows(
    positions: Sequence[int], shape: tuple[int, ...], channel_axis: int
) -> NDArray[np.bool_] | None:
    """Which rows (n,) of a value stand at the given positions of axis 1; None for no positions."""
    axes = list(shape)
    del axes[channel_axis]
    if not positions or len(axes) < 2:
        return None
    picked = np.zeros(axes, bool)
    picked[:, list(positions)] = True
    return picked.reshape(-1)
