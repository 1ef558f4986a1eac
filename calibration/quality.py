"""Quality: what a change of the model costs at its output, sample by sample.

A metric gives every sample a damage; the drop is the mean of the damages, but for perplexity.
Splits are judged by them, bounds are computed from them (passes/bounds.py).

    accuracy    [original right] - [new right], with labels
    agreement   [argmax of new differs from argmax of original]
    cosine      1 - mean over rows of cos(original, new) along the last axis
    nmse        mean (original - new)^2 / variance of the original's output over all samples
    kl          KL(softmax of original, softmax of new) in nats, mean over rows
    perplexity  exp(sum nll of new / tokens) / exp(sum nll of original / tokens) - 1, nll being
                -log softmax(output)[label]; its samples are sequences
    a function  f(original, labels) - f(new, labels), f of the user's own
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import log_softmax

from ..ir.errors import BadInput
from .imports import SPEC, attribute, importable
from .intake import blaming
from .masks import row_weights
from .metrics.cosine import row_cosines
from .moments import Array

MOST_NATS = 100.0
"""A rise of the loss per token that counts as endless; its exponential's cube is still finite."""

Judge = Callable[[NDArray[np.floating], NDArray[np.generic] | None], ArrayLike]
"""A metric of the user's own: (outputs (rows, ...), labels (rows, ...)) to scores (rows,)."""


@dataclass(frozen=True)
class Scores:
    """What two models reached on the same samples; every array has shape (samples,).

    `before` and `after` are the scores of the original and of the new model, higher is better.
    `tokens`, with perplexity only, counts the tokens of each sample; its score is then their mean
    log-likelihood.
    """

    before: Array
    after: Array
    tokens: Array | None = field(default=None, kw_only=True)

    @property
    def damage(self) -> Array:
        """What each sample lost (samples,): before - after, or its own rise of perplexity."""
        lost = self.before - self.after
        if self.tokens is None:
            return lost
        risen: Array = np.expm1(np.minimum(lost, MOST_NATS))
        return risen

    @property
    def units(self) -> Array:
        """What a bootstrap draws from: damages (samples,), or nats lost and tokens (samples, 2)."""
        if self.tokens is None:
            return self.damage
        return np.stack([self.tokens * (self.before - self.after), self.tokens], 1)

    @property
    def statistic(self) -> Callable[[Array], Any]:
        """The drop as a function of `units`, of however many samples."""
        return np.mean if self.tokens is None else _perplexity_rise

    @property
    def drop(self) -> float:
        return float(self.statistic(self.units))

    @property
    def linear(self) -> Array:
        """Damages (samples,) whose mean is the drop and whose spread tells that of the drop.

        With perplexity they are the linear part of exp(L / T) - 1 in each sample's nats l_i lost
        and tokens t_i, L and T being their sums over n samples (the delta method):

            drop + (1 + drop) (l_i - t_i L / T) n / T
        """
        if self.tokens is None:
            return self.damage
        lost, tokens = self.units.T
        residual = lost - tokens * (lost.sum() / tokens.sum())
        damages: Array = self.drop + (1 + self.drop) * residual / tokens.mean()
        return damages

    @property
    def reached(self) -> tuple[float, float]:
        """What the original and the new model reach on all samples: mean score, or perplexity."""
        before, after = (
            float(np.average(score, weights=self.tokens)) for score in (self.before, self.after)
        )
        if self.tokens is None:
            return before, after
        return float(np.exp(min(-before, MOST_NATS))), float(np.exp(min(-after, MOST_NATS)))

    def joined(self, *others: Scores) -> Scores:
        """The scores of all these samples."""
        parts = [self, *others]
        counts = [part.tokens for part in parts if part.tokens is not None]
        return Scores(
            np.concatenate([part.before for part in parts]),
            np.concatenate([part.after for part in parts]),
            tokens=np.concatenate(counts) if counts else None,
        )

    def by_group(self, groups: NDArray[np.int64]) -> Scores:
        """Means over the samples of each group, or over their tokens; groups (samples,)."""
        _, members = np.unique(groups, return_inverse=True)
        weights = np.ones(len(members)) if self.tokens is None else self.tokens
        sizes: Array = np.bincount(members, weights).astype(np.float64)
        before, after = (
            np.bincount(members, weights * score) / np.maximum(sizes, 1.0)
            for score in (self.before, self.after)
        )
        return Scores(before, after, tokens=None if self.tokens is None else sizes)


