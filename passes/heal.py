"""Heal: fit the leading plans front to back, with richer surrogates, and repair what they feed.

The search measures every replacement by its plain map, solved on the original's stream. Here the
best sets of them are solved again in one walk, each on what those before it left, with the mean of
the sample beside every row where a span mixes positions; then what they feed is solved again. How
much rows that alone are read in the end should count is chosen by the damage on select.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ..calibration.tape import Pieces
from ..ir.spans import Span
from .budget import Budget
from .cleanup import Cleanup
from .fit import Healing, Recipe, Walk, Wish
from .score import Survey
from .stops import find_stops
from .substitute import Substitute
from .surrogates import Form
from .task import Reference, Task
from .trial import Choice, Trial
from .verify import forecast

EMPHASES = (1.0, 30.0)
"""Weights to try for rows that alone are read in the end."""

NUDGE = 0.1
"""By what share of its size a row is changed to see what depends on it."""


class Healer:
    """Fits plans of one task; what it learns of spans and sessions serves all of them."""

    def __init__(self, task: Task, survey: Survey, budget: Budget) -> None:
        self.task, self.budget = task, budget
        stops = find_stops(task, survey.anatomies, survey.observed)
        self.walk = Walk(task, stops)
        self._stops = {(stop.stream, stop.cut): stop for stop in stops}
        self._mixes: dict[tuple[str, str], bool] = {}

    def heal(self, fit: Reference, select: Reference, trials: Sequence[Trial]) -> list[Trial]:
        """The trials fitted anew, each with the healing that does it least damage on select."""
        recipes = [(trial, recipe) for trial in trials for recipe in self._recipes(trial)]
        best: dict[int, Trial] = {}
        fitted = self.walk([recipe for _, recipe in recipes])
        for (trial, _), found in zip(recipes, fitted, strict=True):
            scores, fresh = (
                judge.score_outputs(tape.real(self.task.output))
                for judge, tape in zip((select, fit), reversed(found.tapes), strict=True)
            )
            found.close()
            expected = forecast(self.task, scores, self.budget.max_drop)
            model = Cleanup()(Substitute(found.replacements)(self.task.plain).model).model
            healed = replace(
                trial,
                scores=scores,
                forecast=expected,
                size_bytes=model.size_bytes,
                fitted=found,
                fresh=fresh,
            )
            other = best.get(id(trial))
            if other is None or expected.upper < other.forecast.upper:
                best[id(trial)] = healed
        return list(best.values())

    def _recipes(self, trial: Trial) -> list[Recipe]:
        """Ways to fit a trial: row weights, and forms that cost about as much."""
        picked = any(stop.picked for stop in self._stops.values())
        healings = [Healing(weight) for weight in (EMPHASES if picked else EMPHASES[:1])]
        plain, richer = (
            tuple(Wish(c.span, self._form(c, richer=richer)) for c in trial.choices)
            for richer in (False, True)
        )
        recipes = [Recipe(plain, healing) for healing in healings]
        return recipes if richer == plain else [*recipes, Recipe(richer, healings[0])]

    def _form(self, choice: Choice, *, richer: bool) -> Form:
        """What to put in the place of the identity or the affine map that the search tried."""
        span = choice.span
        stop = self._stops.get((span.stream, span.start))
        is_fed = stop is not None and stop.linear is not None
        if choice.replacement.surrogate == "identity":
            return "folded" if is_fed else "identity"
        if richer and span.is_map:
            return "conv"
        if richer and is_fed:
            return "affine + folded"
        return "affine + context" if self._is_mixing(span) else "affine"

    def _is_mixing(self, span: Span) -> bool:
        """Whether the first position of the exit depends on the last position of the entry.

        A causal span's does not, nor one's that treats every position by itself: there a mean over
        all positions would let in what the span could not see.
        """
        key = span.entry, span.exit
        if key not in self._mixes:
            self._mixes[key] = mixes(self.task, self.walk.pieces, span)
        return self._mixes[key]


def mixes(task: Task, pieces: Pieces, span: Span) -> bool:
    """See `Healer._is_mixing`; seen on one sample, padding apart."""
    batch = next(iter(task.data.batches(task.splits.fit[:1], pieces.fixed_batch or 1)))
    tape = Walk(task, ()).tape(batch.samples)
    tape.reach([span.entry])
    (piece,) = tape.batches()
    entry = np.array(np.moveaxis(piece.values[span.entry], span.channel_axis, -1), order="C")
    if entry.ndim < 3:
        return False
    mask = task.padding(piece.feeds)
    flat = entry.reshape(len(entry), -1, entry.shape[-1])
    last = flat.shape[1] - 1
    if mask is not None and mask.shape == entry.shape[:-1]:
        last = int(np.flatnonzero(mask[0])[-1]) if mask[0].any() else 0
    if last == 0:
        return False
    runner = pieces.open([span.entry], [span.exit])
    size = float(np.abs(flat).mean()) or 1.0
    rows = []
    for step in (0.0, NUDGE * size):
        flat[:, last] += np.asarray(step, flat.dtype)
        moved = np.ascontiguousarray(np.moveaxis(entry, -1, span.channel_axis))
        at_hand = {**piece.feeds, span.entry: moved}
        made = runner.run_whole({name: at_hand[name] for name in runner.inputs})[span.exit]
        exit_ = np.moveaxis(made, span.channel_axis, -1)
        rows.append(exit_.reshape(len(exit_), -1, exit_.shape[-1])[:, 0])
    return bool((rows[0] != rows[1]).any())
