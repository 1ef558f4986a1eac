"""Search: which replacements to make together, judged by the damage at the model's output.

Predicted errors only decide what is worth measuring. Every unit, block and promising run of blocks
is put in alone and scored on the select split; then replacements are added, or swapped for longer
ones, while the promise still holds. Each set tried is kept, so that the trade-off can be shown.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from ..calibration.quality import Scores
from ..ir.onnx_file import OnnxModel
from ..ir.spans import Span, prove
from .budget import ENOUGH_CHANCE, LEAST_CHANCE, Budget
from .cleanup import Cleanup
from .costs import CostModel
from .fit import Healing
from .heal import Healer
from .replacement import Replacement
from .score import Redundancy, Survey, measure
from .substitute import Substitute
from .task import Reference, Task
from .trial import Choice, Trial
from .verify import Forecast, forecast

SHORTLIST_PER_UNIT = 2
LONGEST_RUN_BLOCKS = 4
HEALED = 6
"""How many sets of replacements are fitted front to back."""

BEYOND = 2.0
"""How far over the drop allowed a set may be expected before it is."""

WIDTH = 3
"""How many ways to go on are measured at each step of the search."""


def build(model: OnnxModel, replacements: Sequence[Replacement]) -> OnnxModel:
    """The model with the replacements made and what they free removed."""
    return Cleanup()(Substitute(replacements)(model).model).model


class Search:
    """One search on one task; `trials` lists all that was measured, in order."""

    def __init__(self, task: Task, survey: Survey, costs: CostModel, budget: Budget) -> None:
        self.task, self.survey, self.costs, self.budget = task, survey, costs, budget
        self.trials: list[Trial] = []
        self.healer = Healer(task, survey, budget)

    def run(self) -> list[Trial]:
        """Measure single replacements, then runs of blocks, then combinations."""
        fit, select = self.task.splits.fit, self.task.splits.select
        with (
            Reference(self.task, select, "original on select") as reference,
            Reference(self.task, fit, "original on fit") as beside,
        ):
            singles = self._measure_alone(reference, self._shortlist(), "single replacements")
            longer = self._runs_of_blocks(singles)
            singles += self._measure_alone(reference, longer, "runs of blocks")
            self._combine(reference, singles)
            front = self._front()
            self.trials += self.healer.heal(beside, reference, front) if front else []
        return self.trials

    def _front(self) -> list[Trial]:
        """Trials worth fitting front to back: those that may be chosen, or lie not far beyond."""
        worth = [trial for trial in self.trials if self._is_near(trial)]
        if self.budget.has_target:
            return sorted(worth, key=lambda trial: trial.forecast.upper)[:HEALED]
        front: list[Trial] = []
        for trial in sorted(worth, key=lambda trial: (-trial.saved_ms, trial.forecast.upper)):
            if not front or trial.forecast.upper < front[-1].forecast.upper:
                front.append(trial)
        return front[:HEALED]

    def _is_near(self, trial: Trial) -> bool:
        if not self.budget.reached(trial):
            return False
        return self.budget.max_drop is None or trial.forecast.upper <= BEYOND * self.budget.max_drop

    def solved_on_both(self, trial: Trial) -> tuple[tuple[Replacement, ...], Healing]:
        """A trial's replacements solved once more, on fit and select, every choice kept."""
        if trial.fitted is not None:
            healing = trial.fitted.recipe.healing
            return self.healer.walk.solved_on_both(trial.fitted), healing
        solved = tuple(
            replace(c.replacement, solution=c.redundancy.solved_on_both())
            if c.replacement.solution is not None
            else c.replacement
            for c in trial.choices
        )
        return solved, Healing(refit=None)

    def confirm(self, trials: Sequence[Trial]) -> tuple[Trial, Forecast] | None:
        """The first of the ranked trials that the fit split confirms, else the likeliest.

        The best of many on select is partly the luckiest. The fit split gave the maps but chose
        nothing, so it must say so too, by itself and together with select; the worse forecast
        counts.
        """
        found: list[tuple[Trial, Forecast]] = []
        with Reference(self.task, self.task.splits.fit, "original on fit") as reference:
            for trial in self.budget.ranked(trials):
                fresh = _scored(reference, self.task, trial)
                expected = min(
                    (self._forecast(scores) for scores in (fresh, trial.scores.joined(fresh))),
                    key=lambda forecast: forecast.chance,
                )
                found.append((trial, expected))
                if self.budget.allows(expected, ENOUGH_CHANCE):
                    return trial, expected
        likely = [pair for pair in found if self.budget.allows(pair[1], LEAST_CHANCE)]
        return max(likely, key=lambda pair: pair[1].chance, default=None)

    def _forecast(self, scores: Scores) -> Forecast:
        return forecast(self.task, scores, self.budget.max_drop)

    def _shortlist(self) -> list[Choice]:
        choices = [c for r in self.survey.spans for c in _both(r) if self._is_worthwhile(c)]
        choices.sort(key=lambda choice: choice.replacement.predicted_error)
        units = sum(len(stream.units) for stream in self.survey.anatomies)
        return choices[: max(SHORTLIST_PER_UNIT * units, 1)]

    def _measure_alone(
        self, reference: Reference, choices: Sequence[Choice], stage: str
    ) -> list[Trial]:
        with self.task.stage(stage, len(choices)) as advance:
            found = []
            for choice in choices:
                found.append(self._measure(reference, (choice,)))
                advance(1)
        return found

    def _measure(self, reference: Reference, choices: tuple[Choice, ...]) -> Trial:
        replacements = [choice.replacement for choice in choices]
        model = build(self.task.plain, replacements)
        scores = reference.score(model)
        trial = Trial(
            choices,
            scores,
            self._forecast(scores),
            sum(map(self.costs.saved_ms, replacements)),
            self.costs.speedup(replacements),
            model.size_bytes,
        )
        self.trials.append(trial)
        return trial

    def _runs_of_blocks(self, singles: Sequence[Trial]) -> list[Choice]:
        """Maps over two to four neighbouring blocks, as many as there are blocks.

        Taken are those whose blocks did least damage one by one.
        """
        damage: dict[tuple[str, int, int], float] = {}
        for trial in singles:
            span = trial.choices[0].span
            key = (span.stream, span.start, span.stop)
            damage[key] = min(damage.get(key, float("inf")), trial.forecast.upper)
        runs: list[tuple[float, Span]] = []
        for stream in self.survey.anatomies:
            blocks = stream.blocks
            for first in range(len(blocks)):
                for count in range(2, LONGEST_RUN_BLOCKS + 1):
                    run = blocks[first : first + count]
                    keys = [(stream.chain.source, b.start, b.stop) for b in run]
                    if len(run) < count or any(key not in damage for key in keys):
                        break
                    proved = prove(
                        self.task.plain.graph,
                        stream,
                        run[0].start,
                        run[-1].stop,
                        self.survey.observed,
                    )
                    if not isinstance(proved, Span):
                        break
                    runs.append((sum(damage[key] for key in keys) / count, proved))
        runs.sort(key=lambda run: (run[0], run[1].start, run[1].stop))
        limit = sum(len(stream.blocks) for stream in self.survey.anatomies)
        measured = measure(self.task, [span for _, span in runs[:limit]], "survey of longer runs")
        return [c for c in map(_affine, measured) if self._is_worthwhile(c)]

    def _is_worthwhile(self, choice: Choice) -> bool:
        """Whether the span is more than the map that would replace it."""
        span, solution = choice.span, choice.replacement.solution
        stored = 0 if solution is None else solution.W.size + solution.b.size
        nodes = len(choice.replacement.nodes(self.task.plain)) if solution is not None else 0
        graph = self.task.plain.graph
        return graph.parameters(span.removed) > stored or (
            len(span.removed) > nodes and self.costs.gained_ms(choice.replacement) > 0
        )

    def _combine(self, reference: Reference, singles: Sequence[Trial]) -> None:
        options = [(trial.choices[0], max(trial.forecast.upper, 0.0)) for trial in singles]
        current: Trial | None = None
        steps = sum(len(stream.blocks) for stream in self.survey.anatomies)
        with self.task.stage("combinations", steps) as advance:
            while not (self.budget.has_target and current and self.budget.reached(current)):
                current = self._step(reference, options, singles, current)
                if current is None:
                    break
                advance(1)

    def _step(
        self,
        reference: Reference,
        options: Sequence[tuple[Choice, float]],
        singles: Sequence[Trial],
        current: Trial | None,
    ) -> Trial | None:
        """The best next set, or None where none saves more and keeps the promise."""
        if current is None:
            tried = list(singles)
        else:
            moves = sorted(self._moves(options, current), key=lambda move: move[0])[:WIDTH]
            tried = [self._measure(reference, choices) for _, choices in moves]
        within = [
            trial
            for trial in tried
            if self.budget.max_drop is None or trial.forecast.upper <= BEYOND * self.budget.max_drop
        ]
        return min(within, key=self._price, default=None)

    def _moves(
        self, options: Iterable[tuple[Choice, float]], current: Trial
    ) -> list[tuple[float, tuple[Choice, ...]]]:
        """Ways to save more than now, each with its expected price: damage per time saved."""
        damage = {id(choice): value for choice, value in options}
        moves = []
        for choice, value in options:
            kept = [c for c in current.choices if not c.span.touches(choice.span)]
            choices = tuple(sorted((*kept, choice), key=lambda c: (c.span.stream, c.span.start)))
            gain = self.budget.gain([c.replacement for c in choices], self.costs)
            if gain > self.budget.gain([c.replacement for c in current.choices], self.costs):
                expected = value + sum(damage[id(c)] for c in kept)
                moves.append((expected / gain, choices))
        return moves

    def _price(self, trial: Trial) -> float:
        return trial.forecast.upper / self.budget.gain(
            [c.replacement for c in trial.choices], self.costs
        )


def _scored(reference: Reference, task: Task, trial: Trial) -> Scores:
    """Scores of a trial on the fit split."""
    return trial.fresh or reference.score(build(task.plain, trial.replacements))


def _both(redundancy: Redundancy) -> tuple[Choice, Choice]:
    dropped = Replacement(redundancy.span, None, redundancy.identity_error)
    return Choice(dropped, redundancy), _affine(redundancy)


def _affine(redundancy: Redundancy) -> Choice:
    mapped = Replacement(redundancy.span, redundancy.solution, redundancy.affine_error)
    return Choice(mapped, redundancy)