def _perplexity_rise(units: Array) -> float:
    """exp(nats lost / tokens) - 1, of sums over units (samples, 2); 0 without any tokens."""
    lost, tokens = units.sum(0)
    return float(np.expm1(min(lost / max(tokens, 1.0), MOST_NATS)))


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
    """Gathers the scores of one metric batch by batch; `own` is its function if not in METRICS."""

    def __init__(self, metric: str, own: Judge | None = None) -> None:
        self._metric = metric
        self._measure = METRICS[metric] if own is None else partial(_judged, metric, own)
        self._parts: list[Scores] = []
        self._moments = np.zeros(3)

    def add(self, outputs: Outputs) -> None:
        """Take one batch. BadInput where the metric does not fit, or outputs are not finite."""
        if not (np.isfinite(outputs.new).all() and np.isfinite(outputs.original).all()):
            raise BadInput("the model's output holds NaN or Inf; check the model and the data")
        self._parts.append(self._measure(outputs))
        if self._metric == "nmse":
            kept = _unpadded(outputs.original.astype(np.float64), outputs.mask)
            self._moments += (kept.size, kept.sum(), np.square(kept).sum())

    def scores(self) -> Scores:
        """The scores of all batches. BadInput where perplexity is asked of no token at all."""
        scores = self._parts[0].joined(*self._parts[1:])
        if scores.tokens is not None and not scores.tokens.any():
            raise BadInput(
                "--metric perplexity: no label counts, all are below 0 or padding; give token ids"
            )
        if self._metric == "nmse":
            count, total, squares = self._moments
            variance, after = squares / count - (total / count) ** 2, scores.after
            after = after / variance if variance > 0 else np.where(after == 0, 0.0, -np.inf)
            return Scores(scores.before, after)
        return scores


def find_metric(given: str | Judge) -> tuple[str, Judge | None]:
    """The name of a metric and, if it is not one of METRICS, its function.

    Text `module:attribute` is imported, so it must be the user's. BadInput where nothing callable
    is found.
    """
    found: object = given
    if not isinstance(given, str):
        named = given if hasattr(given, "__qualname__") else type(given)
        name = f"{named.__module__}:{named.__qualname__}"
    elif given in METRICS:
        return given, None
    elif SPEC.fullmatch(given):
        name = given
        with importable(Path.cwd()):
            found = attribute(given)
    else:
        known = ", ".join(METRICS)
        raise BadInput(f"--metric {given}: unknown; it is one of {known}, or module:attribute")
    if not callable(found):
        raise BadInput(
            f"--metric {name}: is a {type(found).__name__}; give a function of (outputs, labels)"
        )
    return name, found


def _judged(name: str, own: Judge, outputs: Outputs) -> Scores:
    """The scores that the user's own function gives each model."""
    before, after = (
        _called(name, own, np.asarray(output), outputs.labels)
        for output in (outputs.original, outputs.new)
    )
    return Scores(before, after)


def _called(
    name: str, own: Judge, output: NDArray[np.floating], labels: NDArray[np.generic] | None
) -> Array:
    """Scores (rows,) of one model's output (rows, ...). BadInput where the function fails."""
    with blaming(f"--metric {name}: calling it failed"):
        scores = np.asarray(own(output, labels), np.float64)
    if scores.shape != (len(output),):
        raise BadInput(
            f"--metric {name}: gave scores of shape {scores.shape} for {len(output)} samples; give "
            "one for each"
        )
    if not np.isfinite(scores).all():
        raise BadInput(f"--metric {name}: gave NaN or Inf; give finite scores, higher is better")
    return scores


def _labels(metric: str, outputs: Outputs, last_axis: str) -> NDArray[np.generic]:
    """The labels (rows, ...) of outputs (rows, ..., d). BadInput where they do not fit."""
    new, labels = outputs.new, outputs.labels
    if labels is None:
        raise BadInput(f"--metric {metric} needs labels in the data; add an array `labels`")
    if new.shape[:-1] != labels.shape:
        raise BadInput(
            f"--metric {metric}: outputs of shape {new.shape} do not fit labels of shape "
            f"{labels.shape}; they must have one more axis, the {last_axis}"
        )
    return labels


