"""Which metric of redundancy tells best what removing a unit does to the output?

    python -m blockfold.tools.benchmarks.predictors --model NAME MODEL DATA METRIC [--model ...]

Every unit that may be replaced is replaced by itself, once by nothing and once by its best map, and
the damage on the select split is set beside what each metric said of the unit. Printed is
Spearman's rank correlation, 1 where the metric sorts the units exactly by damage. The last row is
what the search goes by: error at the exit times how much the output feels one there, for which one
surrogate of each exit is measured on a few samples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
from scipy.stats import spearmanr

from ...passes.budget import Budget
from ...passes.costs import CostModel, Costs
from ...passes.rating import METRICS, rating
from ...passes.recipe import Healing, Recipe
from ...passes.score import score
from ...passes.search import Search
from ...passes.surrogates import Wish
from ...passes.task import Task
from ...passes.trial import Trials
from .cases import Case, on_cases, write_json

TOGETHER = 4
"""Recipes fitted in one walk."""

UNREPAIRED = Healing(refit=None)

FORETOLD = "error x sensitivity"


@dataclass(frozen=True)
class Correlation:
    """Of one metric on one model; nan where it says nothing of the units."""

    model: str
    metric: str
    units: int
    dropped: float
    mapped: float


def correlations(name: str, task: Task) -> list[Correlation]:
    """What every metric says of a model's units, against damages."""
    survey = score(task)
    units = [one for one in survey.spans if one.span.stop - one.span.start == 1]
    units = [one for one in units if one.span.blocks > 0]
    free = CostModel(survey.layout.anatomies, Costs(1.0, {}, {}))
    with Trials(task, survey.layout, free, None) as trials:
        drops = [Wish(one.span, "identity") for one in units]
        maps = [Wish(one.span, trials.forms.mapping(one.span)) for one in units]
        recipes = [Recipe((wish,), UNREPAIRED) for wish in (*drops, *maps)]
        damages = [
            trial.damage
            for at in range(0, len(recipes), TOGETHER)
            for trial in trials.fit_all(recipes[at : at + TOGETHER])
        ]
        options = Search(trials, Budget.of()).probe().options()
    foretold = {option.wish: option.foretold for option in options}
    said: dict[str, list[list[float | None]]] = {
        metric: [[rating(metric, one) for one in units]] * 2 for metric in METRICS
    }
    said[FORETOLD] = [[foretold.get(wish) for wish in wishes] for wishes in (drops, maps)]
    return [
        Correlation(
            name,
            metric,
            len(units),
            _spearman(of_drops, damages[: len(units)]),
            _spearman(of_maps, damages[len(units) :]),
        )
        for metric, (of_drops, of_maps) in said.items()
    ]


def _spearman(said: Sequence[float | None], damages: Sequence[float]) -> float:
    known = [(s, d) for s, d in zip(said, damages, strict=True) if s is not None]
    if len(known) < 3:
        return math.nan
    x, y = np.array(known).T
    return float(spearmanr(x, y).statistic)


def show(found: Sequence[Correlation]) -> None:
    """A table in Markdown: metrics down, models across, dropped / mapped."""
    models = list(dict.fromkeys(c.model for c in found))
    units = {c.model: c.units for c in found}
    cells = {(c.model, c.metric): c for c in found}
    heads = [f"{model} ({units[model]})" for model in models]
    click.echo(f"| metric | {' | '.join(heads)} |")
    click.echo(f"| --- |{' --- |' * len(models)}")
    for metric in dict.fromkeys(c.metric for c in found):
        row = [cells[model, metric] for model in models]
        click.echo(f"| {metric} | {' | '.join(f'{c.dropped:.2f} / {c.mapped:.2f}' for c in row)} |")


@click.command()
@on_cases
def main(cases: Sequence[Case], seed: int, target: Path | None) -> None:
    """Correlate what metrics say of units with what replacing them does."""
    found: list[Correlation] = []
    for case in cases:
        with case.opened(case.settings(seed)) as task:
            found += correlations(case.name, task)
    show(found)
    write_json(target, found)


if __name__ == "__main__":
    main()
