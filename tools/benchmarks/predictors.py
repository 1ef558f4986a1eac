"""Which metric of redundancy tells best what removing a unit does to the output?

    python -m blockfold.tools.benchmarks.predictors --model NAME MODEL DATA METRIC [--model ...]

Every unit that may be replaced is replaced by itself, once by nothing and once by its best map, and
the damage on the select split is set beside what each metric said of the unit from the fit split.
Printed is Spearman's rank correlation, 1 where the metric sorts the units exactly by damage.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
from scipy.stats import spearmanr

from ...passes.costs import CostModel, Costs
from ...passes.fit import Healing, Recipe
from ...passes.score import Redundancy, score
from ...passes.similarity import UnitRecord
from ...passes.surrogates import Wish
from ...passes.task import Task
from ...passes.trial import Trials
from .cases import Case, on_cases, write_json

TOGETHER = 4
"""Recipes fitted in one walk."""

UNREPAIRED = Healing(refit=None)

METRICS: dict[str, Callable[[Redundancy, UnitRecord], float | None]] = {
    "block redundancy": lambda span, _: -span.block_redundancy,
    "block influence": lambda span, _: span.block_influence,
    "identity error": lambda span, _: span.identity_error,
    "1 - affine R2": lambda span, _: 1.0 - span.affine_r2,
    "1 - CKA": lambda _, unit: 1.0 - unit.cka,
    "sliced W2": lambda _, unit: unit.max_sliced_wasserstein,
    "gain of modularity": lambda _, unit: unit.modularity_gain,
}
"""Each so that more means less redundant."""


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
    records = {
        (similarity.stream, unit.name): unit
        for similarity in survey.similarities
        for unit in similarity.units
    }
    pairs = [
        (span, records[span.span.stream, span.span.name])
        for span in survey.spans
        if span.span.stop - span.span.start == 1 and (span.span.stream, span.span.name) in records
    ]
    free = CostModel(survey.layout.anatomies, Costs(1.0, {}, {}))
    with Trials(task, survey.layout, free, None) as trials:
        pairs = [(span, unit) for span, unit in pairs if span.span.blocks > 0]
        spans = [span.span for span, _ in pairs]
        wishes = [Wish(span, "identity") for span in spans]
        wishes += [Wish(span, trials.forms.mapping(span)) for span in spans]
        recipes = [Recipe((wish,), UNREPAIRED) for wish in wishes]
        damages = [
            trial.damage
            for at in range(0, len(recipes), TOGETHER)
            for trial in trials.fit(recipes[at : at + TOGETHER])
        ]
    dropped, mapped = damages[: len(spans)], damages[len(spans) :]
    return [
        Correlation(
            name,
            metric,
            len(spans),
            _spearman([of(*pair) for pair in pairs], dropped),
            _spearman([of(*pair) for pair in pairs], mapped),
        )
        for metric, of in METRICS.items()
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
    for metric in METRICS:
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
