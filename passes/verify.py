"""Verify: what a drop of quality is bounded by, and whether that keeps the promise.

The unit of every bound is the sample, or the group where the data has groups. Exact bounds are
called certified, bootstrap ones estimated. Forecasts say before certification, from samples seen so
far, what its bound will be and how likely it keeps the promise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from scipy.stats import norm

from ..calibration.quality import Scores
from ..ir.errors import BadInput
from ..ir.onnx_file import OnnxModel
from .bounds import (
    Bound,
    bound_agreement,
    bound_paired,
    bound_scores,
    chance_to_certify,
    clopper_pearson_upper,
    paired_score_upper,
    smallest_n,
)
from .task import Reference, Samples, Task

LEVEL = 0.95


@dataclass(frozen=True)
class Verdict:
    """What was compared and what came out.

    `before` and `after` are the mean scores (or perplexities) of the original and the new model on
    `samples` samples, `worse` and `better` count samples whose score fell or rose, `largest_damage`
    is the worst of one sample; where the data has groups, all of these are of groups. `promise` is
    the drop allowed, None where nothing was promised; `chance` is how likely it was judged, before,
    that it would be kept.
    """

    metric: str
    output: str
    samples: int
    before: float
    after: float
    drop: float
    worse: int
    better: int
    largest_damage: float
    bound: Bound
    promise: float | None
    chance: float | None = None

    @property
    def kept(self) -> bool:
        """Whether the bound keeps the promise; True where nothing was promised."""
        return self.promise is None or self.bound.upper <= self.promise


@dataclass(frozen=True)
class Forecast:
    """The bound expected on the certify split, and the chance that it keeps the promise."""

    upper: float
    chance: float


def verify(task: Task, model: OnnxModel, samples: Samples, promise: float | None) -> Verdict:
    """Compare a model with the task's original on the given samples, once.

    Raises BadInput where the files of either have changed since they were read.
    """
    with Reference(task, samples, "verify") as reference:
        scores = reference.score(model)
    for given in (task.model, model, task.data):
        given.require_unchanged()
    return judge(task, scores, promise)


def judge(task: Task, scores: Scores, promise: float | None) -> Verdict:
    """The verdict that scores lead to."""
    worse, better = counts(scores)
    before, after = scores.reached
    return Verdict(
        metric=task.metric,
        output=task.output,
        samples=len(scores.damage),
        before=before,
        after=after,
        drop=scores.drop,
        worse=worse,
        better=better,
        largest_damage=float(scores.damage.max()),
        bound=bound(task, scores),
        promise=promise,
    )


def counts(scores: Scores) -> tuple[int, int]:
    """How many samples got worse and how many better."""
    return int((scores.damage > 0).sum()), int((scores.damage < 0).sum())


def bound(task: Task, scores: Scores) -> Bound:
    """One-sided 95 % upper limit on the drop. BadInput where the bootstrap has too few samples."""
    if not task.is_exact:
        if len(scores.damage) < 2:
            unit = "sample" if task.data.groups is None else "group"
            raise BadInput(f"a limit on {task.metric} needs at least 2 {unit}s; give more data")
        return bound_scores(scores.units, scores.statistic, level=LEVEL)
    if task.metric == "agreement":
        return bound_agreement(scores.after > 0.5, LEVEL)
    return bound_paired(scores.before > 0.5, scores.after > 0.5, LEVEL)


def forecast(task: Task, scores: Scores, promise: float | None, least: float = 0.0) -> Forecast:
    """What the task's certify split will say, judged from scores on other samples."""
    fresh = task.units(task.splits.certify)
    return foretell(scores, fresh, promise, task.metric if task.is_exact else None, least)


def harm(task: Task, scores: Scores) -> float:
    """What `least` of a forecast is of: the drop, or the share that got worse where it counts."""
    return counts(scores)[0] / len(scores.damage) if task.is_exact else scores.drop


def foretell(
    scores: Scores, fresh: int, promise: float | None, exact: str | None, least: float = 0.0
) -> Forecast:
    """What `fresh` other samples will say; `exact` names the metric where its bound is exact.

    At least the harm `least` is expected, whatever these samples say.
    Many plans are compared on these scores, so a gain seen there is taken for luck: no more samples
    are expected to get better than worse, and no drop below zero.
    """
    seen = len(scores.damage)
    worse, better = counts(scores)
    if exact is not None:
        worse = min(max(worse, round(least * seen)), seen)
        paired = exact == "accuracy"
        better = min(worse, better, seen - worse) if paired else 0
        share = fresh / seen
        if paired:
            upper = float(paired_score_upper(worse * share, better * share, fresh, LEVEL))
        else:
            upper = clopper_pearson_upper(round(worse * share), fresh, LEVEL)
        chance = 1.0
        if promise is not None:
            chance = chance_to_certify(worse, better, seen, fresh, promise, paired=paired)
        return Forecast(max(upper, 0.0), chance)
    mean, deviation = max(scores.drop, least, 0.0), float(scores.linear.std())
    upper = mean + norm.ppf(LEVEL) * deviation / math.sqrt(fresh)
    if promise is None:
        return Forecast(upper, 1.0)
    spread = deviation * math.sqrt(1 / seen + 1 / fresh)
    chance = norm.cdf((promise - upper) / spread) if spread > 0 else float(upper <= promise)
    return Forecast(upper, float(chance))


def samples_needed(task: Task, promise: float) -> int:
    """Fewest certify samples on which even a loss-free result keeps the promise."""
    if not task.is_exact:
        return 2
    return smallest_n(promise, LEVEL, paired=task.metric == "accuracy")


UNITS = {
    "accuracy": "points",
    "agreement": "points",
    "cosine": "1 - cosine",
    "nmse": "share of variance",
    "kl": "nats",
    "perplexity": "relative rise",
}
"""What a drop is counted in; of a metric of the user's own, in what that gives."""


def unit(metric: str) -> str:
    return UNITS.get(metric, metric)


def shown(metric: str, drop: float) -> str:
    """A drop as people write it: points for shares of samples, else the number itself."""
    return f"{100 * drop:.2f} points" if metric in ("accuracy", "agreement") else f"{drop:.4g}"
