"""Damages on the same samples, compared in pairs.

With labels the damage is the drop of the metric, a mean over samples. Without, for outputs that are
one vector per sample, it is 1 - the Pearson correlation of the cosine similarities of all pairs of
samples with those of the original: what a search or a clustering over the vectors would notice. Its
intervals come from drawing samples again, those of a difference from the same draws for both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...calibration.runtime import Runner
from ...ir.onnx_file import OnnxModel
from ...passes.task import Reference, Task

DRAWS = 400
Z = 1.96


@dataclass(frozen=True, eq=False)
class Damage:
    """A damage, its values on draws of the samples (draws,), and that by the smooth metric.

    `unit` says what it is of.
    """

    value: float
    draws: NDArray[np.float64]
    smooth: float
    reached: float
    samples: int
    unit: str

    @property
    def interval(self) -> tuple[float, float]:
        return _around(self.value, self.draws)

    def minus(self, other: Damage) -> tuple[float, float, float]:
        """The difference of two damages and its 95 % interval, in pairs."""
        value = self.value - other.value
        return (value, *_around(value, self.draws - other.draws))


def _around(value: float, draws: NDArray[np.float64]) -> tuple[float, float]:
    spread = Z * float(draws.std())
    return value - spread, value + spread


def damage_by(task: Task, reference: Reference, model: OnnxModel) -> Damage:
    """The damage that a model does on the samples of the reference."""
    runner = Runner(model, task.runtime)
    batches = task.data.batches(reference.samples, runner.fixed_batch or task.batch)
    return damage_of(task, reference, [runner(batch.feeds)[task.output] for batch in batches])


def damage_of(task: Task, reference: Reference, outputs: Sequence[NDArray[np.floating]]) -> Damage:
    """The damage of a model's outputs, batch by batch."""
    scores, smooth = reference.judge(outputs)
    samples = len(scores.damage)
    chosen = [np.random.default_rng(at).integers(0, samples, samples) for at in range(DRAWS)]
    _, after = scores.reached
    if task.data.labels is not None or outputs[0].ndim != 2:
        lost = scores.damage
        draws = np.array([lost[rows].mean() for rows in chosen])
        unit = f"drop of {task.metric}"
        return Damage(float(lost.mean()), draws, smooth, after, samples, unit)
    new = similarities(np.concatenate(outputs))
    old = similarities(np.concatenate([*reference.outputs()]))
    value = 1 - correlation(old, new)
    draws = np.array([1 - correlation(old[np.ix_(r, r)], new[np.ix_(r, r)]) for r in chosen])
    return Damage(value, draws, smooth, 1 - value, samples, "1 - correlation")


def similarities(vectors: NDArray[np.floating]) -> NDArray[np.float64]:
    """Cosines of all pairs of rows (n, d): (n, n)."""
    rows = vectors.astype(np.float64)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows @ rows.T


def correlation(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """Pearson correlation of the entries above the diagonals of two (n, n)."""
    above = np.triu_indices(len(one), 1)
    return float(np.corrcoef(one[above], other[above])[0, 1])
