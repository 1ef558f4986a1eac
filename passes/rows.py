"""Rows: what least squares needs of the values that two tapes hold, padding left out.

Regressors come from the compressed model's tape, targets from the original's. A solved problem is
applied to the same columns that it was solved on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from ..calibration.equations import Equations
from ..calibration.features import Chosen, as_rows, from_rows, require_finite, rows_of
from ..calibration.masks import row_weights
from ..calibration.moments import Array, Centred, CoMoment
from ..calibration.runtime import Runner, cut_rows
from ..calibration.solve import Solution
from ..calibration.tape import Piece, Samples, Tape
from ..ir.onnx_file import OnnxModel
from .stops import Stop
from .surrogates import Problem
from .task import Task

Floats = NDArray[np.floating]

ENOUGH_ROWS_PER_COLUMN = 40
"""Rows to solve on while plans are compared; the chosen one is solved on all."""


@dataclass(frozen=True, eq=False)
class Some:
    """Some rows of a batch: their numbers (m,), and the samples (m,) that they belong to."""

    numbers: Chosen
    samples: Samples


class Rows:
    """The rows of one task's data."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self._variances: dict[str, float] = {}
        self._finite: set[tuple[str, int]] = set()

    def equations(
        self,
        tape: Tape,
        truth: Tape,
        asked: Problem,
        picked: Sequence[int],
        *,
        whole: bool = True,
    ) -> Equations:
        """Normal equations of a problem: regressors from one tape, the target "y" from another.

        Unless `whole`, only as many rows are taken as the columns need, at random, beside all that
        are picked; each stands for those left out.
        """
        found = Equations(["y"])
        target, share = asked.target, 1.0
        for at, (now, then) in enumerate(zip(tape.batches(), truth.batches(), strict=True)):
            value = then.real(target.value)
            weights = self.padding(now, value.shape, target.channel_axis)
            emphasised = picked_rows(picked, value.shape, target.channel_axis)
            rows = value.size // value.shape[target.channel_axis]
            if at == 0 and not whole:
                expected = rows / len(now.samples) * len(tape.samples)
                share = min(1.0, ENOUGH_ROWS_PER_COLUMN * asked.columns / expected)
            some = None
            if share < 1.0:
                drawn = np.random.default_rng(at).random(rows) < share
                scale = np.full(rows, 1 / share)
                if emphasised is not None:
                    drawn |= emphasised
                    scale[emphasised] = 1.0
                numbers = np.flatnonzero(drawn)
                some = Some(numbers, now.samples[numbers * len(now.samples) // rows])
                weights = (scale if weights is None else scale * weights)[drawn]
                emphasised = None if emphasised is None else emphasised[drawn]
            x, given = self.columns(asked, now, real=True, some=some)
            y = as_rows(value, target.channel_axis, None if some is None else some.numbers)
            require_finite(y, target.value, weights, now.samples if some is None else some.samples)
            found.add(x, [y if given is None else less(y, given)], weights, emphasised)
        return found

    @cached_property
    def _affine(self) -> Runner:
        """x W + b: NumPy's own threads would still be waiting for more when the model runs on."""
        return Runner(affine_model(), self.task.runtime, pooled=True)

    def require_finite(self, truth: Tape, stop: Stop) -> None:
        """NotFinite where the original's value at a stop holds NaN or Inf, padding aside.

        All rows are looked at, once, whichever are drawn to solve on.
        """
        key = stop.value, id(truth.samples)
        if key in self._finite:
            return
        for piece in truth.batches():
            value, axis = piece.real(stop.value), stop.channel_axis
            weights = self.padding(piece, value.shape, axis)
            require_finite(as_rows(value, axis), stop.value, weights, piece.samples)
        self._finite.add(key)

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

    def columns(
        self, asked: Problem, piece: Piece, *, real: bool, some: Some | None = None
    ) -> tuple[Floats, Floats | None]:
        """Regressors (rows, p) of a problem and what is given beside them (rows, d).

        `real`: without the rows that only fill up a fixed batch. `some`: these rows alone.
        """
        take = piece.real if real else piece.values.__getitem__
        mask = self.task.padding(piece)
        mask = mask[: len(piece.samples)] if mask is not None and real else mask
        chosen = None if some is None else some.numbers
        parts = [rows_of(feature, take(feature.value), mask, chosen) for feature in asked.features]
        for feature, part in zip(asked.features if real else (), parts, strict=False):
            shape, axis = piece.real(feature.value).shape, feature.channel_axis
            weights = None if feature.window else self.padding(piece, shape, axis)
            if weights is not None and chosen is not None:
                weights = weights[chosen]
            samples = piece.samples if some is None else some.samples
            require_finite(part, feature.value, weights, samples)
        x = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)
        given = asked.given
        return x, None if given is None else rows_of(given, take(given.value), mask, chosen)

    def applied(
        self, piece: Piece, asked: Problem, solution: Solution, shape: tuple[int, ...]
    ) -> Floats:
        """What a solved problem makes of a batch, as an array of that shape.

        Raises NotFinite where that is more than the type of the stream can hold, padding aside.
        """
        held, axis = piece.values[asked.features[0].value].dtype, asked.target.channel_axis
        x, given = self.columns(asked, piece, real=False)
        W, b = solution.W.astype(np.float32), solution.b.astype(np.float32)
        rows: Floats = self._affine.run_whole(
            {"x": x.astype(np.float32, copy=False), "W": W, "b": b}
        )["y"]
        rows = rows if given is None else rows + given
        with np.errstate(over="ignore"):
            made = from_rows(rows.astype(held, copy=False), shape, axis)
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


def affine_model() -> OnnxModel:
    """y = x W + b, all of them fed, in float32."""
    h = onnx.helper
    nodes = [h.make_node("MatMul", ["x", "W"], ["xW"]), h.make_node("Add", ["xW", "b"], ["y"])]
    ends = [
        h.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
        for name, shape in {"x": ["n", "p"], "W": ["p", "d"], "b": ["d"], "y": ["n", "d"]}.items()
    ]
    graph = h.make_graph(nodes, "affine", ends[:3], ends[3:])
    opset = h.make_opsetid("", 17)
    return OnnxModel(h.make_model(graph, opset_imports=[opset], ir_version=8), Path())


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
