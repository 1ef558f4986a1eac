"""Published methods and blockfold side by side, at equal FLOPs and on the same spans.

    python -m blockfold.tools.benchmarks.compare \\
        --model kwt1 kwt1.onnx kwt1.npz accuracy --model minilm m.onnx m.npz cosine \\
        --json compare.json

For 1 to 5 blocks: drop, rba and replaceme remove that many, on spans of their own choice; blockfold
looks for the least damage at the FLOPs that rba leaves. Then all four on the spans that rba chose.
Everything is fitted and chosen on the fit and select splits; what is shown was scored on the
certify split, which nothing was chosen on. Prints Markdown.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from ...calibration.flops import flops
from ...ir.onnx_file import OnnxModel
from ...passes.budget import Budget
from ...passes.costs import CostModel, count_costs
from ...passes.exits import exit_errors
from ...passes.layout import lay_out
from ...passes.methods import METHODS, PRESETS, Method, Published
from ...passes.pipeline import build
from ...passes.probe import Option
from ...passes.recipe import Healing, Recipe
from ...passes.search import EMPHASES, Search
from ...passes.surrogates import Wish
from ...passes.task import Reference, Task
from ...passes.trial import Trial, Trials
from .. import opening
from .ablation import ablations
from .cases import Case, on_cases, write_json
from .compare_tables import show
from .findings import Ablation, Cell, Comparison, Prediction
from .paired import damage_by

BLOCKS = range(1, 6)
ABLATED = (2, 4)


class Comparer:
    """Fits and scores recipes of one task."""

    def __init__(self, name: str, task: Task, options: opening.Settings) -> None:
        self.name, self.task = name, task
        self.layout = lay_out(task)
        profile = opening.profile_of(task, options)
        self._feeds = profile.feeds
        self.costs = CostModel(self.layout.anatomies, count_costs(task, self.layout, profile))
        self.trials = Trials(task, self.layout, self.costs, None)
        self.published = Published(self.trials)
        self.certify = Reference(task, task.splits.certify, "original on certify")
        self._options: tuple[Option, ...] = ()

    def _flops(self, model: OnnxModel) -> float:
        return float(flops(model, self.task.runtime, self._feeds))

    def compare(self) -> Comparison:
        """Both tables of the model."""
        first = damage_by(self.task, self.certify, self.task.model)
        found = Comparison(self.name, first.unit, first.reached, first.samples)
        for blocks in BLOCKS:
            own = {m: self.published.recipe(m, blocks) for m in METHODS if m in PRESETS}
            rba = own["rba"]
            if rba is None:
                break
            known = {m: recipe for m, recipe in own.items() if recipe is not None}
            trials = dict(zip(known, self.trials.fit_all([*known.values()]), strict=True))
            trials["blockfold"] = self._search(trials["rba"])
            found.cells += self.cells("own spans", blocks, trials)
            spans = [wish.span for wish in rba.wishes]
            alike = {**self.alike(spans), "rba": trials["rba"]}
            found.cells += self.cells("same spans", blocks, alike)
            ours = trials["blockfold"]
            found.predictions += self._predictions(ours)
            if blocks in ABLATED:
                found.ablations += self._ablated(blocks, ours)
        return found

    def _predictions(self, trial: Trial) -> Iterator[Prediction]:
        """The errors of a trial's surrogates, as foretold and as they are."""
        model = build(self.task.plain, trial.replacements)
        spans = [r for r in trial.replacements if r.form != "refit"]
        errors = exit_errors(self.task, model, spans, self.task.splits.certify)
        for replacement, error in zip(spans, errors, strict=True):
            solution, span = replacement.solution, replacement.span
            ratio = solution.rows / len(solution.W) if solution is not None else math.inf
            yield Prediction(span.name, replacement.form, ratio, replacement.predicted_error, error)

    def _ablated(self, blocks: int, trial: Trial) -> Iterator[Ablation]:
        forms = self.trials.forms
        mapping = {wish: forms.mapping(wish.span) for wish in trial.recipe.wishes}
        recipes = ablations(trial.recipe, mapping)
        solved = self.trials.solved_on_both(self.trials.fit_all([*recipes.values()]))
        for name, replacements in zip(recipes, solved, strict=True):
            damage = damage_by(self.task, self.certify, build(self.task.plain, replacements))
            yield Ablation(blocks, name, damage.value, damage.smooth)

    def _search(self, rba: Trial) -> Trial:
        """blockfold's choice at the FLOPs that another trial leaves."""
        budget = Budget(speedup=rba.speedup)
        search = Search(self.trials, budget, margin=0.0)
        tried = search.run(self._options)
        self._options = search.options
        return budget.ranked(tried)[0]

    def alike(self, spans: Sequence[Any]) -> dict[Method, Trial]:
        """Every method on the same spans; blockfold takes the forms of least damage on select."""
        recipes: dict[Method, Recipe] = {
            "drop": Recipe(tuple(Wish(s, "identity") for s in spans), PRESETS["drop"].healing)
        }
        if all(map(self.published.is_foldable, spans)):
            wishes = tuple(Wish(span, "folded") for span in spans)
            recipes["replaceme"] = Recipe(wishes, PRESETS["replaceme"].healing)
        forms = self.trials.forms
        maps = tuple(Wish(span, forms.mapping(span)) for span in spans)
        sets = [maps, tuple(replace(w, form=forms.richer(w.span, w.form)) for w in maps)]
        if all(map(forms.is_fed, spans)):
            sets.append(tuple(Wish(span, "folded") for span in spans))
        if all(span.is_map for span in spans):
            sets.append(tuple(Wish(span, "conv") for span in spans))
        picked = any(stop.picked for stop in self.trials.walk.stops)
        weights = EMPHASES if picked else EMPHASES[:1]
        ours = [Recipe(wishes, Healing(e, e)) for wishes in dict.fromkeys(sets) for e in weights]
        fitted = self.trials.fit_all([*recipes.values(), *ours])
        found: dict[Method, Trial] = dict(zip(recipes, fitted, strict=False))
        found["blockfold"] = min(fitted[len(recipes) :], key=lambda trial: trial.damage)
        return found

    def cells(self, table: str, blocks: int, trials: Mapping[Method, Trial]) -> Iterator[Cell]:
        """What each does, solved on fit and select, on the certify split."""
        solved = self.trials.solved_on_both([*trials.values()])
        models = [build(self.task.plain, replacements) for replacements in solved]
        damages = {
            method: damage_by(self.task, self.certify, model)
            for method, model in zip(trials, models, strict=True)
        }
        lefts = dict(zip(trials, map(self._flops, models), strict=True))
        rivals = [damages[m] for m in trials if m != "blockfold"]
        best = min(rivals, key=lambda damage: damage.value)
        for method in METHODS:
            if method in trials:
                damage, trial = damages[method], trials[method]
                yield Cell(
                    self.name,
                    table,
                    method,
                    blocks,
                    damage.value,
                    *damage.interval,
                    damage.smooth,
                    lefts[method] / self.costs.model_ms,
                    tuple(f"{w.span.name}: {w.form}" for w in trial.recipe.wishes),
                    len(trial.replacements) - len(trial.recipe.wishes),
                    damage.minus(best) if method == "blockfold" else None,
                )


@contextmanager
def comparer(case: Case, seed: int) -> Iterator[Comparer]:
    settings = case.settings(seed)
    with case.opened(settings) as task:
        made = Comparer(case.name, task, settings)
        with made.trials, made.certify:
            yield made


@click.command()
@on_cases
def main(cases: Sequence[Case], seed: int, target: Path | None) -> None:
    """Compare drop, rba, replaceme and blockfold."""
    found = []
    for case in cases:
        with comparer(case, seed) as one:
            found.append(one.compare())
        show(found[-1])
    write_json(target, found)


if __name__ == "__main__":
    main()
