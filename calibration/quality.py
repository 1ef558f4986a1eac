"""Quality: what a change of the model costs at its output, sample by sample.

A metric gives every sample a damage; the drop is the mean of the damages. Splits are judged by
them, bounds are computed from them (passes/bounds.py).

    accuracy   [original right] - [new right], with labels
    agreement  [argmax of new differs from argmax of original]
    cosine     1 - mean over rows of cos(original, new) along the last axis
    nmse       mean (original - new)^2 / variance of the original's output over all samples
    kl         KL(softmax of original, softmax of new) in nats, mean over rows
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax

from ..ir.errors import BadInput
from .masks import row_weights
from .metrics.cosine import row_cosines
from .moments import Array


@dataclass(frozen=True)
class Scores:
    """Per sample: the original's score, the new one's, and the damage, each of shape (samples,)."""

    before: Array
    after: Array
    damage: Array

    @property
    def drop(self) -> float:
        return float(self.damage.mean())

    def joined(self, other: Scores) -> Scores:
        """The scores of both sets of samples."""
        before = np.concatenate([self.before, other.before])
        after = np.concatenate([self.after, other.after])
        return Scores(before, after, before - after)

    def by_group(self, groups: NDArray[np.int64]) -> Scores:
        """Means over the samples of each group; groups (samples,)."""
        _, members, sizes = np.unique(groups, return_inverse=True, return_counts=True)
        before, after = (
            np.bincount(members, weights=score) / sizes for score in (self.before, self.after)
        )
        return Scores(before, after, before - after)


def default_metric(output_rank: int, has_labels: bool) -> str:
    """Accuracy with labels, else agreement for (samples, classes), else cosine."""
    if has_labels and output_rank >= 2:
        return "accuracy"
    return "agreement" if output_rank == 2 else "cosine"


def is_exact(metric: str, labels: NDArray[np.generic] | None) -> bool:
    """Whether a sample is simply right or wrong, so that an exact bound exists."""
    return metric == "agreement" or (
        metric == "accuracy" and labels is not None and labels.ndim == 1
    )


@dataclass(frozen=True)
class Outputs:
    """Outputs (rows, ..., d) of both models on the same samples; labels (rows, ...), if any.

    mask (rows, length) has 0 for padding, where the data is masked.
    """

    original: NDArray[np.floating]
    new: NDArray[np.floating]
    labels: NDArray[np.generic] | None = None
    mask: Array | None = None


class Scorer:
    """Gathers the scores of one metric batch by batch."""

    def __init__(self, metric: str) -> None:
        if metric not in METRICS:
            raise BadInput(f"--metric {metric}: unknown; it is one of {', '.join(METRICS)}")
        self._metric = metric
        self._before: list[Array] = []
        self._after: list[Array] = []
        self._moments = np.zeros(3)

    def add(self, outputs: Outputs) -> None:
        """Take one batch. BadInput where the metric does not fit, or outputs are not finite."""
        if not (np.isfinite(outputs.new).all() and np.isfinite(outputs.original).all()):
            raise BadInput("the model's output holds NaN or Inf; check the model and the data")
        before, after = METRICS[self._metric](outputs)
        self._before.append(before)
        self._after.append(after)
        if self._metric == "nmse":
            kept = _unpadded(outputs.original.astype(np.float64), outputs.mask)
            self._moments += (kept.size, kept.sum(), np.square(kept).sum())

    def scores(self) -> Scores:
        before, after = np.concatenate(self._before), np.concatenate(self._after)
        if self._metric == "nmse":
            count, total, squares = self._moments
            variance = squares / count - (total / count) ** 2
            after = after / variance if variance > 0 else np.where(after == 0, 0.0, -np.inf)
        return Scores(before, after, before - after)


def _accuracy(outputs: Outputs) -> tuple[Array, Array]:
    new, labels = outputs.new, outputs.labels
    if labels is None:
        raise BadInput("--metric accuracy needs labels in the data; add an array `labels`")
    if new.shape[:-1] != labels.shape:
        raise BadInput(
            f"--metric accuracy: outputs of shape {new.shape} do not fit labels of shape "
            f"{labels.shape}; they must have one more axis, the classes"
        )
    before = _per_sample(outputs.original.argmax(-1) == labels, outputs.mask)
    return before, _per_sample(new.argmax(-1) == labels, outputs.mask)


def _agreement(outputs: Outputs) -> tuple[Array, Array]:
    if outputs.new.ndim != 2:
        raise BadInput(
            "--metric agreement needs outputs of shape (samples, classes), not "
            f"{outputs.new.shape}; take --metric cosine"
        )
    same = outputs.original.argmax(-1) == outputs.new.argmax(-1)
    return np.ones(len(same)), same.astype(np.float64)


def _cosine(outputs: Outputs) -> tuple[Array, Array]:
    if outputs.new.ndim < 2:
        raise BadInput(f"--metric cosine needs outputs of rows, not of shape {outputs.new.shape}")
    cosines = row_cosines(outputs.original, outputs.new)
    return np.ones(len(cosines)), _per_sample(cosines, outputs.mask)


def _nmse(outputs: Outputs) -> tuple[Array, Array]:
    """Squared errors, still to be divided by the variance over all samples."""
    errors = np.square(outputs.original.astype(np.float64) - outputs.new)
    rows = errors.mean(-1) if errors.ndim > 1 else errors
    return np.zeros(len(errors)), -_per_sample(rows, outputs.mask)


def _kl(outputs: Outputs) -> tuple[Array, Array]:
    if outputs.new.ndim < 2:
        raise BadInput(f"--metric kl needs outputs of logits, not of shape {outputs.new.shape}")
    before = log_softmax(outputs.original.astype(np.float64), axis=-1)
    after = log_softmax(outputs.new.astype(np.float64), axis=-1)
    rows = np.maximum((np.exp(before) * (before - after)).sum(-1), 0.0)  # rounding aside
    return np.zeros(len(rows)), -_per_sample(rows, outputs.mask)


METRICS: dict[str, Callable[[Outputs], tuple[Array, Array]]] = {
    "accuracy": _accuracy,
    "agreement": _agreement,
    "cosine": _cosine,
    "nmse": _nmse,
    "kl": _kl,
}


def _unpadded(values: Array, mask: Array | None) -> Array:
    """The rows (n, d) of values (rows, ..., d) that the mask does not call padding."""
    if mask is None or values.ndim < 3:
        return values
    kept: Array = values.reshape(-1, values.shape[-1])[row_weights(mask, values.shape, -1) > 0]
    return kept


def _per_sample(rows: NDArray[np.generic], mask: Array | None) -> Array:
    """Mean over all axes but the first; tokens that the mask calls padding do not count."""
    if rows.ndim == 1:
        return rows.astype(np.float64)
    values: Array = rows.astype(np.float64).reshape(len(rows), -1)
    if mask is None:
        mean: Array = values.mean(-1)
        return mean
    weights = row_weights(mask, (*rows.shape, 1), -1).reshape(values.shape)
    kept: Array = (values * weights).sum(-1) / np.maximum(weights.sum(-1), 1.0)
    return kept