def _accuracy(outputs: Outputs) -> Scores:
    labels = _labels("accuracy", outputs, "classes")
    before, after = (
        _per_sample(output.argmax(-1) == labels, outputs.mask)
        for output in (outputs.original, outputs.new)
    )
    return Scores(before, after)


def _perplexity(outputs: Outputs) -> Scores:
    """Mean log-likelihoods of the labels, and how many count in each sample.

    outputs (rows, ..., vocabulary) are logits; labels (rows, ...) are token ids, taken as given,
    position by position: nothing is shifted, so labels[:, t] is the token that output[:, t] is to
    foretell. Labels below 0 (-100, say) and padding do not count.
    """
    labels = _labels("perplexity", outputs, "vocabulary")
    if labels.dtype.kind not in "iu":
        raise BadInput(f"--metric perplexity: labels are {labels.dtype}; give token ids, integers")
    ids, vocabulary = cast(NDArray[np.int64], labels), outputs.new.shape[-1]
    counted = ids >= 0
    if outputs.mask is not None:
        padding = row_weights(outputs.mask, outputs.new.shape, -1) == 0
        counted &= ~padding.reshape(ids.shape)
    largest = ids[counted].max(initial=-1)
    if largest >= vocabulary:
        raise BadInput(
            f"--metric perplexity: label {largest} is outside the vocabulary of {vocabulary}; give "
            "token ids, below 0 where none counts"
        )
    rows = len(ids)
    tokens = counted.reshape(rows, -1).sum(-1).astype(np.float64)
    before, after = (
        (_log_likelihoods(output, np.where(counted, ids, 0)) * counted).reshape(rows, -1).sum(-1)
        / np.maximum(tokens, 1.0)
        for output in (outputs.original, outputs.new)
    )
    return Scores(before, after, tokens=tokens)


def _log_likelihoods(logits: NDArray[np.floating], ids: NDArray[np.int64]) -> Array:
    """log softmax(logits)[ids] for logits (rows, ..., d) and ids (rows, ...), row by row.

    A vocabulary is large: only one row is float64 at a time.
    """
    found = [
        np.take_along_axis(log_softmax(row.astype(np.float64), -1), at[..., None], -1)[..., 0]
        for row, at in zip(logits, ids, strict=True)
    ]
    return np.stack(found)


def _agreement(outputs: Outputs) -> Scores:
    if outputs.new.ndim != 2:
        raise BadInput(
            "--metric agreement needs outputs of shape (samples, classes), not "
            f"{outputs.new.shape}; take --metric cosine"
        )
    same = outputs.original.argmax(-1) == outputs.new.argmax(-1)
    return Scores(np.ones(len(same)), same.astype(np.float64))


def _cosine(outputs: Outputs) -> Scores:
    if outputs.new.ndim < 2:
        raise BadInput(f"--metric cosine needs outputs of rows, not of shape {outputs.new.shape}")
    cosines = row_cosines(outputs.original, outputs.new)
    return Scores(np.ones(len(cosines)), _per_sample(cosines, outputs.mask))


def _nmse(outputs: Outputs) -> Scores:
    """Squared errors, still to be divided by the variance over all samples."""
    errors = np.square(outputs.original.astype(np.float64) - outputs.new)
    rows = errors.mean(-1) if errors.ndim > 1 else errors
    return Scores(np.zeros(len(errors)), -_per_sample(rows, outputs.mask))


def _kl(outputs: Outputs) -> Scores:
    if outputs.new.ndim < 2:
        raise BadInput(f"--metric kl needs outputs of logits, not of shape {outputs.new.shape}")
    before = log_softmax(outputs.original.astype(np.float64), axis=-1)
    after = log_softmax(outputs.new.astype(np.float64), axis=-1)
    rows = np.maximum((np.exp(before) * (before - after)).sum(-1), 0.0)  # rounding aside
    return Scores(np.zeros(len(rows)), -_per_sample(rows, outputs.mask))


METRICS: dict[str, Callable[[Outputs], Scores]] = {
    "accuracy": _accuracy,
    "agreement": _agreement,
    "cosine": _cosine,
    "nmse": _nmse,
    "kl": _kl,
    "perplexity": _perplexity,
}

AGAINST_LABELS = frozenset({"accuracy", "perplexity"})
"""Metrics that judge a model by itself; the others compare it with an original."""


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
