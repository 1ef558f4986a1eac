"""Trials: sets of surrogates that were fitted together and measured on the select split."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import cache, partial

import numpy as np
from scipy.optimize import isotonic_regression

from ..calibration.quality import Scores
from ..ir.onnx_file import OnnxModel
from ..ir.spans import Refusal
from .costs import CostModel
from .fit import Walk
from .forms import Forms
from .layout import Layout
from .pipeline import build
from .recipe import Fitted, Recipe, unfollowed
from .replacement import Replacement
from .stops import find_stops
from .task import Reference, Task
from .verify import Forecast, forecast, harm


@dataclass(frozen=True)
class Trial:
    """A recipe, fitted front to back, and what it came to.

    `scores` are on the select split and `fresh` on the fit split; `damage` is the mean by the
    task's smooth metric on select, `forecast` what the certify split is expected to say.
    """

    recipe: Recipe
    replacements: tuple[Replacement, ...]
    scores: Scores
    fresh: Scores
    damage: float
    forecast: Forecast
    saved_ms: float
    speedup: float
    size: Callable[[], int] = field(repr=False)

    @property
    def size_bytes(self) -> int:
        """Of the model's file, which must be made to be known."""
        return self.size()

    @property
    def blocks(self) -> float:
        return sum(wish.span.blocks for wish in self.recipe.wishes)


def _size_bytes(model: OnnxModel, replacements: Sequence[Replacement]) -> int:
    return build(model, replacements).size_bytes


def tempered(task: Task, trials: Sequence[Trial], promise: float | None) -> list[Trial]:
    """The trials, none expected to do less harm than those do that damage the output as little.

    The best of many on select is partly the luckiest. Luck shows in the few samples that turn, far
    less in the damage by the smooth metric; so the harm seen is made to rise with that damage, by
    isotonic regression and at least in the proportion of all trials together, and a trial below the
    line is taken to lie on it.
    """
    if not trials:
        return []
    order = np.argsort([trial.damage for trial in trials], kind="stable")
    seen = np.array([harm(task, trials[at].scores) for at in order])
    damages = np.array([trials[at].damage for at in order])
    slope = max(float(seen.sum()), 0.0) / (float(damages.sum()) or 1.0)
    least = np.maximum(isotonic_regression(seen).x, slope * damages)
    line = dict(zip(order.tolist(), least.tolist(), strict=True))
    return [
        replace(trial, forecast=forecast(task, trial.scores, promise, line[at]))
        for at, trial in enumerate(trials)
    ]


class Trials:
    """Fits recipes of one task and measures them; `done` lists all, in order.

    `refused`: why some could not be followed in the model's type.
    """

    def __init__(self, task: Task, layout: Layout, costs: CostModel, promise: float | None) -> None:
        self.task, self.layout, self.costs, self.promise = task, layout, costs, promise
        self.walk = Walk(task, find_stops(task, layout.anatomies, layout.observed))
        self.forms = Forms(task, self.walk, layout.anatomies)
        self.done: list[Trial] = []
        self.refused: list[Refusal] = []
        self._open = ExitStack()
        self._references: tuple[Reference, Reference] | None = None

    def fit(self, recipes: Sequence[Recipe]) -> list[Trial]:
        """Fit recipes in one walk and measure what comes out; those refused are left out."""
        if self._references is None:
            fit, select = self.task.splits.fit, self.task.splits.select
            self.walk.pieces.make_room(self.task.model.size_bytes)
            self._references = (
                self._open.enter_context(Reference(self.task, fit, "original on fit")),
                self._open.enter_context(Reference(self.task, select, "original on select")),
            )
        walked = self.walk(recipes)
        self.refused += [fitted.refusal for fitted in walked if fitted.refusal is not None]
        trials = [self._measured(fitted) for fitted in walked if fitted.refusal is None]
        self.done += trials
        return trials

    def fit_all(self, recipes: Sequence[Recipe]) -> list[Trial]:
        """As `fit`, a trial for each recipe. Raises NotMet where one is refused."""
        trials = self.fit(recipes)
        if len(trials) < len(recipes):
            raise unfollowed(self.refused[-1])
        return trials

    def _measured(self, fitted: Fitted) -> Trial:
        assert self._references is not None
        output, wishes = self.task.output, fitted.recipe.wishes
        on_fit, on_select = self._references
        scores, damage = on_select.judge(fitted.tapes.select.real(output))
        fresh = on_fit.score_outputs(fitted.tapes.fit.real(output))
        fitted.close()
        return Trial(
            fitted.recipe,
            fitted.replacements,
            scores,
            fresh,
            damage,
            forecast(self.task, scores, self.promise),
            sum(map(self.costs.saved_ms, wishes)),
            self.costs.speedup(wishes),
            cache(partial(_size_bytes, self.task.plain, fitted.replacements)),
        )

    def solved_on_both(self, trials: Sequence[Trial]) -> list[tuple[Replacement, ...]]:
        """The trials' replacements solved again on fit and select, every choice kept."""
        return self.walk.solved_on_both([(t.recipe, t.replacements) for t in trials])

    def __enter__(self) -> Trials:
        return self

    def __exit__(self, *error: object) -> None:
        self._open.close()
        self.walk.pieces.close()
